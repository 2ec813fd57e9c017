//! The documents of a YAML or JSON file, each with the line of every field. One that cannot be read takes no other with it.
//! Pure. Called by mesh files and by `weft analyze`.

use std::borrow::Cow;

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Options, Spanned, localizer::Localizer};

use super::tree::Tree;

/// The most bytes of one file.
pub const LARGEST_FILE: usize = 16 << 20;
/// How many nodes all aliases of a document may stand for.
const LARGEST_ALIASES: usize = 100_000;

/// What a document says.
#[derive(Debug)]
pub struct Document {
    /// The line of its first field, from 1.
    pub line: usize,
    /// As Kubernetes would be shown it.
    pub value: Value,
    tree: Tree,
    /// Lines of the file before the document's text.
    before: usize,
}

/// Why nobody knows what it says.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// From 1.
    pub line: usize,
    /// What is wrong, and how to mend it.
    pub message: String,
}

/// The documents of a text, without those that say nothing.
pub fn documents(text: &str) -> Vec<Result<Document, Unreadable>> {
    let parts = parts(text).into_iter();
    parts
        .filter_map(|(before, part)| {
            let first = part.lines().position(says_something)?;
            let line = before + first + 1;
            Some(read(part, before, line)).filter(|read| !is_null(read))
        })
        .collect()
}

fn is_null(read: &Result<Document, Unreadable>) -> bool {
    read.as_ref().is_ok_and(|document| document.value.is_null())
}

/// The text of each document, and how many lines are before it. A line that begins with `---` begins a document wherever it
/// stands (YAML 1.2.2, 9.1.2), so that the lines can be parted before anything is read.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut begin, mut before, mut at) = (0, 0, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) {
            parts.push((before, &text[begin..at]));
            (begin, before) = (at, i);
        }
        at += line.len();
    }
    parts.push((before, &text[begin..]));
    parts
}

fn is_marker(line: &str) -> bool {
    let rest = line.strip_prefix("---");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line is more than a comment, a directive, or a document's beginning or end.
fn says_something(line: &str) -> bool {
    let line = line.trim_end();
    let line = match is_marker(line) {
        true => &line[3..],
        false => line,
    };
    let line = line.trim_start();
    !(line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}

fn read(text: &str, before: usize, line: usize) -> Result<Document, Unreadable> {
    match serde_saphyr::from_str_with_options::<Spanned<Tree>>(text, options()) {
        Ok(tree) => Ok(Document {
            line,
            value: tree.value.value(),
            tree: tree.value,
            before,
        }),
        Err(error) => {
            let at = error.location().filter(|at| at.line() > 0);
            Err(Unreadable {
                line: at.map_or(line, |at| before + line_of(at)),
                message: message(&error),
            })
        }
    }
}

/// The file's size is the limit that counts; aliases, which make a small file large, have one of their own.
fn options() -> Options {
    let budget = serde_saphyr::budget! { max_events: LARGEST_FILE, max_nodes: LARGEST_FILE };
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: LARGEST_ALIASES };
    let duplicate_keys = DuplicateKeyPolicy::Error;
    serde_saphyr::options! { budget: budget, alias_limits: aliases, duplicate_keys: duplicate_keys, with_snippet: false }
}

fn message(error: &Error) -> String {
    let formatter = serde_saphyr::DefaultMessageFormatter.with_localizer(&WithoutLocation);
    match error {
        Error::DuplicateMappingKey { .. } => "a field is written twice: remove one of them".to_owned(),
        _ => format!("is not YAML: {}", error.render_with_formatter(&formatter)),
    }
}

/// The line is said in a place of its own.
struct WithoutLocation;

impl Localizer for WithoutLocation {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _: Location) -> Cow<'a, str> {
        base
    }
}

fn line_of(at: Location) -> usize {
    usize::try_from(at.line()).unwrap_or(usize::MAX)
}

impl Document {
    /// The line of a field (`spec.rules[0].from`), or of what is there of the way to it.
    pub fn line_of(&self, field: &str) -> usize {
        match find(&self.tree, field) {
            Some(at) if at.line() > 0 => self.before + line_of(at),
            _ => self.line,
        }
    }
}

/// Where the field is, or the last of the way to it that is there.
fn find(tree: &Tree, field: &str) -> Option<Location> {
    let (at, child, rest) = match tree {
        Tree::Map(fields) => {
            // Names may have dots themselves.
            let named = fields.iter().filter_map(|(name, child)| {
                let rest = field.strip_prefix(name.value.as_str())?;
                let ends = rest.is_empty() || rest.starts_with(['.', '[']);
                ends.then_some((name, child, rest))
            });
            let (name, child, rest) = named.max_by_key(|(name, ..)| name.value.len())?;
            (name.referenced, child, rest)
        }
        Tree::List(items) => {
            let (index, rest) = field.strip_prefix('[')?.split_once(']')?;
            let child = items.get(index.parse::<usize>().ok()?)?;
            (child.referenced, child, rest)
        }
        Tree::Leaf(_) => return None,
    };
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    find(&child.value, rest).or(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[(usize, &str)]) {
        let said: Vec<_> = documents(text)
            .into_iter()
            .map(|document| match document {
                Ok(it) => (it.line, it.value.to_string()),
                Err(it) => (it.line, format!("error: {}", it.message)),
            })
            .collect();
        assert_eq!(said.len(), expect.len(), "{text}: {said:?}");
        for ((line, said), (expect_line, expect)) in said.iter().zip(expect) {
            assert!(
                line == expect_line && said.starts_with(expect),
                "{text}: {line} {said}"
            );
        }
    }

    #[test]
    fn a_file_has_documents() {
        check("a: 1\n", &[(1, r#"{"a":1}"#)]);
        check("# nothing\n---\n# nothing\n...\n---\n---\n", &[]);
        check(
            "---\n# hello\na: x\n---   # the next\n\nb: z\n",
            &[(3, r#"{"a":"x"}"#), (6, r#"{"b":"z"}"#)],
        );
        check(
            "--- {a: 1}\n---\nb: |\n  text\n  --- no marker\n",
            &[(1, r#"{"a":1}"#), (3, r#"{"b":"text\n--- no marker\n"}"#)],
        );
        check("%YAML 1.2\n---\na: 1\n", &[(3, r#"{"a":1}"#)]);
        check(
            r#"{"a": [true, null, 1.5, "x"]}"#,
            &[(1, r#"{"a":[true,null,1.5,"x"]}"#)],
        );
        check("a: \"on\"\nb: 08\n", &[(1, r#"{"a":"on""#)]);
        check("~\n---\nnull\n", &[]);
    }

    #[test]
    fn one_that_cannot_be_read_takes_no_other_with_it() {
        check(
            "a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n",
            &[(1, r#"{"a":1}"#), (4, "error: is not YAML"), (6, r#"{"d":3}"#)],
        );
        check("a: 1\nb: 2\na: 3\n", &[(3, "error: a field is written twice")]);
        check(
            "a: {{ .Values.name }}\n---\nb: 1\n",
            &[(1, "error: "), (3, r#"{"b":1}"#)],
        );
    }

    #[test]
    fn aliases_are_bounded() {
        check("a: &x {b: 1}\nc: *x\n", &[(1, r#"{"a":{"b":1},"c":{"b":1}}"#)]);
        let mut laughs = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n");
        for i in 1..9 {
            let names = vec![format!("*a{}", i - 1); 10].join(",");
            laughs += &format!("a{i}: &a{i} [{names}]\n");
        }
        assert!(documents(&laughs)[0].is_err());
        let deep = "[".repeat(100_000);
        assert!(documents(&deep)[0].is_err());
    }

    #[test]
    fn fields_have_lines() {
        let text = "# one\na: 1\n---\nmetadata:\n  labels:\n    app.x/name: web\n    app: y\nspec:\n  rules:\n  - from: [x]\n  - to:\n    - port: 1\n";
        let documents = documents(text);
        let document = documents[1].as_ref().expect("it can be read");
        for (field, line) in [
            ("", 4),
            ("nothing", 4),
            ("metadata", 4),
            ("metadata.labels.app.x/name", 6),
            ("metadata.labels.app", 7),
            ("spec.rules", 9),
            ("spec.rules[0].from[0]", 10),
            ("spec.rules[1].to[0].port", 12),
            ("spec.rules[1].to[7].port", 11),
            ("spec.rules[1].when", 11),
            ("spec.rules[99999999999999999999]", 9),
        ] {
            assert_eq!(document.line_of(field), line, "{field}");
        }
    }
}

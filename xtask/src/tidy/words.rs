//! Words that the project's text must not have: paths of one machine, numbers of issues and names of documents that a
//! reader cannot open, and notes for later that do not say what they wait for.

use super::{Finding, source::Source};

/// Where only one person's files are. In two parts, so that this file does not name them.
const MACHINE_PATHS: [(&str, &str); 3] = [("/wo", "rk/"), ("/ho", "me/"), ("/Us", "ers/")];

/// Checks a Rust file: paths everywhere, the rest in comments only.
pub(super) fn in_comments(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().enumerate();
    let mut findings: Vec<_> = lines
        .filter_map(|(i, line)| machine_path(line).map(|told| at(&source.path, i + 1, told)))
        .collect();
    for (line, comment) in &source.comments {
        let told = issue_number(comment)
            .or_else(|| document(comment))
            .or_else(|| bare_todo(comment));
        findings.extend(told.map(|told| at(&source.path, *line, told)));
    }
    findings
}

/// Checks a text of another kind, all of it.
pub(super) fn in_text(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate();
    let told = lines.filter_map(|(i, line)| {
        let told = machine_path(line)
            .or_else(|| document(line))
            .or_else(|| issue_number(line).filter(|_| path.ends_with(".md")))?;
        Some(at(path, i + 1, told))
    });
    told.collect()
}

type Told = (String, &'static str);

fn at(path: &str, line: usize, (what, mend): Told) -> Finding {
    Finding {
        path: path.to_owned(),
        line,
        what,
        mend: mend.to_owned(),
    }
}

fn machine_path(line: &str) -> Option<Told> {
    let paths = MACHINE_PATHS.iter().map(|(a, b)| format!("{a}{b}"));
    let named = paths.into_iter().find(|path| line.contains(path))?;
    Some((
        format!("`{named}` is a path of one machine"),
        "name it relative to the checkout",
    ))
}

/// A number sign and a number with no project before them (`dae #518` is another's).
fn issue_number(text: &str) -> Option<Told> {
    let mend = "say what it is about; a number alone is for other projects' issues, after their name";
    for (at, _) in text.match_indices('#') {
        let digits: String = text[at + 1..]
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let numbered = (1..=5).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit());
        let before = text[..at].trim_end_matches([' ', ',']);
        let word = before
            .rsplit(|c: char| c.is_whitespace() || "(`".contains(c))
            .next()
            .unwrap_or_default();
        let project = word.contains('/') || word.starts_with('#') || PROJECTS.contains(&word);
        if numbered && !project {
            return Some((format!("`#{digits}` names no project"), mend));
        }
    }
    None
}

/// Projects whose issues may be cited by number.
const PROJECTS: [&str; 8] = ["aya", "beyla", "dae", "h2", "istio", "rustls", "tokio", "ztunnel"];

/// Documents that are not in the repository.
const DOCUMENTS: [&str; 4] = ["COMPAT", "DESIGN.md", "KERNEL.md", "STYLE.md"];

/// One of them as a word of its own.
fn document(text: &str) -> Option<Told> {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let alone = |name: &str| {
        text.match_indices(name)
            .any(|(at, _)| !text[..at].ends_with(in_word) && !text[at + name.len()..].starts_with(in_word))
    };
    let name = DOCUMENTS.into_iter().find(|name| alone(name))?;
    let mend = "write what it says, or name a public source: Istio's ambient mode, an RFC";
    Some((format!("`{name}` is not in the repository"), mend))
}

fn bare_todo(comment: &str) -> Option<Told> {
    let mend = "write `TODO(what it waits for): what to do then`";
    let word = ["TODO", "FIXME", "XXX"]
        .into_iter()
        .find(|word| comment.contains(word))?;
    let after = comment
        .split_once("TODO(")
        .and_then(|(_, after)| after.split_once(')'));
    let waits = after.is_some_and(|(what, _)| !what.trim().is_empty());
    (!waits).then(|| (format!("`{word}` does not say what it waits for"), mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(comment: &str, expect: &[&str]) {
        let found = in_comments(&Source::new("a.rs".into(), format!("fn f() {{}}\n{comment}\n")));
        let found: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(found, expect, "{comment}");
        assert!(in_comments(&Source::new("a.rs".into(), String::new())).is_empty());
    }

    #[test]
    fn paths_of_a_machine_are_found_everywhere() {
        let path = ["/ho", "me/me/x"].concat();
        check(
            &format!("const A: &str = \"{path}\";"),
            &[&*["`/ho", "me/` is a path of one machine"].concat()],
        );
        assert_eq!(in_text("README.md", &format!("one\nin {path}\n"))[0].line, 2);
    }

    #[test]
    fn issue_numbers_name_their_project() {
        check("// see #12", &["`#12` names no project"]);
        check("// as in dae #518, #912; rust-lang/rust#70436", &[]);
        check("// section #a1b2c3, colour #123456, `#[test]`", &[]);
        check("const A: &str = \"#12\";", &[]);
    }

    #[test]
    fn documents_that_are_not_here_are_not_named() {
        for name in DOCUMENTS {
            let told = format!("`{name}` is not in the repository");
            check(&format!("// the ports ({name} A2)"), &[&*told]);
            check(&format!("//! {name}"), &[&*told]);
            check(&format!("// {name}ible, {name}_X, IN{name}"), &[]);
            check(&format!("const A: &str = \"{name}\";"), &[]);
            assert_eq!(
                in_text("a.yaml", &format!("one\n# see docs/{name}.\n"))[0].line,
                2
            );
        }
        check("// compatible, the design, its style", &[]);
    }

    #[test]
    fn a_todo_says_what_it_waits_for() {
        let word = ["TO", "DO"].concat();
        check(
            &format!("// {word}: later"),
            &[&*format!("`{word}` does not say what it waits for")],
        );
        check(&format!("// {word}(aya 0.16): use its link update"), &[]);
        check(
            &format!("// {word}( ): later"),
            &[&*format!("`{word}` does not say what it waits for")],
        );
    }
}

//! The shape of a file: its header, its length, its functions' lengths, and where `unsafe` is and why.

use super::{
    Finding,
    source::{Source, closing},
};

/// Lines of a file, its tests not counted.
const FILE_LINES: usize = 500;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// The same for a test: its table of cases is data.
const TEST_LINES: usize = 120;

/// Functions that are longer, and why that is simpler.
const LONG_FUNCTIONS: [(&str, &str, &str); 1] = [("xtask/src/main.rs", "run", "one arm for each command")];
/// Files that are longer, and why.
const LONG_FILES: [(&str, &str); 0] = [];

/// Where `unsafe` may be: what speaks to the kernel, and the test world, which makes namespaces.
const UNSAFE: [&str; 5] = [
    "agent-ebpf/",
    "agent-common/",
    "agent/src/net/",
    "agent/src/kernel/",
    "tests/",
];

/// Checks one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(header(source));
    findings.extend(file_length(source));
    findings.extend(functions(source));
    findings.extend(unsafe_code(source));
    findings
}

fn finding(source: &Source, line: usize, what: String, mend: &str) -> Finding {
    Finding {
        path: source.path.clone(),
        line,
        what,
        mend: mend.to_owned(),
    }
}

fn header(source: &Source) -> Option<Finding> {
    let mend = "open it with what it is, what it is not, and who calls it";
    let first = source.text.lines().find(|line| !line.trim().is_empty())?;
    (!first.starts_with("//! ")).then(|| finding(source, 1, "no `//!` header".into(), mend))
}

fn file_length(source: &Source) -> Option<Finding> {
    let lines = (1..=source.text.lines().count())
        .filter(|line| !source.is_test(*line))
        .count();
    let allowed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    (lines > FILE_LINES && !allowed).then(|| {
        let what = format!("{lines} lines without its tests, {FILE_LINES} is the limit");
        finding(
            source,
            1,
            what,
            "split it where a reader would stop, or add it to LONG_FILES in tidy/shape.rs with the reason",
        )
    })
}

fn functions(source: &Source) -> Vec<Finding> {
    let tokens = &source.tokens;
    let mut findings = Vec::new();
    for at in (0..tokens.len()).filter(|at| tokens[*at].is("fn")) {
        // `fn(u8)` is a type, and has no name.
        let Some(name) = tokens.get(at + 1).filter(|next| next.symbol == ' ') else {
            continue;
        };
        let Some(open) = body(source, at) else { continue };
        let lines = tokens[closing(tokens, open)].line - tokens[at].line + 1;
        let limit = if source.is_test(tokens[at].line) {
            TEST_LINES
        } else {
            FUNCTION_LINES
        };
        let allowed = LONG_FUNCTIONS
            .iter()
            .any(|(path, long, _)| *path == source.path && *long == name.word);
        if lines > limit && !allowed {
            let what = format!("`{}` has {lines} lines, {limit} is the limit", name.word);
            let mend = "name its steps and make each a function, or add it to LONG_FUNCTIONS in tidy/shape.rs with the reason";
            findings.push(finding(source, tokens[at].line, what, mend));
        }
    }
    findings
}

/// The brace that opens a function's body; none if it has no body.
fn body(source: &Source, at: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, token) in source.tokens.iter().enumerate().skip(at) {
        match token.symbol {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return None,
            '{' if depth == 0 => return Some(i),
            _ => {}
        }
    }
    None
}

fn unsafe_code(source: &Source) -> Vec<Finding> {
    let tokens = &source.tokens;
    let mut findings = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.is("unsafe")) {
        if !UNSAFE.iter().any(|place| source.path.starts_with(place)) {
            let mend = "unsafe is for agent-ebpf, agent-common, net, kernel and the test world: put a safe function there";
            findings.push(finding(
                source,
                token.line,
                "`unsafe` outside of its places".into(),
                mend,
            ));
        }
        let opens = tokens
            .get(i + 1)
            .is_some_and(|next| next.is("{") || next.is("impl"));
        if opens && !explained(source, token.line) {
            let mend = "write `// SAFETY:` and why it holds right above it";
            findings.push(finding(
                source,
                token.line,
                "`unsafe` without its reason".into(),
                mend,
            ));
        }
    }
    findings
}

/// Whether a SAFETY comment stands on the line or above the statement that the line is part of.
fn explained(source: &Source, line: usize) -> bool {
    let lines: Vec<_> = source.text.lines().map(str::trim).collect();
    let safety = |text: &str| text.contains("SAFETY:");
    let own = lines.get(line - 1).copied().unwrap_or_default();
    let mut above = lines[..line - 1].iter().rev().peekable();
    // A statement that began above: `let x =` or `call(`.
    while above
        .next_if(|text| !text.is_empty() && !text.starts_with("//") && !text.ends_with([';', '{', '}']))
        .is_some()
    {}
    safety(own)
        || above
            .take_while(|text| text.starts_with("//") || text.starts_with("#["))
            .any(|text| safety(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expect: &[&str]) {
        let found = check(&Source::new(path.into(), format!("//! X.\n{text}")));
        let found: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(found, expect, "{path}: {text}");
    }

    #[test]
    fn a_file_opens_with_what_it_is() {
        for text in ["use x;", "// X.\nuse x;", "#![no_std]\n//! X."] {
            let found = check(&Source::new("a.rs".into(), text.into()));
            assert_eq!(found.len(), 1, "{text}");
        }
        check_one("a.rs", "#![no_std]", &[]);
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        check_one("a.rs", &"const A: u8 = 0;\n".repeat(FILE_LINES - 1), &[]);
        check_one(
            "a.rs",
            &"const A: u8 = 0;\n".repeat(FILE_LINES),
            &["501 lines without its tests, 500 is the limit"],
        );
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}",
            "const A: u8 = 0;\n".repeat(FILE_LINES)
        );
        check_one("a.rs", &tests, &[]);
    }

    #[test]
    fn long_functions_are_found() {
        let function = |lines: usize| format!("fn f(x: [u8; 2]) {{\n{}}}", "x();\n".repeat(lines - 2));
        check_one("a.rs", &function(FUNCTION_LINES), &[]);
        check_one(
            "a.rs",
            &function(FUNCTION_LINES + 1),
            &["`f` has 71 lines, 70 is the limit"],
        );
        let test = |lines| format!("#[cfg(test)]\nmod tests {{\n{}\n}}", function(lines));
        check_one("a.rs", &test(TEST_LINES), &[]);
        check_one(
            "a.rs",
            &test(TEST_LINES + 1),
            &["`f` has 121 lines, 120 is the limit"],
        );
        let no_body = format!("trait A {{ fn f(); }}\n{}", "const A: fn(u8) = g;\n".repeat(80));
        check_one("a.rs", &no_body, &[]);
    }

    #[test]
    fn unsafe_has_its_places_and_its_reason() {
        let explained = "fn f() {\n    // SAFETY: the fd is ours.\n    let x =\n        unsafe { g() };\n}";
        check_one("agent/src/net/a.rs", explained, &[]);
        check_one(
            "agent/src/node/a.rs",
            explained,
            &["`unsafe` outside of its places"],
        );
        check_one(
            "agent/src/net/a.rs",
            "fn f() {\n    unsafe { g() };\n}",
            &["`unsafe` without its reason"],
        );
        let elsewhere = "fn f() {\n    // SAFETY: for another.\n    h();\n    unsafe { g() };\n}";
        check_one("agent/src/net/a.rs", elsewhere, &["`unsafe` without its reason"]);
        check_one(
            "agent/src/node/a.rs",
            "// unsafe\nconst A: &str = \"unsafe {\";",
            &[],
        );
    }
}

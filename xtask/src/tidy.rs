//! `tidy`: the house rules that neither rustc nor clippy knows, as a test that names file, line and mend. It reads
//! source text and changes nothing. The rules are data at the head of each module; `ci` runs it.

mod dead;
mod layers;
mod paths;
mod shape;
mod source;
mod words;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use source::Source;

use crate::shell;

/// A rule that is broken, where, and what to do.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    what: String,
    mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            what,
            mend,
        } = self;
        write!(f, "{path}:{line}: {what}: {mend}")
    }
}

/// Directories that hold no text of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];
/// Files whose words are checked, besides Rust's own.
const TEXTS: [&str; 7] = ["md", "toml", "yaml", "yml", "json", "sh", "run"];

/// Checks the whole checkout.
///
/// # Errors
/// A rule is broken, and has been printed, or a file could not be read.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let (sources, texts) = read(&root)?;
    let mut findings: Vec<_> = sources.iter().flat_map(check).collect();
    findings.extend(texts.iter().flat_map(|(path, text)| words::in_text(path, text)));
    findings.extend(dead::check(&sources));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!(
            "tidy: {} findings in {} files",
            findings.len(),
            sources.len() + texts.len()
        );
    }
    println!("tidy: {} files, nothing to say", sources.len() + texts.len());
    Ok(())
}

/// Every rule that needs one file only.
fn check(source: &Source) -> Vec<Finding> {
    let mut findings = layers::check(source);
    findings.extend(shape::check(source));
    findings.extend(words::in_comments(source));
    findings
}

type Texts = Vec<(String, String)>;

fn read(root: &Path) -> Result<(Vec<Source>, Texts)> {
    let (mut sources, mut texts) = (Vec::new(), Vec::new());
    for path in files(root)? {
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .to_string_lossy()
            .into_owned();
        let kind = path
            .extension()
            .or(path.file_name())
            .and_then(|kind| kind.to_str())
            .unwrap_or_default();
        let text = || fs::read_to_string(&path).with_context(|| format!("cannot read {name}"));
        if kind == "rs" {
            sources.push(Source::new(name.clone(), text()?));
        } else if TEXTS.contains(&kind) {
            texts.push((name.clone(), text()?));
        }
    }
    Ok((sources, texts))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        match entry.file_type()? {
            kind if kind.is_dir() && !skipped => found.extend(files(&entry.path())?),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

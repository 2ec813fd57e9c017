//! Reads files and folders with manifests.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::manifests::documents::LARGEST_FILE;

/// Files of all folders.
const MOST_FILES: usize = 10_000;
/// Bytes of all files.
const LARGEST_SUM: usize = 256 << 20;
/// Folders in folders.
const DEEPEST: usize = 32;
/// What manifests' names end in, in folders.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// A file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    /// As it was named, or as it was found in a folder.
    pub(super) path: String,
    /// Whether it was found in a folder, which may have other things than manifests too.
    pub(super) in_folder: bool,
    /// What it says, or why nobody knows.
    pub(super) text: Result<String, String>,
}

/// The texts of these files, and of those in these folders, by name.
///
/// # Errors
/// When one of them is not there.
pub(super) fn read(paths: &[PathBuf], stdin: &mut impl Read) -> Result<Vec<Text>, String> {
    let mut texts = Vec::new();
    let mut sum = 0;
    for path in paths {
        if path.as_os_str() == "-" {
            texts.push(Text {
                path: "-".to_owned(),
                in_folder: false,
                text: text(&mut *stdin),
            });
            continue;
        }
        let is_folder = path.is_dir();
        let mut files = Vec::new();
        match is_folder {
            true => walk(path, 0, &mut files)?,
            false => files.push(path.clone()),
        }
        files.sort();
        for file in files {
            let opened = fs::File::open(&file).map_err(|error| failed(&file, &error))?;
            let text = text(opened);
            sum += text.as_ref().map_or(0, String::len);
            if sum > LARGEST_SUM {
                let limit = LARGEST_SUM >> 20;
                return Err(format!(
                    "all files together are larger than {limit} MiB: name fewer"
                ));
            }
            texts.push(Text {
                path: file.display().to_string(),
                in_folder: is_folder,
                text,
            });
        }
    }
    Ok(texts)
}

fn text(from: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = LARGEST_FILE as u64 + 1;
    from.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > LARGEST_FILE {
        let limit = LARGEST_FILE >> 20;
        return Err(format!("is larger than {limit} MiB: split it"));
    }
    String::from_utf8(bytes).map_err(|_| "is no text of UTF-8: save it as such".to_owned())
}

/// The manifests in a folder and in its folders. What is hidden is left out, and so are links to folders, which may lead
/// back.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("{}: is deeper than {DEEPEST} folders", folder.display()));
    }
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| failed(folder, &error))?;
        let (path, kind) = (entry.path(), entry.file_type());
        let kind = kind.map_err(|error| failed(&path, &error))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if kind.is_dir() {
            walk(&path, depth + 1, files)?;
        } else if is_manifest(&path) && path.is_file() {
            files.push(path);
        }
        if files.len() > MOST_FILES {
            return Err(format!(
                "there are more than {MOST_FILES} files: name fewer folders"
            ));
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let ending = path.extension().and_then(|it| it.to_str());
    ending.is_some_and(|ending| ENDINGS.iter().any(|it| ending.eq_ignore_ascii_case(it)))
}

fn failed(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

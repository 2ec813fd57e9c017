//! The files that the `manifests` section of a mesh file names: finding and reading them. (What they say: `objects`.)

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LARGEST_FILE,
    schema::{Document, Text},
    watch::read_text,
};

/// The most files.
const MOST_FILES: usize = 1000;
/// What the names of a folder's files end in.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// One of the files, as it was found.
#[derive(Debug, Hash)]
pub(super) struct ManifestFile {
    /// Which entry of the section names it.
    pub(super) entry: usize,
    pub(super) path: Arc<Path>,
    /// Its text, or why there is none.
    pub(super) text: Result<String, String>,
}

/// What the section names, from the mesh file's own folder.
pub(super) fn named(document: &Document, mesh_file: &Path) -> Vec<PathBuf> {
    let folder = mesh_file.parent().unwrap_or(Path::new(""));
    let entries = document.manifests.iter().flatten();
    entries.map(|Text { value, .. }| folder.join(value)).collect()
}

/// The files at a path: itself, or those of a folder in the order of their names.
///
/// # Errors
/// Where it is not there, cannot be looked at, or is neither a file nor a folder.
pub(super) fn expand(path: &Path) -> io::Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    if !metadata.is_dir() {
        return Err(io::Error::other("it is neither a file nor a folder"));
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if is_manifest(&path) {
            files.push(path);
        }
        if files.len() > MOST_FILES {
            return Err(io::Error::other(format!(
                "it has more than {MOST_FILES} manifests"
            )));
        }
    }
    files.sort();
    Ok(files)
}

/// By its name; a folder, or a file that an editor is about to write, is none.
fn is_manifest(path: &Path) -> bool {
    let ending = path.extension().and_then(|it| it.to_str());
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    ending.is_some_and(|it| ENDINGS.contains(&it)) && !hidden && path.is_file()
}

/// Reads them; all together may be as large as a mesh file.
pub(super) fn read(named: &[PathBuf]) -> Vec<ManifestFile> {
    let mut files = Vec::new();
    let mut left = LARGEST_FILE;
    for (entry, path) in named.iter().enumerate() {
        let found = |path: &Path, text| ManifestFile {
            entry,
            path: path.into(),
            text,
        };
        match expand(path) {
            Err(error) => files.push(found(path, Err(error.to_string()))),
            Ok(_) if files.len() > MOST_FILES => {
                let why = format!("there are more than {MOST_FILES} files");
                files.push(found(path, Err(why)));
            }
            Ok(paths) => files.extend(paths.iter().map(|path| {
                let text = read_text(path, left).map_err(|error| error.to_string());
                left -= text.as_ref().map_or(0, String::len);
                found(path, text)
            })),
        }
    }
    files
}

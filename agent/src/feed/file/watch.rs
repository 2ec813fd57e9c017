//! The mesh file on disk, and the manifests that it names: reading them, and noticing that they are others.
//!
//! Level-triggered: every so often the files are looked at, and read when one does not look as before. No inotify: a
//! Kubernetes ConfigMap changes by a symbolic link several directories away, and a watch on the file would miss it.

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::task::JoinHandle;

use super::{
    LARGEST_FILE, MeshFile, MeshFileError,
    manifests::{self, ManifestFile},
    parse, parse_document, schema,
};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(50);
/// A file this young may change again without looking different (file systems keep the time of a change in ticks), and
/// whoever writes it may not have come to its end.
const SETTLED_AFTER: Duration = Duration::from_millis(25);

/// Why a mesh file gives no mesh.
#[derive(Debug, Error)]
pub enum FeedError {
    /// It cannot be read.
    #[error("cannot read the mesh file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can be read, but something is wrong with it.
    #[error("the mesh file is not valid")]
    Invalid(#[source] MeshFileError),
}

/// Reads the mesh file as the node of this name sees it.
///
/// # Errors
/// When it cannot be read, or when anything is wrong with it.
pub fn load(path: &Path, node: &str) -> Result<MeshFile, FeedError> {
    let text = read(path)?;
    parse(&text, path, node).map_err(FeedError::Invalid)
}

fn read(path: &Path) -> Result<String, FeedError> {
    read_text(path, LARGEST_FILE).map_err(|source| FeedError::Read {
        path: path.to_owned(),
        source,
    })
}

/// At most one byte more than the most, so that a file without an end cannot take all memory.
pub(super) fn read_text(path: &Path, most: usize) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        let too_large = if most == LARGEST_FILE {
            "it is larger than 16 MiB"
        } else {
            "all manifests together are larger than 16 MiB"
        };
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large));
    }
    String::from_utf8(bytes).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

/// Notices changes of the mesh file, and of the manifests that it names.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    node: String,
    seen: Option<Seen>,
    /// The manifests that the mesh file named when it was read last: files and folders.
    named: Vec<PathBuf>,
    /// A hash of what the last reading brought, so that a file that only looks different is not a change.
    content: Option<u64>,
    /// One that a caller has given up, and that goes on: a large file would never be read to its end otherwise.
    reading: Option<JoinHandle<Option<Reading>>>,
}

/// How the mesh file looked, and then the manifests.
type Seen = Vec<(PathBuf, Look)>;

/// How a file looked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    Missing(io::ErrorKind),
    File {
        modified: (i64, i64),
        len: u64,
        inode: (u64, u64),
    },
}

impl FileWatch {
    /// Watches the mesh file as the node of this name sees it.
    pub fn new(path: impl Into<PathBuf>, node: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            node: node.into(),
            seen: None,
            named: Vec::new(),
            content: None,
            reading: None,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the file says something else than the last time (the first call does not wait), and reads it.
    /// May be dropped and called again at any time: no change is lost.
    ///
    /// # Errors
    /// As [`load`]: once for every change, not again and again for the same bad file.
    pub async fn changed(&mut self) -> Result<MeshFile, FeedError> {
        loop {
            if let Some(changed) = self.look().await {
                return changed;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Looks at once whether the file says something else than the last time. Nothing also while somebody is writing it:
    /// half a file may well be a mesh, of half the workloads and half the policies.
    ///
    /// # Errors
    /// As [`FileWatch::changed`].
    pub async fn look(&mut self) -> Option<Result<MeshFile, FeedError>> {
        let began_before = self.reading.is_some();
        match self.look_once().await {
            None if began_before => self.look_once().await,
            looked => looked,
        }
    }

    async fn look_once(&mut self) -> Option<Result<MeshFile, FeedError>> {
        if self.reading.is_none() {
            let mut seen = look_at_all(&self.path, &self.named);
            if seen.is_none() {
                tokio::time::sleep(SETTLED_AFTER).await;
                seen = look_at_all(&self.path, &self.named);
            }
            let seen = seen.filter(|seen| self.seen.as_ref() != Some(seen))?;
            self.reading = Some(self.begin_reading(seen));
        }
        let read = self.reading.as_mut()?.await;
        self.reading = None;
        // Noted together and after the last await: a caller that gives up before this has missed nothing.
        match read {
            Ok(Some(reading)) => {
                self.seen = Some(reading.seen);
                self.named = reading.named;
                self.content = Some(reading.content);
                reading.changed
            }
            Ok(None) => None,
            Err(err) => Some(Err(FeedError::Read {
                path: self.path.clone(),
                source: io::Error::other(err),
            })),
        }
    }

    /// On a thread that may block: a large file takes its time to read and to parse. Nothing if a file has changed
    /// meanwhile.
    fn begin_reading(&self, seen: Seen) -> JoinHandle<Option<Reading>> {
        let (path, node, last) = (self.path.clone(), self.node.clone(), self.content);
        tokio::task::spawn_blocking(move || {
            let read = read(&path).map(|text| (schema::read(&text), text));
            let named = match &read {
                Ok((Ok(document), _)) => manifests::named(document, &path),
                _ => Vec::new(),
            };
            // Manifests that somebody is just about to write are looked at again in a moment.
            let now = look_at_all(&path, &named)?;
            let files = manifests::read(&named);
            // The mesh file as it was before it was read, and each manifest likewise.
            if now.first() != seen.first() || look_at_all(&path, &named).as_ref() != Some(&now) {
                return None;
            }
            let content = content_hash(&read, &files);
            let parsed =
                |(document, _)| parse_document(document, &files, &path, &node).map_err(FeedError::Invalid);
            let changed = (Some(content) != last).then(|| read.and_then(parsed));
            Some(Reading {
                seen: now,
                named,
                content,
                changed,
            })
        })
    }
}

/// What a reading brought.
#[derive(Debug)]
struct Reading {
    seen: Seen,
    named: Vec<PathBuf>,
    /// Its hash.
    content: u64,
    /// The mesh file, unless that is the hash of the last one.
    changed: Option<Result<MeshFile, FeedError>>,
}

/// How the mesh file and what it names look; none while one of them is so young that it may look the same after another change,
/// or that it is being written.
fn look_at_all(path: &Path, named: &[PathBuf]) -> Option<Seen> {
    let files = named.iter().flat_map(|path| match manifests::expand(path) {
        Ok(files) => files,
        Err(_) => vec![path.clone()],
    });
    let all = [path.to_owned()].into_iter().chain(files);
    all.map(|path| Some((path.clone(), look(&path)?))).collect()
}

/// Before it is read: whatever changes later makes it look different the next time. It blocks no longer than any look at a
/// directory.
fn look(path: &Path) -> Option<Look> {
    match std::fs::metadata(path) {
        Ok(metadata) => is_settled(&metadata).then(|| Look::File {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            len: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
        }),
        Err(err) => Some(Look::Missing(err.kind())),
    }
}

/// A time in the future (a clock that was set back) is settled: there is nothing better to compare than the time.
fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata
        .modified()
        .map(|modified| SystemTime::now().duration_since(modified));
    !matches!(age, Ok(Ok(age)) if age < SETTLED_AFTER)
}

fn content_hash<T>(read: &Result<(T, String), FeedError>, files: &[ManifestFile]) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    match read {
        Ok((_, text)) => text.hash(&mut hasher),
        Err(err) => format!("{err:?}").hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;

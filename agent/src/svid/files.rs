//! The files that certificates and trust come from: a local CA's, more roots, revocation lists. Read once at the start,
//! where all must be good, and again whenever they change, where what is not good leaves what was there before.
//!
//! Level-triggered, as the mesh file is: every so often it is looked at them, and they are read when they look different
//! than before and twice the same: a certificate and its key are written one after the other.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tracing::{error, info, warn};

use super::{LocalCa, LocalCaError, Sources, SvidStore};
use crate::net::tls::{Revocations, TlsError, TrustBundle};

/// How often they are looked at. A change is noticed after two looks: what a removed root or a revocation ends must be
/// over within a second.
const PERIOD: Duration = Duration::from_millis(100);
/// The largest file of roots or lists: some 400,000 revocations.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Where they are.
#[derive(Clone, Debug)]
pub struct TrustFiles {
    /// The certificate that signs, its issuers, and more roots, PEM.
    pub ca_cert: PathBuf,
    /// Its key, PEM.
    pub ca_key: PathBuf,
    /// More roots, PEM.
    pub bundle: Option<PathBuf>,
    /// Revocation lists, PEM.
    pub crl: Option<PathBuf>,
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum FilesError {
    /// The CA's.
    #[error(transparent)]
    Ca(#[from] LocalCaError),
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is not taken", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TlsError,
    },
}

impl TrustFiles {
    fn ca(&self) -> Result<Arc<LocalCa>, FilesError> {
        Ok(Arc::new(LocalCa::load(&self.ca_cert, &self.ca_key)?))
    }

    fn roots(&self) -> Result<Option<TrustBundle>, FilesError> {
        self.bundle
            .as_deref()
            .map(|path| read(path, TrustBundle::from_pem))
            .transpose()
    }

    fn revocations(&self) -> Result<Revocations, FilesError> {
        let read = self.crl.as_deref().map(|path| read(path, Revocations::from_pem));
        read.unwrap_or_else(|| Ok(Revocations::default()))
    }

    fn look(&self) -> Looks {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(look);
        Looks {
            ca: (look(&self.ca_cert), look(&self.ca_key)),
            bundle: optional(&self.bundle),
            crl: optional(&self.crl),
        }
    }
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, TlsError>) -> Result<T, FilesError> {
    let path_of = || path.to_owned();
    let failed = |source| FilesError::Read {
        path: path_of(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 16 MiB",
        )));
    }
    parse(&bytes).map_err(|source| FilesError::Invalid {
        path: path_of(),
        source,
    })
}

/// How a file looks; `None` where it cannot be looked at.
type Look = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Looks {
    ca: (Look, Look),
    bundle: Option<Look>,
    crl: Option<Look>,
}

fn look(path: &Path) -> Look {
    let it = fs::metadata(path).ok()?;
    let (modified, changed) = ((it.mtime(), it.mtime_nsec()), (it.ctime(), it.ctime_nsec()));
    Some((it.dev(), it.ino(), it.len(), modified, changed))
}

/// The files, and what they gave last.
#[derive(Debug)]
pub struct FileSources {
    files: TrustFiles,
    sources: Sources,
    /// When they were read.
    read: Looks,
    /// The last time.
    last: Looks,
    warned_of: Option<SystemTime>,
}

impl FileSources {
    /// Reads them all.
    ///
    /// # Errors
    /// When one of them cannot be read or used.
    pub fn load(files: TrustFiles) -> Result<Self, FilesError> {
        // Before they are read: what changes meanwhile looks different the next time.
        let looks = files.look();
        let sources = Sources {
            ca: files.ca()?,
            roots: files.roots()?,
            revocations: files.revocations()?,
        };
        let mut loaded = Self {
            files,
            sources,
            read: looks.clone(),
            last: looks,
            warned_of: None,
        };
        loaded.warn_of_old_lists();
        Ok(loaded)
    }

    /// What they gave.
    pub fn sources(&self) -> Sources {
        self.sources.clone()
    }

    /// Tells the store of every change, for as long as the runtime lives.
    pub async fn watch(mut self, store: SvidStore) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let looked = tokio::task::spawn_blocking(move || {
                let changed = self.read_again();
                (self, changed)
            });
            let (files, changed) = match looked.await {
                Ok(looked) => looked,
                Err(err) => {
                    return error!(%err, "the files of certificates and trust are not watched any more");
                }
            };
            self = files;
            if changed {
                store.replace(self.sources());
            }
        }
    }

    /// Looks at the files, and reads those that have changed and are at rest. Answers whether there is something new.
    fn read_again(&mut self) -> bool {
        self.warn_of_old_lists();
        let looks = self.files.look();
        let at_rest = std::mem::replace(&mut self.last, looks.clone()) == looks;
        if looks == self.read || !at_rest {
            return false;
        }
        let before = std::mem::replace(&mut self.read, looks.clone());
        let mut changed = false;
        if looks.ca != before.ca {
            let ca = taken(self.files.ca()).map(|ca| self.sources.ca = ca);
            changed |= ca.is_some();
        }
        if looks.bundle != before.bundle {
            let roots = taken(self.files.roots()).map(|roots| self.sources.roots = roots);
            changed |= roots.is_some();
        }
        if looks.crl != before.crl {
            let lists = taken(self.files.revocations()).map(|lists| self.sources.revocations = lists);
            changed |= lists.is_some();
        }
        if changed {
            let (roots, lists) = (
                self.sources.roots.as_ref().map_or(0, TrustBundle::len),
                self.sources.revocations.len(),
            );
            info!(
                more_roots = roots,
                crls = lists,
                "files of certificates and trust were read again"
            );
        }
        changed
    }

    /// A list that should have been replaced is used all the same; once per list it is said.
    fn warn_of_old_lists(&mut self) {
        let due = self.sources.revocations.next_update();
        if let Some(due) = due.filter(|due| *due <= SystemTime::now() && self.warned_of != Some(*due)) {
            let due_at = humantime::format_rfc3339_seconds(due);
            warn!(%due_at, "a CRL should have been replaced by now; it is used as it is, and knows of no later revocation");
            self.warned_of = Some(due);
        }
    }
}

/// What a file gave, if it can be used.
fn taken<T>(read: Result<T, FilesError>) -> Option<T> {
    read.inspect_err(|err| {
        let causes = std::iter::successors(std::error::Error::source(err), |&cause| cause.source());
        let error = causes.fold(err.to_string(), |line, cause| format!("{line}: {cause}"));
        error!(
            error,
            "a changed file is not taken; what it said before stays in force"
        );
    })
    .ok()
}

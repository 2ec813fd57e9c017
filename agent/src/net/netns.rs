//! Network namespaces: opening a pod's, and making sockets inside it.
//!
//! A socket belongs for life to the namespace it was made in, so a thread enters one only for the call that makes the
//! socket (two `setns` calls, about 1 us together). Never async: the thread must not change hands in between.

use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

/// `SO_NETNS_COOKIE` (linux/asm-generic/socket.h, Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A pod's network namespace, held open: it lives as long as this does.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    home: Arc<File>,
    path: PathBuf,
    cookie: u64,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/name` or `/proc/<pid>/ns/net`).
    ///
    /// # Errors
    /// When there is nothing, when it is not a network namespace, or without CAP_SYS_ADMIN (and CAP_SYS_PTRACE for
    /// processes of other users).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::hold(File::open(path)?, path)
    }

    /// The same, of a namespace that is open already. `path` is what people are shown.
    ///
    /// # Errors
    /// As [`Netns::open`].
    pub fn hold(file: File, path: &Path) -> io::Result<Self> {
        let file = Arc::new(file);
        let home = Arc::new(File::open("/proc/thread-self/ns/net")?);
        let mut netns = Self {
            file,
            home,
            path: path.to_owned(),
            cookie: 0,
        };
        let probe = netns.enter(|| Socket::new(Domain::IPV4, Type::DGRAM, None))?;
        netns.cookie = cookie(probe.as_fd())?;
        Ok(netns)
    }

    /// What the kernel's programs know the namespace by: unique until reboot.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Whether the path still leads to this namespace: false once the pod is gone or was made anew.
    pub fn is_current(&self) -> bool {
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let (held, now) = (self.file.metadata(), std::fs::metadata(&self.path));
        held.and_then(|held| now.map(|now| identity(held) == identity(now)))
            .unwrap_or(false)
    }

    /// What tells the namespace from all others for as long as it is open: device and inode of its file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|file| (file.dev(), file.ino()))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `make` with the calling thread inside the namespace.
    ///
    /// # Errors
    /// Those of `make`, and of entering.
    ///
    /// # Panics
    /// Ends the process when the thread cannot return: it would go on making sockets in the wrong pod.
    pub fn enter<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let made = make();
        if let Err(error) = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network)) {
            tracing::error!(%error, "cannot return to the agent's own network namespace");
            std::process::abort();
        }
        made
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where a pod's network namespace is.
#[derive(Clone, Debug)]
pub enum NetnsSource {
    /// At a path, as a mesh file gives it. What is there may become another namespace: see [`Netns::is_current`].
    Path(PathBuf),
    /// Open already, and known to be the pod's. Nothing that is named by a number, which could be another's by now, lies
    /// between the look at it and its capture.
    Held(Netns),
    /// Not found yet.
    Missing {
        /// Why.
        why: Arc<str>,
        /// Whether processes of the pod run. If not, nobody can have captured it.
        runs: bool,
    },
}

impl NetnsSource {
    /// The namespace itself.
    ///
    /// # Errors
    /// Those of [`Netns::open`]; NotFound, with the reason, for one that is missing.
    pub fn open(&self) -> io::Result<Netns> {
        match self {
            Self::Path(path) => Netns::open(path),
            Self::Held(netns) => Ok(netns.clone()),
            Self::Missing { why, .. } => Err(io::Error::new(io::ErrorKind::NotFound, &**why)),
        }
    }

    /// Whether `netns`, which was opened here, is still what is here.
    pub fn is_current(&self, netns: &Netns) -> bool {
        match self {
            Self::Path(_) => netns.is_current(),
            // A pod that was made anew, or whose sandbox was, has another source.
            Self::Held(_) => true,
            Self::Missing { .. } => false,
        }
    }

    /// Whether nothing of the pod runs.
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Missing { runs: false, .. })
    }
}

impl Default for NetnsSource {
    fn default() -> Self {
        Self::Path(PathBuf::new())
    }
}

impl PartialEq for NetnsSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Held(a), Self::Held(b)) => a.cookie() == b.cookie(),
            (Self::Missing { why: a, .. }, Self::Missing { why: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Eq for NetnsSource {}

impl fmt::Display for NetnsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Held(netns) => netns.path().display().fmt(f),
            Self::Missing { .. } => Ok(()),
        }
    }
}

/// The cookie of the namespace that a socket belongs to.
fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has room for the 8 bytes that `len` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The node's own network namespace, for a process of the node or one in a container that shares the node's PIDs. That of
/// process 1, unless our parent's is not ours: the parent is then the container's runtime, which is of the node, and the node
/// may itself be a namespace of a larger machine, whose process 1 is elsewhere.
pub fn of_the_node() -> PathBuf {
    let parent = rustix::process::getppid().map(|pid| format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
    let identity = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.dev(), file.ino()))
    };
    choose(parent.map(PathBuf::from), identity)
}

fn choose<I: PartialEq>(parent: Option<PathBuf>, identity: impl Fn(&Path) -> Option<I>) -> PathBuf {
    let own = identity(Path::new("/proc/self/ns/net"));
    let is_another = |path: &PathBuf| identity(path).is_some_and(|found| Some(found) != own);
    parent
        .filter(is_another)
        .unwrap_or_else(|| "/proc/1/ns/net".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_where_a_containers_runtime_is() {
        let parent = || Some(PathBuf::from("/proc/7/ns/net"));
        let with = |of_parent: Option<u32>| {
            move |path: &Path| match path.to_str() {
                Some("/proc/self/ns/net") => Some(1),
                _ => of_parent,
            }
        };
        assert_eq!(
            choose(parent(), with(Some(2))),
            Path::new("/proc/7/ns/net"),
            "a container"
        );
        assert_eq!(
            choose(parent(), with(Some(1))),
            Path::new("/proc/1/ns/net"),
            "started by a shell"
        );
        assert_eq!(
            choose(parent(), with(None)),
            Path::new("/proc/1/ns/net"),
            "hidden"
        );
        assert_eq!(
            choose(None, with(Some(2))),
            Path::new("/proc/1/ns/net"),
            "PIDs of its own"
        );
    }
}

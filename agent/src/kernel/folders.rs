//! The kernel tells when folders appear or go: a pod's cgroup is known a moment after it was made, long before anything runs
//! in it. A hint, nothing more: everything is looked at again now and then in any case.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Folders that are watched. There is one for each class of each kubelet.
const MOST_WATCHED: usize = 256;

/// Which folders are watched.
pub struct FolderChanges {
    inotify: AsyncFd<OwnedFd>,
    watched: BTreeMap<PathBuf, i32>,
}

impl FolderChanges {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the user has as many of them as is allowed, and outside of a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            // SAFETY: the file is owned by what is registered, and nobody closes or replaces it while that is.
            inotify: unsafe { AsyncFd::register(inotify) }?,
            watched: BTreeMap::new(),
        })
    }

    /// Watches these folders, and whether one of them is new. One that is not there any more is forgotten.
    pub fn watch<'a>(&mut self, folders: impl Iterator<Item = &'a Path>) -> bool {
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let mut watched = BTreeMap::new();
        let mut any_new = false;
        for folder in folders.take(MOST_WATCHED) {
            // A folder that was made anew has another number, and one that is watched already the same.
            if let Ok(number) = inotify::add_watch(&self.inotify, folder, flags) {
                any_new |= self.watched.get(folder) != Some(&number);
                watched.insert(folder.to_owned(), number);
            }
        }
        for (folder, number) in &self.watched {
            if watched.get(folder) != Some(number) && !watched.values().any(|it| it == number) {
                // Gone with its folder, as a rule.
                let _ = inotify::remove_watch(&self.inotify, *number);
            }
        }
        self.watched = watched;
        any_new
    }

    /// Waits until something has changed.
    pub async fn next(&mut self) {
        loop {
            let Ok(mut ready) = self.inotify.readable_mut().await else {
                return std::future::pending().await;
            };
            let mut buffer = [MaybeUninit::uninit(); 4_096];
            let mut any = false;
            while let Ok(read) = rustix::io::read(ready.get_inner(), &mut buffer) {
                any |= !read.0.is_empty();
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }
}

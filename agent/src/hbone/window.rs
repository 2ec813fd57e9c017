//! The window of a whole tunnel, which grows by what its streams hold.
//!
//! A stream takes all that arrives for it and acknowledges what its app has taken. What a stopped app leaves unread stays
//! off the tunnel's window, and a few of those would stop every other stream. So the window is opened by as much as is
//! unread, up to a bound. Used by both ends: streams count (`stream`), the tunnel's task opens (`pool`, `server`).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{Settings, buffers::Growth};

/// What the streams of a tunnel have taken and not acknowledged. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// One stream's part, of nothing yet.
    pub(super) fn part(&self) -> Part {
        Part {
            all: self.clone(),
            bytes: 0,
        }
    }
}

/// What one stream has taken and not acknowledged; forgotten when it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    all: Unread,
    bytes: usize,
}

impl Part {
    pub(super) fn taken(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.0.fetch_add(bytes, Relaxed);
    }

    pub(super) fn acknowledged(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.acknowledged(self.bytes);
    }
}

/// The window is changed in steps of this.
const STEP: usize = 1 << 20;

/// How far a tunnel is open.
#[derive(Debug)]
pub(super) struct Window {
    unread: Unread,
    growth: Growth,
    least: u32,
    most: u32,
    now: u32,
}

impl Window {
    pub(super) fn new(unread: Unread, growth: Growth, settings: &Settings) -> Self {
        let least = growth.window(settings);
        Self {
            unread,
            growth,
            least,
            most: settings.connection_window_most,
            now: least,
        }
    }

    /// What the window is to be from now on, when that is another than before. The tunnel's task asks whenever it runs,
    /// so also before it takes in more: what it does not know of yet is one turn's bytes, far below the least window.
    pub(super) fn change(&mut self) -> Option<u32> {
        let unread = self.unread.0.load(Relaxed) / STEP * STEP;
        let most = self.most.saturating_sub(self.least) as usize;
        let grown = self.growth.resize(unread.min(most));
        let next = self
            .least
            .saturating_add(u32::try_from(grown).unwrap_or(u32::MAX));
        (next != self.now).then(|| {
            self.now = next;
            next
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{
        super::{Buffers, Pair},
        *,
    };

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const PAIR: Pair = (HERE, HERE);

    #[test]
    fn it_opens_by_what_is_unread_up_to_its_bound_and_closes_again() {
        let settings = Settings::default();
        let (least, most) = (settings.connection_window, settings.connection_window_most);
        let unread = Unread::default();
        let growth = Buffers::new(1 << 30, 1 << 30).tunnel(PAIR);
        let mut window = Window::new(unread.clone(), growth, &settings);
        assert_eq!(window.change(), None);
        let (mut one, mut other) = (unread.part(), unread.part());
        one.taken(STEP - 1);
        assert_eq!(window.change(), None);
        other.taken(3 * STEP);
        assert_eq!(window.change(), Some(least + 3 * STEP as u32));
        assert_eq!(window.change(), None);
        one.taken(usize::MAX / 4);
        assert_eq!(window.change(), Some(most));
        drop(one);
        assert_eq!(window.change(), Some(least + 3 * STEP as u32));
        other.acknowledged(5 * STEP);
        assert_eq!(window.change(), Some(least));
    }
}

//! How much a task does in one turn. A worker serves many connections one after the other: alone, a bulk stream is fastest in
//! large pieces; but whoever else the worker has waits for the whole of each, on every hop. So pieces are small while others
//! talk, and grow once nobody has for a while.

use std::{cell::Cell, task::Context, task::Poll};

use tokio::task::coop::poll_proceed;

/// A piece while others talk.
const SHARED: usize = 64 * 1024;
/// Bulk reads without a word of anybody else after which a stream counts as alone: some MiB.
const PATIENCE: u32 = 64;
/// What tokio gives a task for one turn, in units of its own.
const BUDGET: usize = 128;
/// What one unit is worth while the stream is alone, so that one turn is half a MiB: otherwise one turn of a tunnel could take
/// in whatever the kernel holds for it, and no stream would read before it is all there (see `hbone::settings`).
const UNIT: usize = 4 * 1024;

thread_local! {
    /// Bulk reads of this worker since somebody else has talked.
    static BULK_READS: Cell<u32> = const { Cell::new(0) };
}

/// A connection that has carried so much one way is a bulk stream, as long as it sends more than messages.
pub(crate) const BULK: u64 = 10 << 20;
/// A message.
const MESSAGE: usize = 1024;

/// So much has arrived on a connection, of so much in all. Answers whether it is a bulk stream's.
pub(crate) fn arrived(bytes: usize, total: u64) -> bool {
    let is_bulk = total >= BULK && bytes > MESSAGE;
    if !is_bulk {
        BULK_READS.set(0);
    }
    is_bulk
}

fn is_alone() -> bool {
    BULK_READS.get() >= PATIENCE
}

/// How much a bulk stream takes at a time that would take `alone` if it were alone.
pub(crate) fn piece(alone: usize) -> usize {
    if is_alone() { alone } else { alone.min(SHARED) }
}

/// A bulk stream has taken so many bytes: its turn is the sooner over.
pub(crate) fn took(cx: &mut Context<'_>, bytes: usize) {
    BULK_READS.set(BULK_READS.get().saturating_add(1));
    let unit = if is_alone() { UNIT } else { SHARED / BUDGET };
    for _ in 0..bytes / unit {
        match poll_proceed(cx) {
            Poll::Ready(unit) => unit.made_progress(),
            Poll::Pending => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_until_nobody_else_has_talked_for_a_while() {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(!arrived(64, 64));
        for _ in 0..PATIENCE {
            assert_eq!(piece(1 << 20), SHARED);
            took(cx, SHARED);
        }
        assert_eq!(piece(1 << 20), 1 << 20);
        assert_eq!(piece(1024), 1024);
        // Nor is a stream that has carried much alone while it sends messages.
        assert!(arrived(1 << 20, BULK) && !arrived(64, BULK));
        assert_eq!((piece(1 << 20), piece(1024)), (SHARED, 1024));
    }
}

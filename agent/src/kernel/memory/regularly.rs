//! When memory is given back that was needed once: by the start, or by a burst of connections that is over. Each role has a task
//! for it.

use std::time::Duration;

use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{configure, give_back, give_back_end, resident};

/// Between two looks, and before the first one.
const LOOK: Duration = Duration::from_secs(5);
/// What must have been added for it to be worth the work, in bytes.
const GROWN: u64 = 4 << 20;

/// Gives memory back for as long as it is polled. `on_each_thread` runs a function on each thread that carries traffic, since each
/// of them has a heap of its own.
pub async fn give_back_regularly(on_each_thread: impl Fn(fn())) {
    configure();
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut least = None;
    loop {
        looks.tick().await;
        if is_due(&mut least, resident()) {
            on_each_thread(give_back_end);
            // Fails when the role ends.
            if spawn_blocking(give_back).await.is_err() {
                return;
            }
            least = resident();
        }
    }
}

/// Whether there is something to give back now: after the start, and when memory has grown. If what was added is in use it
/// stays, and is not asked for again until there is more. `least` is what was resident after memory was given back last.
fn is_due(least: &mut Option<u64>, resident: Option<u64>) -> bool {
    let (Some(before), Some(now)) = (*least, resident) else {
        return true;
    };
    *least = Some(before.min(now));
    now > before + GROWN
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_given_back_once_after_the_start_and_whenever_it_has_grown() {
        let mut least = None;
        let mut due = |mib: u64| super::is_due(&mut least, Some(mib << 20));
        assert!(due(20));
        let mut least = Some(10 << 20);
        let mut due = |mib: u64| super::is_due(&mut least, Some(mib << 20));
        assert!(!due(13) && due(15));
        // All of it is in use.
        let mut least = Some(15 << 20);
        let mut due = |mib: u64| super::is_due(&mut least, Some(mib << 20));
        assert!(!due(15) && !due(19) && due(20));
        // It shrinks by itself, and grows again.
        assert!(!due(12) && due(17));
    }
}

//! When memory is given back that was needed once: by the start, or by a burst of connections that is over. Each role has a task
//! for it.

use std::time::Duration;

use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{configure, free, give_back, give_back_end, resident};

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
        if is_due(&mut least, Held::now()) {
            on_each_thread(give_back_end);
            // Fails when the role ends.
            if spawn_blocking(give_back).await.is_err() {
                return;
            }
            least = Held::now();
        }
    }
}

/// What this process has in memory, and what of its heap is free, in bytes.
#[derive(Clone, Copy)]
struct Held {
    resident: u64,
    free: u64,
}

impl Held {
    fn now() -> Option<Self> {
        let (resident, free) = (resident()?, free());
        Some(Self { resident, free })
    }
}

/// Whether there is something to give back now: after the start; when memory has grown; and when much has become free, as after
/// a burst that lasted longer than the last look. What is in use stays, and is not asked for again until there is more. `least`
/// is what was held after memory was given back last: the heap counts as free also what it has given back.
fn is_due(least: &mut Option<Held>, held: Option<Held>) -> bool {
    let (Some(before), Some(now)) = (*least, held) else {
        return true;
    };
    *least = Some(Held {
        resident: before.resident.min(now.resident),
        free: before.free.min(now.free),
    });
    now.resident > before.resident + GROWN || now.free > before.free + GROWN
}

#[cfg(test)]
mod tests {
    use super::Held;

    fn held(resident: u64, free: u64) -> Option<Held> {
        let [resident, free] = [resident, free].map(|mib| mib << 20);
        Some(Held { resident, free })
    }

    #[test]
    fn it_is_given_back_once_after_the_start_and_whenever_it_has_grown() {
        let mut least = None;
        assert!(super::is_due(&mut least, held(20, 0)));
        let mut least = held(10, 0);
        let mut due = |mib| super::is_due(&mut least, held(mib, 0));
        assert!(!due(13) && due(15));
        // All of it is in use.
        let mut least = held(15, 0);
        let mut due = |mib| super::is_due(&mut least, held(mib, 0));
        assert!(!due(15) && !due(19) && due(20));
        // It shrinks by itself, and grows again.
        assert!(!due(12) && due(17));
    }

    #[test]
    fn what_a_burst_leaves_is_given_back_after_a_look_that_saw_it_in_use() {
        let mut least = held(60, 2);
        let mut due = |free| super::is_due(&mut least, held(60, free));
        assert!(!due(2) && !due(6) && due(45));
        // What was given back stays free, and is not given back again.
        let mut least = held(15, 45);
        let mut due = |free| super::is_due(&mut least, held(15, free));
        assert!(!due(45) && !due(20) && due(25));
    }
}

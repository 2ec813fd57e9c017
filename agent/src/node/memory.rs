//! When memory is given back that was needed once: by the start, or by a burst of connections that is over.

use crate::{
    kernel::memory::{configure, give_back, give_back_end, resident},
    net::lanes::Lanes,
};

/// Turns of the control loop, about a second each, between two looks.
const TURNS: u32 = 5;
/// What must have been added for it to be worth the work, in bytes.
const GROWN: u64 = 4 << 20;

/// When to give back. The control loop tells it that another turn has come.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The workers' threads, each of which has a heap of its own.
    threads: Vec<Lanes>,
    turns: u32,
    /// What was resident after memory was given back last; none at the start.
    least: Option<u64>,
}

impl Memory {
    /// Of an agent with these workers.
    pub(super) fn new(threads: Vec<Lanes>) -> Self {
        configure();
        Self {
            threads,
            ..Self::default()
        }
    }

    /// One turn of the control loop.
    pub(super) fn turn(&mut self) {
        if self.is_due(resident) {
            self.threads.iter().for_each(|lanes| lanes.on_each(give_back_end));
            give_back();
            self.least = resident();
        }
    }

    /// Whether there is something to give back now: after the start, and when memory has grown. If what was added is in use it
    /// stays, and is not asked for again until there is more.
    fn is_due(&mut self, resident: impl Fn() -> Option<u64>) -> bool {
        self.turns += 1;
        if self.turns < TURNS {
            return false;
        }
        self.turns = 0;
        let (Some(least), Some(now)) = (self.least, resident()) else {
            return true;
        };
        self.least = Some(least.min(now));
        now > least + GROWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(memory: &mut Memory, resident: u64) -> bool {
        (0..TURNS).any(|_| memory.is_due(|| Some(resident << 20)))
    }

    #[test]
    fn it_is_given_back_once_after_the_start_and_whenever_it_has_grown() {
        let mut memory = Memory::default();
        assert!(!memory.is_due(|| Some(0)), "the start is not over");
        assert!(due(&mut memory, 20));
        memory.least = Some(10 << 20);
        assert!(!due(&mut memory, 13));
        assert!(due(&mut memory, 15));
        // All of it is in use.
        memory.least = Some(15 << 20);
        assert!(!due(&mut memory, 15) && !due(&mut memory, 19) && due(&mut memory, 20));
        // It shrinks by itself, and grows again.
        memory.least = Some(20 << 20);
        assert!(!due(&mut memory, 12) && due(&mut memory, 17));
    }
}

//! Gives back what was needed once: the pages of the program that only its start ran, and the heap of a burst of connections
//! that is over.

use std::{ffi::c_int, fs};

/// Turns of the control loop, about a second each, between two looks.
const TURNS: u32 = 5;
/// What must have been added for it to be worth the work, in bytes.
const GROWN: u64 = 4 << 20;

/// When to give back. The control loop tells it that another turn has come.
#[derive(Debug, Default)]
pub(super) struct Memory {
    turns: u32,
    /// What was resident after memory was given back last; none at the start.
    least: Option<u64>,
}

impl Memory {
    /// One turn of the control loop.
    pub(super) fn turn(&mut self) {
        if self.is_due(resident) {
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

/// What this process has in memory, in bytes (proc(5): statm). `None` where /proc is not there.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

fn page_size() -> u64 {
    // SAFETY: no more than a question.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
        .max(1)
        .cast_unsigned()
}

/// The heap's free pages to the kernel, and the program's own pages to the page cache, from where they come back as they are
/// used: without a read, while the file is cached.
fn give_back() {
    // SAFETY: both are calls without conditions; the callback below takes nothing from outside.
    unsafe {
        libc::malloc_trim(0);
        libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut());
    }
}

/// Forgets the pages of one object's segments that nobody may write: they are those of its file.
///
/// # Safety
/// For `dl_iterate_phdr` alone.
unsafe extern "C" fn unmap(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut libc::c_void) -> c_int {
    // SAFETY: the C library gives a valid description of an object that is loaded.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        let count = usize::from(info.dlpi_phnum);
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, count))
    };
    let segments = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    // SAFETY: no more than a question.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
        .max(1)
        .cast_unsigned();
    for segment in segments {
        let first = (base + segment.p_vaddr) / page * page;
        let end = (base + segment.p_vaddr + segment.p_memsz) / page * page;
        if first < end {
            // SAFETY: a segment of a file that is mapped and never written: its pages can be had again at any time. The last
            // one is left alone, since it may be shared with what follows.
            unsafe { libc::madvise(first as *mut _, (end - first) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
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

    #[test]
    fn this_process_is_resident() {
        assert!(resident().unwrap() > 1 << 20);
    }

    #[test]
    fn the_programs_own_pages_come_back() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
        // The rest of the test is run from pages that were given back.
        assert_eq!((0..1000).map(|n| format!("{n}").len()).sum::<usize>(), 2890);
    }
}

//! Gives back what was needed once: the pages of the program that only its start ran, and the heap of a burst of connections
//! that is over.

use std::ffi::c_int;

/// After the start, or since a burst is over, for how many turns of the control loop nothing may have happened.
const QUIET_TURNS: u32 = 5;
/// A burst has at least so many connections; memory for fewer is not worth the work.
const BURST: usize = 64;

/// When to give back. The control loop tells it, about once a second, how many connections are open.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The most connections since memory was given back last; none at the start.
    most: Option<usize>,
    quiet: u32,
}

impl Memory {
    /// One turn of the control loop.
    pub(super) fn turn(&mut self, open: usize) {
        if self.is_due(open) {
            give_back();
        }
    }

    /// Whether there is something to give back now: after the start, and when half of a burst's connections have ended.
    fn is_due(&mut self, open: usize) -> bool {
        let most = self.most.map(|most| most.max(open));
        let over = most.is_none_or(|most| most >= BURST && open <= most / 2);
        self.quiet = if over { self.quiet + 1 } else { 0 };
        if self.quiet < QUIET_TURNS {
            self.most = most;
            return false;
        }
        self.quiet = 0;
        self.most = Some(open);
        true
    }
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

    fn turns(memory: &mut Memory, open: usize, count: u32) -> Vec<bool> {
        (0..count).map(|_| memory.is_due(open)).collect()
    }

    #[test]
    fn it_is_given_back_once_after_the_start_and_once_after_each_burst() {
        let mut memory = Memory::default();
        assert_eq!(
            turns(&mut memory, 0, 6),
            [false, false, false, false, true, false]
        );
        assert!(!turns(&mut memory, 0, 100).contains(&true));
        assert!(
            !turns(&mut memory, 1000, 100).contains(&true),
            "they are still there"
        );
        assert!(!turns(&mut memory, 600, 100).contains(&true), "most of them");
        assert_eq!(
            turns(&mut memory, 500, 6),
            [false, false, false, false, true, false]
        );
        assert!(!turns(&mut memory, 500, 100).contains(&true));
        assert_eq!(
            turns(&mut memory, 3, 6),
            [false, false, false, false, true, false]
        );
        assert!(!turns(&mut memory, 2, 100).contains(&true));
    }

    #[test]
    fn a_burst_that_comes_back_is_not_over() {
        let mut memory = Memory::default();
        turns(&mut memory, 1000, 6);
        for _ in 0..20 {
            assert!(!turns(&mut memory, 10, 4).contains(&true));
            assert!(!turns(&mut memory, 900, 1).contains(&true));
        }
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

//! This process's own memory: how much there is, and giving back what is not in use: free pages of the heap, and pages of the
//! program that only its start ran.

use std::{ffi::c_int, fs};

/// What this process has in memory, in bytes (proc(5): statm). `None` where /proc is not there.
pub fn resident() -> Option<u64> {
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
pub fn give_back() {
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

    #[test]
    fn this_process_is_resident() {
        assert!(resident().unwrap() > 1 << 20);
    }

    #[test]
    fn the_programs_own_pages_come_back() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
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

//! This process's own memory: how much there is, and giving back what is not in use: free pages of the heap, and pages of the
//! program that only its start ran.

mod regularly;

use std::{
    ffi::c_int,
    fs,
    hint::black_box,
    sync::{Mutex, PoisonError},
};

pub use regularly::give_back_regularly;

/// What is allocated from the heap, and not from the kernel each time. glibc would learn it, up to 32 MiB, from what is freed; but
/// it learns no more once the other bound has been set. The largest buffers, of some 512 KiB, come and go with bulk streams.
const FROM_HEAP: c_int = 4 << 20;
/// How much of the end of a thread's heap may be free before it is given back at once.
const END: c_int = 2 * FROM_HEAP;
/// The same, in [`give_back_end`].
const LITTLE: c_int = 64 << 10;
/// More than this looks at the end when it is freed (glibc: FASTBIN_CONSOLIDATION_THRESHOLD).
const LARGE: usize = 2 * LITTLE as usize;

/// Whoever sets the bound and frees.
static BOUND: Mutex<()> = Mutex::new(());

/// Sets when the heap gives memory back by itself. For the start.
pub fn configure() {
    // SAFETY: these set numbers, and take any.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_HEAP);
        libc::mallopt(libc::M_TRIM_THRESHOLD, END);
    }
}

/// The free end of the calling thread's heap to the kernel: `malloc_trim` leaves it alone in every heap but the first.
pub fn give_back_end() {
    let _alone = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the numbers are as above; the block is freed once and never used.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, LITTLE);
        libc::free(black_box(libc::malloc(LARGE)));
        libc::mallopt(libc::M_TRIM_THRESHOLD, END);
    }
}

/// What this process has in memory, in bytes (proc(5): statm). `None` where /proc is not there.
pub fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

/// What of the heaps of all threads is free, in bytes; what was given back is among it.
pub fn free() -> u64 {
    // SAFETY: it only asks.
    let heaps = unsafe { libc::mallinfo2() };
    (heaps.fordblks + heaps.fsmblks) as u64
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

    /// In KiB (proc(5): status).
    fn status(field: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_gives_back_the_end_of_its_heap() {
        configure();
        std::thread::spawn(|| {
            let mut buffers: Vec<_> = (0..6).map(|n| vec![n; 1 << 20]).collect();
            let (full, last) = (
                status("RssAnon:"),
                buffers.drain(..).map(|it| it.len()).sum::<usize>(),
            );
            give_back();
            let kept = status("RssAnon:");
            give_back_end();
            let given = status("RssAnon:");
            assert!(
                last == 6 << 20 && given + 4096 < full,
                "{full} KiB, {kept} and {given} KiB"
            );
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_programs_own_pages_come_back() {
        let before = status("RssFile:");
        give_back();
        let after = status("RssFile:");
        assert!(after < before, "{before} KiB before, {after} KiB after");
        // The rest of the test is run from pages that were given back.
        assert_eq!((0..1000).map(|n| format!("{n}").len()).sum::<usize>(), 2890);
    }
}

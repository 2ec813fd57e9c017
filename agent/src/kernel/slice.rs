//! Short slices for the threads that carry traffic. A message passes four threads of two agents; where more wants to run than
//! there are cores, each of them waits for whoever runs there to use up its slice: some 3 ms by default. A thread that asks for
//! shorter slices gets no more time than before, but gets it sooner (EEVDF, Linux 6.12; older kernels ignore it).

use std::io;

/// In nanoseconds: the shortest that the kernel takes.
const SLICE: u64 = 100_000;

/// Asks for it, for the calling thread.
///
/// # Errors
/// The kernel's or a seccomp filter's refusal. Nothing but speed depends on it.
pub fn shorten() -> io::Result<()> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: plain numbers, of which zero is a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `size` bytes, and only for this thread (0).
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) })?;
    // What an administrator has chosen stays: another class, or a slice.
    if attr.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    attr.sched_runtime = SLICE;
    // SAFETY: the kernel reads what `attr.size`, which it has written itself, says.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

fn done(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_takes_it() {
        super::shorten().unwrap();
        super::shorten().unwrap();
    }
}

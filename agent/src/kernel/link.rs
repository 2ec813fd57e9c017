//! Pinned links: attached once, kept over restarts, given a new program without a gap.
//!
//! aya can pin a link but not replace the program under one (it has BPF_LINK_UPDATE for XDP and TC only), and it detaches none that is pinned, so those
//! calls are made here.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::programs::links::FdLink;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` that BPF_OBJ_GET reads.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that BPF_LINK_UPDATE reads.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that BPF_LINK_DETACH reads.
#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// Puts `program` under the link that is pinned at `path`. New connections meet the new program at once; none is lost.
///
/// # Errors
/// ENOLINK when what the link was attached to is gone, and those of bpf(2).
pub fn replace_program(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_pinned(path)?;
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Pins a link and lets go of it: from here on the pin alone keeps it.
///
/// # Errors
/// When bpffs refuses, for instance because the name is taken.
pub fn pin(link: FdLink, path: &Path) -> io::Result<()> {
    link.pin(path).map(drop).map_err(io::Error::other)
}

/// Detaches a link and takes its pin away. One that is gone already is fine. Without its pin the link would go as well, but
/// only some time later: the kernel leaves that to a worker.
///
/// # Errors
/// Those of bpf(2) and unlink(2).
pub fn detach(path: &Path) -> io::Result<()> {
    match open_pinned(path) {
        Ok(link) => {
            let attr = LinkDetach {
                link_fd: link.as_raw_fd() as u32,
            };
            bpf(BPF_LINK_DETACH, &attr)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    unpin(path)
}

/// Takes a pin away. One that is gone already is fine.
///
/// # Errors
/// Those of unlink(2).
pub fn unpin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet {
        pathname: name.as_ptr() as u64,
        ..ObjGet::default()
    };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the prefix of `union bpf_attr` that `command` reads, and its size is said.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// Whether the file system at `path` is bpffs.
///
/// # Errors
/// When there is nothing at `path`.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let file = fs::File::open(path)?;
    Ok(rustix::fs::fstatfs(file.as_fd())?.f_type as u64 == BPF_FS_MAGIC)
}

//! Loads the programs, attaches them at the cgroup and pins everything; or adopts what an earlier agent pinned.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramInfo, SkLookup, SockOps,
        links::FdLink,
    },
};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::{
    link,
    maps::{Maps, NAMES, SocketStates},
    preflight::{self, PreflightError},
};

/// The programs that are attached to the cgroup, in the order of a connection's life.
const CGROUP_PROGRAMS: [&str; 5] = [
    "weft_connect4",
    "weft_connect6",
    "weft_sockops",
    "weft_getpeername4",
    "weft_getpeername6",
];
/// The program that is attached to each pod's network namespace.
const LOOKUP_PROGRAM: &str = "weft_sk_lookup";
/// Pins of links to the cgroup: the program and the cgroup's id, which is its inode number.
const LINK_PREFIX: &str = "link-";
/// Pins of `sk_lookup` links are named by the netns cookie, so that the next agent knows whose they are.
const LOOKUP_PREFIX: &str = "lookup-";

/// Why the programs could not be brought to work.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The machine does not offer what is needed.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// Another agent owns the pins.
    #[error("another weft agent uses {0}: two agents on one node need different --pin-dir and --cgroup-root")]
    Busy(PathBuf),
    /// The object or its maps.
    #[error(
        "load the eBPF object with its maps pinned in {pin_dir} (pins of another version? stop the agent and remove them)"
    )]
    Object {
        /// Where the maps are pinned.
        pin_dir: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// One program.
    #[error("load or attach program {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why; the verifier's log is in it.
        source: Box<ProgramError>,
    },
    /// A link's pin.
    #[error("open, pin or replace {0}")]
    Link(PathBuf, #[source] io::Error),
    /// A map that does not fit.
    #[error("open the maps pinned in {pin_dir} (pins of another version? stop the agent and remove them)")]
    Maps {
        /// Where the maps are pinned.
        pin_dir: PathBuf,
        /// Why.
        source: Box<MapError>,
    },
    /// The cgroup to attach at.
    #[error("open the cgroup {0}")]
    Cgroup(PathBuf, #[source] io::Error),
}

/// Where to attach and pin.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The cgroup2 folder whose processes are hooked; `None` for the root of cgroup2.
    pub cgroup_root: Option<PathBuf>,
    /// The folder on bpffs for the pins.
    pub pin_dir: PathBuf,
}

/// The loaded programs. Dropping it leaves everything attached and pinned.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    cgroup_root: PathBuf,
    pin_dir: PathBuf,
    /// Held for as long as this agent writes the maps.
    _lock: File,
}

/// A program that is attached.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its name.
    pub name: &'static str,
    /// The kernel's type of it.
    pub kind: &'static str,
    /// Where: the cgroup, or the pods' network namespaces.
    pub to: String,
    /// The kernel's id of it.
    pub id: u32,
}

impl Kernel {
    /// Checks the machine, takes the lock, loads the programs and attaches them, or puts them under links that are
    /// pinned already.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn load(config: LoadConfig) -> Result<Self, LoadError> {
        preflight::check()?;
        let cgroup_root = preflight::cgroup_root(config.cgroup_root.as_deref())?;
        let pin_dir = config.pin_dir;
        preflight::pin_dir(&pin_dir)?;
        let lock = lock(&pin_dir)?;
        let ebpf = load_object(super::object(), &pin_dir)?;
        let mut kernel = Self {
            ebpf,
            cgroup_root,
            pin_dir,
            _lock: lock,
        };
        kernel.load_programs()?;
        kernel.attach_to_cgroup()?;
        kernel.replace_lookups()?;
        Ok(kernel)
    }

    /// The maps that enrolment writes.
    ///
    /// # Errors
    /// When a pinned map has another layout.
    pub fn maps(&self) -> Result<Maps, LoadError> {
        Maps::open(&self.pin_dir).map_err(|source| self.map_error(source))
    }

    /// A handle to socket states; each worker has its own.
    ///
    /// # Errors
    /// When the pinned map has another layout.
    pub fn socket_states(&self) -> Result<SocketStates, LoadError> {
        SocketStates::open(&self.pin_dir).map_err(|source| self.map_error(source))
    }

    fn map_error(&self, source: MapError) -> LoadError {
        LoadError::Maps {
            pin_dir: self.pin_dir.clone(),
            source: Box::new(source),
        }
    }

    /// What is attached, for `weft status`.
    pub fn attached(&self) -> Vec<Attached> {
        let cgroup = self.cgroup_root.display().to_string();
        let one = |name: &'static str, to: String| {
            let program = self.ebpf.program(name);
            let id = program
                .and_then(|program| program.info().ok())
                .map_or(0, |info| info.id());
            let kind = match program {
                Some(Program::CgroupSockAddr(_)) => "cgroup_sock_addr",
                Some(Program::SockOps(_)) => "sock_ops",
                Some(Program::SkLookup(_)) => "sk_lookup",
                _ => "unknown",
            };
            Attached { name, kind, to, id }
        };
        let mut attached: Vec<_> = CGROUP_PROGRAMS.map(|name| one(name, cgroup.clone())).into();
        attached.push(one(LOOKUP_PROGRAM, "captured pods".to_owned()));
        attached
    }

    /// Attaches `sk_lookup` to a pod's namespace, unless it is attached already.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn attach_lookup(&mut self, cookie: u64, netns: BorrowedFd<'_>) -> Result<(), LoadError> {
        let pin = self.lookup_pin(cookie);
        if pin.exists() {
            return Ok(());
        }
        let program: &mut SkLookup = self.program(LOOKUP_PROGRAM)?;
        let link = program.attach(netns).and_then(|id| program.take_link(id));
        let link: FdLink = link
            .map_err(|source| program_error(LOOKUP_PROGRAM, source))?
            .into();
        link::pin(link, &pin).map_err(|source| LoadError::Link(pin, source))
    }

    /// Detaches `sk_lookup` from a pod's namespace.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_lookup(&self, cookie: u64) -> Result<(), LoadError> {
        let pin = self.lookup_pin(cookie);
        link::unpin(&pin).map_err(|source| LoadError::Link(pin, source))
    }

    /// The netns cookies of the pods that `sk_lookup` is attached to, of this agent or an earlier one.
    pub fn lookups(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.pin_dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(LOOKUP_PREFIX)?
                    .parse()
                    .ok()
            })
            .collect()
    }

    /// Gives the decision log of debug programs to `tracing`; returns what must be polled, or nothing in release builds.
    pub fn decision_log(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        if cfg!(debug_assertions) {
            aya_log::EbpfLogger::init(&mut self.ebpf).ok()
        } else {
            None
        }
    }

    fn lookup_pin(&self, cookie: u64) -> PathBuf {
        self.pin_dir.join(format!("{LOOKUP_PREFIX}{cookie}"))
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
        program
            .and_then(TryInto::try_into)
            .map_err(|source| program_error(name, source))
    }

    fn load_programs(&mut self) -> Result<(), LoadError> {
        for name in CGROUP_PROGRAMS.into_iter().chain([LOOKUP_PROGRAM]) {
            let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
            program
                .and_then(load_program)
                .map_err(|source| program_error(name, source))?;
        }
        Ok(())
    }

    fn attach_to_cgroup(&mut self) -> Result<(), LoadError> {
        let cgroup = File::open(&self.cgroup_root)
            .map_err(|source| LoadError::Cgroup(self.cgroup_root.clone(), source))?;
        let metadata = cgroup
            .metadata()
            .map_err(|source| LoadError::Cgroup(self.cgroup_root.clone(), source))?;
        let pin_of = |name: &str| format!("{LINK_PREFIX}{name}@{}", metadata.ino());
        for name in CGROUP_PROGRAMS {
            let pin = self.pin_dir.join(pin_of(name));
            if pin.exists() {
                self.replace(name, &pin)?;
                continue;
            }
            let link = self.attach_one(name, &cgroup)?;
            link::pin(link, &pin).map_err(|source| LoadError::Link(pin, source))?;
        }
        self.unpin_links_of_other_cgroups(&CGROUP_PROGRAMS.map(pin_of))
    }

    /// An earlier agent may have been attached to another cgroup. Its links go once ours are there.
    fn unpin_links_of_other_cgroups(&self, ours: &[String]) -> Result<(), LoadError> {
        for entry in fs::read_dir(&self.pin_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(LINK_PREFIX) && !ours.contains(&name) {
                link::unpin(&entry.path()).map_err(|source| LoadError::Link(entry.path(), source))?;
            }
        }
        Ok(())
    }

    fn attach_one(&mut self, name: &'static str, cgroup: &File) -> Result<FdLink, LoadError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
        let link = program.and_then(|program| match program {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(cgroup, CgroupAttachMode::Single)?;
                program.take_link(id).map(FdLink::try_from)
            }
            Program::SockOps(program) => {
                let id = program.attach(cgroup, CgroupAttachMode::Single)?;
                program.take_link(id).map(FdLink::try_from)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        });
        link.map_err(|source| program_error(name, source))?
            .map_err(|source| LoadError::Link(self.cgroup_root.clone(), io::Error::other(source)))
    }

    /// Puts the new `sk_lookup` under every link that an earlier agent left. A pod that is gone takes its link along.
    fn replace_lookups(&mut self) -> Result<(), LoadError> {
        for cookie in self.lookups() {
            let pin = self.lookup_pin(cookie);
            match self.replace(LOOKUP_PROGRAM, &pin) {
                Err(LoadError::Link(_, error)) if error.raw_os_error() == Some(libc::ENOLINK) => {
                    link::unpin(&pin).map_err(|source| LoadError::Link(pin, source))?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn replace(&mut self, name: &'static str, pin: &Path) -> Result<(), LoadError> {
        let program = self.ebpf.program(name).ok_or(ProgramError::NotLoaded);
        let fd = program
            .and_then(|program| program.fd())
            .map_err(|source| program_error(name, source))?;
        link::replace_program(pin, fd.as_fd()).map_err(|source| LoadError::Link(pin.to_owned(), source))
    }
}

/// One writer of the maps at a time. A lock on the folder itself: bpffs holds no plain files.
fn lock(pin_dir: &Path) -> Result<File, LoadError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => LoadError::Busy(pin_dir.to_owned()),
        _ => LoadError::Link(pin_dir.to_owned(), source),
    };
    let folder = File::open(pin_dir).map_err(failed)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
    Ok(folder)
}

fn load_object(object: &[u8], pin_dir: &Path) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for name in NAMES {
        loader.map_pin_path(name, pin_dir.join(name));
    }
    loader.load(object).map_err(|source| LoadError::Object {
        pin_dir: pin_dir.to_owned(),
        source: Box::new(source),
    })
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::SkLookup(program) => SkLookup::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn program_error(program: &'static str, source: ProgramError) -> LoadError {
    LoadError::Program {
        program,
        source: Box::new(source),
    }
}

/// What the verifier said of one program.
#[derive(Debug)]
pub struct Verified {
    /// The program's name.
    pub name: String,
    /// How many instructions the verifier walked through, or why it refused.
    pub result: Result<ProgramInfo, ProgramError>,
}

/// Loads every program of `object` under the verifier, attaches nothing and pins nothing.
///
/// # Errors
/// When the object itself cannot be read or its maps cannot be made.
pub fn verify(object: &[u8]) -> Result<Vec<Verified>, EbpfError> {
    let mut ebpf = EbpfLoader::new().load(object)?;
    let verify = |(name, program): (&str, &mut Program)| Verified {
        name: name.to_owned(),
        result: load_program(program).and_then(|()| program.info()),
    };
    Ok(ebpf.programs_mut().map(verify).collect())
}

//! Loads the programs, attaches them at the cgroup and pins everything; or adopts what an earlier agent pinned.

mod error;

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use agent_common::layout::MAPS;
use aya::{
    Ebpf, EbpfLoader,
    maps::MapError,
    programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps, links::FdLink},
};

pub use self::error::LoadError;
use super::{
    dns::DnsServers,
    link,
    maps::{Maps, SocketStates},
    pins::{DNS_SERVERS, Generation, OWN, Pins},
    preflight,
    takeover::Claim,
    verdicts::{DirectEvents, Verdicts},
};

/// The programs that catch new sockets. Where an earlier agent's are attached, they come last: see [`Kernel::settle`].
const PRODUCERS: [&str; 4] = ["weft_connect4", "weft_connect6", "weft_sendmsg4", "weft_sendmsg6"];
/// The other programs that are attached to the cgroup, in the order of a connection's life.
const CARRIERS: [&str; 5] = [
    "weft_sockops",
    "weft_getpeername4",
    "weft_getpeername6",
    "weft_recvmsg4",
    "weft_recvmsg6",
];
/// The program that is attached to each pod's network namespace.
const LOOKUP_PROGRAM: &str = "weft_sk_lookup";

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
    programs: Programs,
    cgroup_root: PathBuf,
    pins: Pins,
    /// Pods to which an agent of another layout attached its `sk_lookup` after ours.
    overtaken: HashSet<u64>,
    /// The maps of our layout and what is attached with them.
    generation: Generation,
    /// Whether nothing is left of other layouts.
    settled: bool,
    claim: Option<Claim>,
    /// Others leave the generation alone for as long as this process lives.
    _in_use: File,
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
    /// Loads the programs and attaches them, or puts them under links that are pinned already. `claim` is the right to
    /// do that. The machine must have passed [`preflight::check`].
    ///
    /// # Errors
    /// The first step that failed.
    pub fn load(config: &LoadConfig, claim: Claim) -> Result<Self, LoadError> {
        let cgroup_root = preflight::cgroup_root(config.cgroup_root.as_deref())?;
        let pins = Pins::new(config.pin_dir.clone());
        let unusable = |source| LoadError::Link(config.pin_dir.clone(), source);
        pins.sweep().map_err(unusable)?;
        let generation = pins.generation();
        let cgroup = Cgroup::open(&cgroup_root)?;
        let mut programs = if generation.exists() {
            Programs::load(super::object(), &pins, &generation)?
        } else {
            make_generation(&pins, &generation, &cgroup)?
        };
        let settled = pins.foreign().map_err(unusable)?.is_empty();
        // What catches sockets comes last: whatever it steers, and wherever, the others must know.
        programs.attach(&CARRIERS, &generation, &cgroup)?;
        programs.replace_lookups(&generation)?;
        if settled {
            programs.attach(&PRODUCERS, &generation, &cgroup)?;
        }
        let in_use = generation.hold().map_err(unusable)?;
        // Of two programs that are attached to a pod the one that was attached last decides, and that must be ours.
        let overtaken = if settled {
            HashSet::new()
        } else {
            generation.lookups().into_iter().collect()
        };
        let kernel = Self {
            programs,
            cgroup_root,
            pins,
            overtaken,
            generation,
            settled,
            claim: Some(claim),
            _in_use: in_use,
        };
        kernel.unpin_links_of_other_cgroups(&cgroup)?;
        Ok(kernel)
    }

    /// The maps that enrolment writes.
    ///
    /// # Errors
    /// When a pinned map has another layout.
    pub fn maps(&self) -> Result<Maps, LoadError> {
        Maps::open(&self.generation).map_err(|source| self.map_error(source))
    }

    /// The maps of the kernel path.
    ///
    /// # Errors
    /// When a pinned map has another layout.
    pub fn verdicts(&self) -> Result<Verdicts, LoadError> {
        Verdicts::open(&self.generation).map_err(|source| self.map_error(source))
    }

    /// What the programs report of it. One reader at a time.
    ///
    /// # Errors
    /// When the pinned map has another layout.
    pub fn direct_events(&self) -> Result<DirectEvents, LoadError> {
        DirectEvents::open(&self.generation).map_err(|source| self.map_error(source))
    }

    /// The cgroup that the programs are attached to.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// Whether the programs of other layouts are gone: theirs would not know a connection that ours let through.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// A handle to socket states; each worker has its own.
    ///
    /// # Errors
    /// When the pinned map has another layout.
    pub fn socket_states(&self) -> Result<SocketStates, LoadError> {
        SocketStates::open(&self.generation, &self.pins).map_err(|source| self.map_error(source))
    }

    /// The DNS servers that pods ask; each worker has its own handle.
    ///
    /// # Errors
    /// When the pinned map has another layout.
    pub fn dns_servers(&self) -> Result<DnsServers, LoadError> {
        DnsServers::open(&self.pins).map_err(|source| self.map_error(source))
    }

    /// An error of our maps, with where they are.
    pub fn map_error(&self, source: MapError) -> LoadError {
        LoadError::Maps {
            pin_dir: self.pins.path().to_owned(),
            source: Box::new(source),
        }
    }

    /// What is attached, for `weft status`.
    pub fn attached(&self) -> Vec<Attached> {
        let cgroup = self.cgroup_root.display().to_string();
        let one = |name: &'static str, to: String| {
            let program = self.programs.0.program(name);
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
        let to_cgroup = PRODUCERS.into_iter().chain(CARRIERS);
        let mut attached: Vec<_> = to_cgroup.map(|name| one(name, cgroup.clone())).collect();
        attached.push(one(LOOKUP_PROGRAM, "captured pods".to_owned()));
        attached
    }

    /// Attaches `sk_lookup` to a pod's namespace, unless it is attached already.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn attach_lookup(&mut self, cookie: u64, netns: BorrowedFd<'_>) -> Result<(), LoadError> {
        let pin = self.generation.lookup(cookie);
        let first = self.overtaken.remove(&cookie);
        if pin.exists() && !first {
            return Ok(());
        }
        // Pinned aside and renamed, so that the earlier link, if there is one, goes when this one is there.
        let aside = self.generation.unfinished_lookup();
        let failed = |source| LoadError::Link(pin.clone(), source);
        link::detach(&aside).map_err(failed)?;
        link::pin(self.programs.attach_lookup(netns)?, &aside).map_err(failed)?;
        fs::rename(&aside, &pin).map_err(failed)
    }

    /// Detaches `sk_lookup` from a pod's namespace.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_lookup(&self, cookie: u64) -> Result<(), LoadError> {
        // A program of another layout would refuse for a pod that is none of the mesh's any more.
        let others = if self.settled {
            Vec::new()
        } else {
            self.pins.foreign().unwrap_or_default()
        };
        let mut all = others.iter().chain([&self.generation]);
        all.try_for_each(|generation| {
            let pin = generation.lookup(cookie);
            link::detach(&pin).map_err(|source| LoadError::Link(pin, source))
        })
    }

    /// The netns cookies of the pods that `sk_lookup` is attached to, of this agent or an earlier one.
    pub fn lookups(&self) -> Vec<u64> {
        self.generation.lookups()
    }

    /// The netns cookies of the pods that agents of other layouts have captured.
    pub fn foreign_lookups(&self) -> Vec<u64> {
        if self.settled {
            return Vec::new();
        }
        let foreign = self.pins.foreign().unwrap_or_default();
        foreign.iter().flat_map(Generation::lookups).collect()
    }

    /// Takes the place of agents of other layouts, as far as that is possible yet. To be called when every pod is either
    /// among the `captured` or refused by our maps: from here on ours are the programs that catch new sockets. What theirs
    /// have caught goes on until those agents have ended; and until `all` pods are captured, because their programs refuse
    /// for pods that ours are not attached to.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn settle(&mut self, captured: &HashSet<u64>, all: bool) -> Result<(), LoadError> {
        if !self.settled {
            self.displace(captured, all)?;
        }
        // The agent that this one replaces turns to its end now.
        if let Some(claim) = &mut self.claim {
            claim.settle();
        }
        Ok(())
    }

    fn displace(&mut self, captured: &HashSet<u64>, all: bool) -> Result<(), LoadError> {
        let cgroup = Cgroup::open(&self.cgroup_root)?;
        // Both for a moment: the one that is asked second finds the socket steered already, and leaves it.
        self.programs.attach(&PRODUCERS, &self.generation, &cgroup)?;
        let failed = |source| LoadError::Link(self.pins.path().to_owned(), source);
        self.pins.strip_retired().map_err(failed)?;
        let mut left = false;
        for foreign in self.pins.foreign().map_err(failed)? {
            foreign.stop_producing().map_err(failed)?;
            foreign.abandon(captured).map_err(failed)?;
            left |= !(all && self.pins.retire(&foreign).map_err(failed)?);
        }
        self.settled = !left;
        Ok(())
    }

    /// Whether another agent asks for the right to write the maps.
    pub fn is_asked_for(&self) -> bool {
        let settled = self.claim.as_ref().is_none_or(Claim::is_settled);
        settled && self.pins.is_requested()
    }

    /// Lets go of the right to write the maps.
    pub fn hand_over(&mut self) {
        self.claim = None;
    }

    /// Gives the decision log of debug programs to `tracing`; returns what must be polled, or nothing in release builds.
    pub fn decision_log(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        if cfg!(debug_assertions) {
            aya_log::EbpfLogger::init(&mut self.programs.0).ok()
        } else {
            None
        }
    }

    /// An earlier agent may have been attached to another cgroup. Its links go once ours are there.
    fn unpin_links_of_other_cgroups(&self, cgroup: &Cgroup) -> Result<(), LoadError> {
        let is_ours = |pin: &PathBuf| {
            PRODUCERS
                .iter()
                .chain(&CARRIERS)
                .any(|name| *pin == self.generation.link(name, cgroup.id))
        };
        self.generation
            .links()
            .into_iter()
            .filter(|pin| !is_ours(pin))
            .try_for_each(|pin| link::detach(&pin).map_err(|source| LoadError::Link(pin, source)))
    }
}

/// The cgroup whose processes are hooked.
struct Cgroup {
    path: PathBuf,
    folder: File,
    /// Its inode number.
    id: u64,
}

impl Cgroup {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Cgroup(path.to_owned(), source);
        let folder = File::open(path).map_err(failed)?;
        let id = folder.metadata().map_err(failed)?.ino();
        Ok(Self {
            path: path.to_owned(),
            folder,
            id,
        })
    }
}

/// Makes our generation aside, with everything attached that catches nothing by itself, and gives it its name.
fn make_generation(pins: &Pins, generation: &Generation, cgroup: &Cgroup) -> Result<Programs, LoadError> {
    let failed = |source| LoadError::Link(pins.path().to_owned(), source);
    let aside = generation.begin().map_err(failed)?;
    let mut programs = Programs::load(super::object(), pins, &aside)?;
    programs.attach(&CARRIERS, &aside, cgroup)?;
    generation.finish(&aside).map_err(failed)?;
    Ok(programs)
}

/// The programs, verified by the kernel.
#[derive(Debug)]
struct Programs(Ebpf);

impl Programs {
    /// With the maps that are pinned in `generation`, or new ones that are pinned there from now on.
    fn load(object: &[u8], pins: &Pins, generation: &Generation) -> Result<Self, LoadError> {
        let multipath = preflight::multipath();
        let mut loader = EbpfLoader::new();
        loader.override_global("MULTIPATH", &multipath, true);
        loader.map_pin_path(OWN, pins.own());
        loader.map_pin_path(DNS_SERVERS, pins.dns_servers());
        for map in &MAPS {
            loader.map_pin_path(map.name, generation.map(map.name));
        }
        let ebpf = loader.load(object).map_err(|source| LoadError::Object {
            pin_dir: pins.path().to_owned(),
            source: Box::new(source),
        })?;
        let mut programs = Self(ebpf);
        for name in PRODUCERS.into_iter().chain(CARRIERS).chain([LOOKUP_PROGRAM]) {
            let program = programs.0.program_mut(name).ok_or(ProgramError::NotLoaded);
            program
                .and_then(load_program)
                .map_err(|source| program_error(name, source))?;
        }
        Ok(programs)
    }

    /// Attaches programs to the cgroup, or puts them under the links that are pinned.
    fn attach(
        &mut self,
        names: &[&'static str],
        generation: &Generation,
        cgroup: &Cgroup,
    ) -> Result<(), LoadError> {
        for name in names {
            let pin = generation.link(name, cgroup.id);
            if pin.exists() {
                self.replace(name, &pin)?;
                continue;
            }
            let link = self.attach_one(name, cgroup)?;
            link::pin(link, &pin).map_err(|source| LoadError::Link(pin, source))?;
        }
        Ok(())
    }

    fn attach_one(&mut self, name: &'static str, cgroup: &Cgroup) -> Result<FdLink, LoadError> {
        let program = self.0.program_mut(name).ok_or(ProgramError::NotLoaded);
        let link = program.and_then(|program| match program {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(&cgroup.folder, CgroupAttachMode::Single)?;
                program.take_link(id).map(FdLink::try_from)
            }
            Program::SockOps(program) => {
                let id = program.attach(&cgroup.folder, CgroupAttachMode::Single)?;
                program.take_link(id).map(FdLink::try_from)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        });
        link.map_err(|source| program_error(name, source))?
            .map_err(|source| LoadError::Link(cgroup.path.clone(), io::Error::other(source)))
    }

    fn attach_lookup(&mut self, netns: BorrowedFd<'_>) -> Result<FdLink, LoadError> {
        let program = self.0.program_mut(LOOKUP_PROGRAM).ok_or(ProgramError::NotLoaded);
        let attach = |program: &mut Program| {
            let program: &mut SkLookup = program.try_into()?;
            let id = program.attach(netns)?;
            program.take_link(id)
        };
        let link = program.and_then(attach);
        Ok(link
            .map_err(|source| program_error(LOOKUP_PROGRAM, source))?
            .into())
    }

    /// Puts the new `sk_lookup` under every link that an earlier agent left. A pod that is gone takes its link along.
    fn replace_lookups(&mut self, generation: &Generation) -> Result<(), LoadError> {
        for cookie in generation.lookups() {
            let pin = generation.lookup(cookie);
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
        let program = self.0.program(name).ok_or(ProgramError::NotLoaded);
        let fd = program
            .and_then(|program| program.fd())
            .map_err(|source| program_error(name, source))?;
        link::replace_program(pin, fd.as_fd()).map_err(|source| LoadError::Link(pin.to_owned(), source))
    }
}

pub(super) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
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

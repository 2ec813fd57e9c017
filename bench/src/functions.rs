//! Which of the program's functions run while loads play (`--functions`): they are linked together, so that an agent keeps
//! them in memory and little else (`agent/build.rs`).
//!
//! Each function begins with a breakpoint (INT3, x86-64). Whoever comes to one is stopped, the byte is put back and the function
//! noted: each costs one stop in all. Names are kept without what a compiler's version or a library's decide of them, as the
//! patterns of a linker script.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use object::{Object, ObjectSymbol, SymbolKind};

use crate::{
    memory,
    stage::{Carriers, Pair, Stage},
    start,
};

/// INT3.
const BREAKPOINT: u8 = 0xcc;
/// Between two looks at who is stopped.
const LOOK: Duration = Duration::from_micros(100);
/// Until the breakpoints are set.
const SETTLE: Duration = Duration::from_secs(1);
/// After this long all breakpoints are set once more: an agent that gives memory back forgets them, with the pages they are in.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an agent rests, and what it does then is looked at: twice its longest interval, and some more.
const REST: Duration = Duration::from_secs(12);
/// Connections that are open at once meanwhile.
const CROWD: usize = 1_000;
/// A pattern's length, in bytes: what follows tells types apart of which mostly all or none run.
const LONGEST: usize = 120;
/// What the file begins with.
const HEADER: &str = "# The functions of the agent that run while it carries connections, as patterns of a linker script: they are linked
# together, so that little else of the program is in memory. Of symbols in the v0 mangling; what differs between builds of
# one library is `*`. `cargo xtask profile --functions` adds to it; a pattern that fits nothing costs nothing.
";

/// When a function runs. Those that run at rest lie together, and those that run under load next to them: an agent that does nothing
/// keeps only the first, and one that is asked for its status once not much more than the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum When {
    Rest,
    Load,
    NowAndThen,
}

impl When {
    const ALL: [Self; 3] = [Self::Rest, Self::Load, Self::NowAndThen];

    /// The line above them in the file.
    fn heading(self) -> &'static str {
        match self {
            Self::Rest => "# At rest.",
            Self::Load => "# Under load.",
            Self::NowAndThen => "# Now and then.",
        }
    }
}

/// Where the names go, if they are wanted. Those that are there stay: what is inlined differs from build to build.
#[derive(Clone, Debug)]
pub(crate) struct Functions(pub(crate) PathBuf);

impl Functions {
    /// Does `work` and notes what of their program the carriers run meanwhile.
    pub(crate) fn during<T>(&self, carriers: &Carriers, when: When, work: impl FnOnce() -> T) -> Result<T> {
        let pids: BTreeSet<u32> = carriers.all().collect();
        let stop = AtomicBool::new(false);
        let (outcome, traced) = thread::scope(|scope| {
            let tracers: Vec<_> = pids
                .iter()
                .map(|pid| scope.spawn(|| Traced::run(*pid, &stop)))
                .collect();
            thread::sleep(SETTLE);
            let outcome = work();
            stop.store(true, Ordering::Relaxed);
            let traced: Vec<_> = tracers.into_iter().map(|tracer| tracer.join()).collect();
            (outcome, traced)
        });
        for traced in traced {
            self.add(&traced.map_err(|_| anyhow!("a tracer panicked"))??, when)?;
        }
        Ok(outcome)
    }

    /// The same for what agents do besides carrying loads: they rest, say how they are, have many connections open, and meet a
    /// new pod.
    pub(crate) fn besides_loads(&self, stage: &mut Stage) -> Result<()> {
        let captured = |pair: &Pair| pair.captured() && !pair.mode.http_only();
        let Some(at) = stage.pairs.iter().position(captured) else {
            return Ok(());
        };
        let carriers = stage.pairs[at].carriers();
        self.during(&carriers, When::Rest, || thread::sleep(REST))?;
        self.during(&carriers, When::NowAndThen, || -> Result<()> {
            stage.pairs[at].ask_agents()?;
            memory::crowd(&stage.pairs[at], CROWD, &mut Vec::new())?;
            start::run(stage, at, 0).map(drop)
        })?
    }

    fn add(&self, names: &[String], when: When) -> Result<()> {
        let Self(file) = self;
        let mut found = read(&fs::read_to_string(file).unwrap_or_default());
        for name in names {
            let known = found.entry(pattern(name)).or_insert(when);
            *known = when.min(*known);
        }
        fs::write(file, written(&found)).with_context(|| format!("write {}", file.display()))
    }
}

/// A process whose functions begin with breakpoints. Every call is of one thread: that is whom the kernel answers.
struct Traced {
    pid: u32,
    memory: File,
    /// By address: the byte that belongs there, and the names.
    functions: BTreeMap<u64, (u8, Vec<String>)>,
    hit: HashSet<u64>,
    threads: HashSet<Pid>,
}

impl Traced {
    /// The names of the functions that ran until `stop`.
    fn run(pid: u32, stop: &AtomicBool) -> Result<Vec<String>> {
        let mut traced = Self::attach(pid).with_context(|| format!("attach to process {pid}"))?;
        let mut set = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            traced.look()?;
            if set.elapsed() >= AGAIN {
                traced.set()?;
                set = Instant::now();
            }
        }
        traced.detach()?;
        let names = traced.hit.iter().filter_map(|at| traced.functions.get(at));
        Ok(names.flat_map(|(_, names)| names.clone()).collect())
    }

    fn attach(pid: u32) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "breakpoints are those of x86-64");
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let memory = File::options().read(true).write(true).open(dir.join("mem"))?;
        let mut traced = Self {
            pid,
            functions: functions(&dir, &memory)?,
            memory,
            hit: HashSet::new(),
            threads: HashSet::new(),
        };
        // Threads may begin others until all are stopped.
        while traced.stop_threads(&dir)? {}
        traced.set()?;
        for thread in &traced.threads {
            ptrace::cont(*thread, None)?;
        }
        Ok(traced)
    }

    /// A breakpoint at each function that nobody has come to yet.
    fn set(&self) -> Result<()> {
        let left = self.functions.keys().filter(|at| !self.hit.contains(at));
        for at in left {
            self.memory.write_all_at(&[BREAKPOINT], *at)?;
        }
        Ok(())
    }

    /// Whether there was one that was not stopped yet.
    fn stop_threads(&mut self, dir: &Path) -> Result<bool> {
        let mut any = false;
        for entry in fs::read_dir(dir.join("task"))? {
            let thread = Pid::from_raw(entry?.file_name().to_string_lossy().parse()?);
            if self.threads.contains(&thread) {
                continue;
            }
            ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACECLONE)?;
            ptrace::interrupt(thread)?;
            waitpid(thread, Some(WaitPidFlag::__WALL))?;
            self.threads.insert(thread);
            any = true;
        }
        Ok(any)
    }

    /// Lets go whoever is stopped, or waits a moment.
    fn look(&mut self) -> Result<()> {
        let only_ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        match waitpid(None, Some(only_ours)) {
            Ok(WaitStatus::StillAlive) => thread::sleep(LOOK),
            Ok(WaitStatus::Stopped(thread, Signal::SIGTRAP)) => {
                let theirs = !self.reached(thread)?;
                ptrace::cont(thread, theirs.then_some(Signal::SIGTRAP))?;
            }
            Ok(WaitStatus::Stopped(thread, signal)) => ptrace::cont(thread, signal)?,
            Ok(WaitStatus::PtraceEvent(thread, ..)) => {
                self.threads.insert(thread);
                ptrace::cont(thread, None)?;
            }
            Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) => {
                self.threads.remove(&thread);
            }
            Ok(_) => {}
            Err(Errno::ECHILD) => bail!("process {} has ended", self.pid),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether a thread is at one of ours: it goes on as if nothing had been there.
    fn reached(&mut self, thread: Pid) -> Result<bool> {
        let mut registers = ptrace::getregs(thread)?;
        let at = registers.rip - 1;
        let Some((byte, _)) = self.functions.get(&at) else {
            return Ok(false);
        };
        self.memory.write_all_at(&[*byte], at)?;
        self.hit.insert(at);
        registers.rip = at;
        ptrace::setregs(thread, registers)?;
        Ok(true)
    }

    /// Leaves the process as it was.
    fn detach(&mut self) -> Result<()> {
        for at in self.functions.keys().filter(|at| !self.hit.contains(at)) {
            let (byte, _) = self.functions[at];
            self.memory.write_all_at(&[byte], *at)?;
        }
        // What somebody has reached before that is still to be told.
        for thread in self.threads.clone() {
            if ptrace::interrupt(thread).is_err() {
                continue;
            }
            while let Ok(WaitStatus::Stopped(thread, Signal::SIGTRAP)) =
                waitpid(thread, Some(WaitPidFlag::__WALL))
                && self.reached(thread)?
            {
                ptrace::cont(thread, None)?;
            }
            ptrace::detach(thread, None)?;
        }
        Ok(())
    }
}

/// The patterns of a file, and when they run.
fn read(text: &str) -> BTreeMap<String, When> {
    let mut when = When::Load;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        match When::ALL.into_iter().find(|it| it.heading() == line) {
            Some(next) => when = next,
            None if line.starts_with('#') => {}
            None => drop(found.insert(line.to_owned(), when)),
        }
    }
    found
}

fn written(found: &BTreeMap<String, When>) -> String {
    let mut text = HEADER.to_owned();
    for when in When::ALL {
        let of_it = found.iter().filter(|(_, of)| **of == when);
        let patterns = of_it.map(|(pattern, _)| format!("{pattern}\n"));
        text.extend([format!("{}\n", when.heading())].into_iter().chain(patterns));
    }
    text
}

/// Where in a process the functions of its program begin.
fn functions(dir: &Path, memory: &File) -> Result<BTreeMap<u64, (u8, Vec<String>)>> {
    let program = fs::read_link(dir.join("exe"))?;
    let file = fs::read(dir.join("exe"))?;
    let file = object::File::parse(&*file).with_context(|| format!("read {}", program.display()))?;
    let base = base(dir, &program)?;
    let mut functions = BTreeMap::<u64, (u8, Vec<String>)>::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 || symbol.is_undefined() {
            continue;
        }
        let at = base + symbol.address();
        let mut byte = [0];
        memory.read_exact_at(&mut byte, at)?;
        let known = functions.entry(at).or_insert((byte[0], Vec::new()));
        known.1.push(symbol.name()?.to_owned());
    }
    ensure!(!functions.is_empty(), "{} has no symbols", program.display());
    Ok(functions)
}

/// Where a position-independent program lies.
fn base(dir: &Path, program: &Path) -> Result<u64> {
    let maps = fs::read_to_string(dir.join("maps"))?;
    let program = program.to_string_lossy();
    let first = maps.lines().find(|line| line.ends_with(&*program));
    let first = first.with_context(|| format!("{program} is not mapped"))?;
    let (begin, _) = first.split_once('-').context("not a line of maps")?;
    Ok(u64::from_str_radix(begin, 16)?)
}

/// A name as the pattern of its section: hashes of crates and what refers back to an earlier part of the name, which the
/// length of those decides, are left open, and so is whatever comes late.
fn pattern(name: &str) -> String {
    let name = name.split(".llvm.").next().unwrap_or(name);
    let mut rest = name;
    let mut pattern = String::new();
    while let Some(next) = rest.chars().next() {
        let (kept, from) = if let Some(after) = open(rest, "Cs", 8..=14) {
            ("Cs*_", after)
        } else if let Some(after) = open(rest, "B", 0..=3) {
            ("B*_", after)
        } else if let Some(versioned) = rest.strip_prefix("aws_lc_") {
            let of_version = |c: char| c == '_' || c.is_ascii_digit();
            ("aws_lc_*_", versioned.trim_start_matches(of_version))
        } else {
            rest.split_at(next.len_utf8())
        };
        pattern.push_str(kept);
        rest = from;
    }
    match pattern.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}*", pattern[..end].trim_end_matches('*')),
        None if name.starts_with("_R") => format!("{}*", pattern.trim_end_matches('*')),
        None => pattern,
    }
}

/// What follows a number in base 62 that follows these letters, where it has so many digits and ends in `_`.
fn open<'a>(name: &'a str, letters: &str, digits: std::ops::RangeInclusive<usize>) -> Option<&'a str> {
    let number = name.strip_prefix(letters)?;
    let end = number.find(|c: char| !c.is_ascii_alphanumeric())?;
    digits.contains(&end).then(|| number[end..].strip_prefix('_'))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_keeps_what_every_build_has() {
        for (name, expect) in [
            ("main", "main"),
            ("aws_lc_0_47_0_SHA256_Update", "aws_lc_*_SHA256_Update"),
            (
                "_RNvMs8_NtCs7wNnd1WRjwH_4pest12parser_stateINtB6_11ParserStateE4ruleB12_.llvm.123",
                "_RNvMs8_NtCs*_4pest12parser_stateINtB*_11ParserStateE4ruleB*_*",
            ),
            // Letters of a name are no hash: that has its digits, and an end.
            ("_RNvCs7wNnd1WRjwH_4weft5Bytes", "_RNvCs*_4weft5Bytes*"),
        ] {
            assert_eq!(pattern(name), expect, "{name}");
        }
        let long = format!("_RNvCs7wNnd1WRjwH_4weft{}", "x".repeat(500));
        assert_eq!(pattern(&long).len(), LONGEST + 1);
    }

    #[test]
    fn a_function_stands_where_it_runs_most_often() {
        let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
        let found = BTreeMap::from([(a, When::Load), (b, When::Rest), (c, When::NowAndThen)]);
        let text = written(&found);
        assert!(
            text.ends_with("# At rest.\nb\n# Under load.\na\n# Now and then.\nc\n"),
            "{text}"
        );
        assert_eq!(read(&text), found);
        // One that says nothing of it was made under load.
        assert_eq!(
            read("# by hand\na\n"),
            BTreeMap::from([("a".to_owned(), When::Load)])
        );
    }
}

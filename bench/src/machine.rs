//! What the figures depend on besides weft.

use std::{collections::BTreeMap, ffi::OsStr, fmt, fs, path::Path, process::Command, time::SystemTime};

use serde::{Deserialize, Serialize};

/// The machine of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    /// The day of the run, in UTC.
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    /// Over the minute before the run, in processes that wanted a core.
    pub(crate) load_before: f64,
    pub(crate) quick: bool,
    /// What paces TCP where nobody chooses (`net.ipv4.tcp_congestion_control`). Apps, and proxies that do not choose, have it.
    #[serde(default)]
    pub(crate) congestion_control: String,
    /// Whether the compiler optimised; without, the figures mean nothing.
    pub(crate) optimised: bool,
    /// Of the programs that took part, by name.
    pub(crate) versions: BTreeMap<String, String>,
}

/// Programs that say their version, and how they are asked.
const PROGRAMS: [(&str, &str); 6] = [
    ("nginx", "-v"),
    ("wrk", "-v"),
    ("iperf3", "--version"),
    ("h2load", "--version"),
    ("oha", "--version"),
    ("rustc", "--version"),
];

impl Machine {
    /// This one, now. What the kernel does not tell is empty.
    pub(crate) fn read(quick: bool, envoy: Option<&Path>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self {
            date: now.chars().take_while(|c| *c != 'T').collect(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")).unwrap_or_default(),
            load_before: load.unwrap_or(0.0),
            quick,
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control")
                .trim()
                .to_owned(),
            optimised: !cfg!(debug_assertions),
            versions: PROGRAMS
                .into_iter()
                .filter_map(|(program, flag)| Some((program.to_owned(), version(program, flag)?)))
                .chain([("weft".to_owned(), env!("CARGO_PKG_VERSION").to_owned())])
                .chain(envoy.and_then(|program| Some(("envoy".to_owned(), version(program, "--version")?))))
                .chain(commit().map(|commit| ("weft's commit".to_owned(), commit)))
                .collect(),
        }
    }

    /// What it does to the figures.
    pub(crate) fn caveats(&self) -> Vec<String> {
        let mut caveats = Vec::new();
        if self.load_before > self.cores as f64 / 4.0 {
            let load = self.load_before;
            caveats.push(format!(
                "busy: the load was {load:.1} before the run began; run it on an idle machine"
            ));
        }
        if !self.optimised {
            caveats.push("built without optimisations: the figures mean nothing".to_owned());
        }
        caveats
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (processor, kernel, cores, load) = (&self.processor, &self.kernel, self.cores, self.load_before);
        let (date, gib) = (&self.date, self.memory_mib / 1024);
        write!(
            f,
            "{cores} cores of {processor}, {gib} GiB, Linux {kernel}, TCP paced by {}, {date}, load {load:.1} before the run",
            self.congestion_control
        )
    }
}

/// From a line such as `MemTotal:  123456 kB`.
fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// What was built, if this is a checkout: with a mark where files are changed.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR")]);
    git.args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// The first number with a dot in what a program says of itself, on either stream.
fn version(program: impl AsRef<OsStr>, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    number(&String::from_utf8_lossy(&said))
}

fn number(said: &str) -> Option<String> {
    said.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-')
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()))
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, found) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            (
                "wrk debian/4.1.0-3build1 [epoll] Copyright (C) 2012\n",
                "4.1.0-3build1",
            ),
            ("iperf 3.12 (cJSON 1.7.15)\nLinux", "3.12"),
            ("h2load nghttp2/1.52.0\n", "1.52.0"),
        ] {
            assert_eq!(number(said).as_deref(), Some(found));
        }
        assert_eq!(number("none of it"), None);
    }

    #[test]
    fn memory_is_told_in_mebibytes() {
        assert_eq!(
            memory_mib("MemTotal:       2097152 kB\nMemFree: 1 kB\n"),
            Some(2048)
        );
        assert_eq!(memory_mib(""), None);
    }
}

//! The report: a table for people, and the same with every round as JSON.

use std::{fmt, fs, time::SystemTime};

use serde::Serialize;

use crate::{
    figures::{Series, WIDTH},
    load::Plan,
    memory::Memory,
};

/// What the figures depend on besides weft.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    /// The day of the run, in UTC.
    date: String,
    kernel: String,
    processor: String,
    cores: usize,
    /// Over the minute before the run, in processes that wanted a core.
    load_before: f64,
    quick: bool,
    /// Whether the compiler optimised; without, the figures mean nothing.
    optimised: bool,
}

impl Machine {
    /// This one, now. What the kernel does not tell is empty.
    pub(crate) fn read(plan: &Plan) -> Self {
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
            load_before: load.unwrap_or(0.0),
            quick: plan.quick,
            optimised: !cfg!(debug_assertions),
        }
    }

    /// Whether somebody else kept it busy.
    fn busy(&self) -> bool {
        self.load_before > self.cores as f64 / 4.0
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (processor, kernel, cores, load) = (&self.processor, &self.kernel, self.cores, self.load_before);
        let date = &self.date;
        write!(
            f,
            "{cores} cores of {processor}, Linux {kernel}, {date}, load {load:.1} before the run"
        )?;
        if !self.optimised {
            write!(f, "\nbuilt WITHOUT optimisations: the figures mean nothing")?;
        }
        Ok(())
    }
}

/// All that was found out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) series: Vec<Series>,
    pub(crate) memory: Memory,
    /// How long all of it took.
    pub(crate) seconds: u64,
}

impl Report {
    /// Rounds of a measure that failed.
    pub(crate) fn failures(&self) -> usize {
        self.series.iter().map(|series| series.failures).sum()
    }

    /// Rounds that were played.
    pub(crate) fn rounds(&self) -> usize {
        let rounds = self.series.iter().map(|series| series.weft.len());
        rounds.max().unwrap_or(0)
    }

    /// What a reader must know before believing the table.
    pub(crate) fn caveats(&self) -> Vec<String> {
        let noisy = |series: &&Series| series.ratio().is_some_and(|ratio| ratio.noisy());
        let (noisy, all) = (self.series.iter().filter(noisy).count(), self.series.len());
        let mut caveats = Vec::new();
        if noisy > 0 {
            caveats.push(format!(
                "noisy: in {noisy} of {all} measures the rounds differ by more than a quarter; believe the order, not the figure"
            ));
        }
        if self.machine.busy() {
            let load = self.machine.load_before;
            caveats.push(format!(
                "busy: the load was {load:.1} before the run began; run it on an idle machine"
            ));
        }
        if !self.machine.optimised {
            caveats.push("built without optimisations: the figures mean nothing".to_owned());
        }
        caveats
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<WIDTH$} {:>15} {:>15}   ratio (min..max)",
            "median of the rounds", "direct", "weft"
        )?;
        for series in &self.series {
            writeln!(f, "{}", row(series))?;
        }
        writeln!(
            f,
            "(µs and CPU s: a smaller ratio is better; /s and Gbit/s: a larger one)\n"
        )?;
        write!(f, "{}", self.memory)?;
        for caveat in self.caveats() {
            writeln!(f, "{caveat}")?;
        }
        write!(f, "{} rounds, {} s", self.rounds(), self.seconds)
    }
}

fn row(series: &Series) -> String {
    let [direct, weft] = series.medians();
    let mut row = format!("{:<WIDTH$} {direct:>15} {weft:>15}", series.measure.name);
    if let Some(ratio) = series.ratio() {
        row += &format!("   {ratio}{}", if ratio.noisy() { " noisy" } else { "" });
    }
    if series.failures > 0 {
        row += &format!("   FAILED in {} rounds", series.failures);
    }
    row
}

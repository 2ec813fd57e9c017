//! A whole run: the stage, the rounds, and what is looked at once.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    figures::{BASELINE, Curve, Ground, Measure, Series, Unit, median},
    functions::{Functions, When},
    growth,
    load::{Load, Outcome, Plan},
    machine::Machine,
    memory,
    mode::{Mode, Rival},
    perf::Perf,
    report::Report,
    stage::{Carriers, Pair, Stage},
    start,
};

/// Who looks at those that carry the traffic, while it flows.
#[derive(Clone, Debug)]
pub(crate) enum Watch {
    Perf(Perf),
    Functions(Functions),
}

impl Watch {
    fn during<T>(&self, carriers: &Carriers, work: impl FnOnce() -> T) -> Result<T> {
        match self {
            Self::Perf(perf) => perf.during(carriers, work),
            Self::Functions(functions) => functions.during(carriers, When::Load, work),
        }
    }
}

/// What is to be measured.
pub(crate) struct Options {
    pub(crate) quick: bool,
    /// Only the loads whose name contains this.
    pub(crate) only: Option<String>,
    /// Only these modes, besides direct TCP; all where it is empty.
    pub(crate) modes: Vec<String>,
    pub(crate) rivals: Vec<Rival>,
    pub(crate) rounds: Option<usize>,
    pub(crate) watch: Option<Watch>,
    /// Sidecar mode's program.
    pub(crate) envoy: Option<PathBuf>,
    /// As the report names it.
    pub(crate) command: String,
}

/// How long nothing happens before memory is looked at.
const REST: Duration = Duration::from_secs(12);
/// Connections that are open at once when memory is looked at.
const CROWDS: [usize; 2] = [1_000, 10_000];

/// Plays it.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let started = Instant::now();
    let mut plan = if options.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    plan.rounds = options.rounds.unwrap_or(plan.rounds);
    let mut run = Run::new(options, plan)?;
    println!("setting up two nodes, their agents, and a pair of pods for each mode");
    let mut stage = Stage::set(&run.modes)?;
    if let Err(error) = stage.prove() {
        stage.world.keep_files();
        return Err(error);
    }
    if let Some(Watch::Functions(functions)) = &options.watch {
        functions.besides_loads(&mut stage)?;
    }
    let once = options.only.is_none();
    if once {
        settle("everything has started");
        memory::look(&stage, "idle", &mut run.memory)?;
    }
    run.rounds(&mut stage, once);
    if once {
        run.once(&mut stage);
    }
    Ok(run.report(options, started))
}

struct Run {
    plan: Plan,
    machine: Machine,
    modes: Vec<Mode>,
    loads: Vec<(Ground, Load)>,
    watch: Option<Watch>,
    /// Of each load, its measures.
    series: Vec<Vec<Series>>,
    curves: Vec<Rounds>,
    starts: Vec<Series>,
    memory: Vec<Series>,
    growth: Vec<crate::report::Growth>,
    failures: Vec<String>,
    skipped: Vec<String>,
}

/// The curves of one load in one mode, round by round.
struct Rounds {
    load: String,
    ground: Ground,
    mode: String,
    times: Vec<Vec<(f64, f64)>>,
}

impl Run {
    fn new(options: &Options, plan: Plan) -> Result<Self> {
        let envoy = options.envoy.as_deref().filter(|path| path.is_file());
        let machine = Machine::read(plan.quick, envoy);
        println!("{machine}");
        let mut skipped = Vec::new();
        if envoy.is_none() {
            skipped.push("sidecar mode: there is no Envoy here (--envoy names none)".to_owned());
        }
        let mut modes = Mode::all(plan.quick, envoy, &options.rivals);
        for name in &options.modes {
            ensure!(
                modes.iter().any(|mode| mode.name == *name),
                "there is no mode `{name}`: {}",
                names(&modes)
            );
        }
        modes.retain(|mode| {
            options.modes.is_empty() || mode.name == BASELINE || options.modes.contains(&mode.name)
        });
        let mut loads = Vec::new();
        for ground in [Ground::TwoNodes, Ground::OneNode] {
            let of = Load::all(ground, plan.quick, &mut skipped)?;
            loads.extend(of.into_iter().map(|load| (ground, load)));
        }
        let wanted = |(ground, load): &(Ground, Load)| {
            let name = format!("{ground}: {load}");
            options.only.as_ref().is_none_or(|only| name.contains(only))
        };
        loads.retain(wanted);
        if matches!(options.watch, Some(Watch::Perf(_))) {
            // One profile is of one load.
            loads.truncate(1);
        }
        if loads.is_empty() {
            bail!("no load's name contains what --only says");
        }
        modes.retain(|mode| loads.iter().any(|(ground, _)| *ground == mode.ground));
        for line in &skipped {
            println!("SKIPPED {line}");
        }
        let measures = |(ground, load): &(Ground, Load)| {
            let measures = load.measures().into_iter();
            measures.map(|measure| Series::new(measure, *ground)).collect()
        };
        Ok(Self {
            series: loads.iter().map(measures).collect(),
            plan,
            machine,
            modes,
            loads,
            watch: options.watch.clone(),
            curves: Vec::new(),
            starts: Vec::new(),
            memory: Vec::new(),
            growth: Vec::new(),
            failures: Vec::new(),
            skipped,
        })
    }

    /// All rounds. A load that fails leaves its round out, and the others go on.
    fn rounds(&mut self, stage: &mut Stage, starts: bool) {
        for round in 0..self.plan.rounds {
            let steps = self.steps(stage, round);
            let all = steps.len() * self.plan.rounds;
            println!("\nround {} of {}", round + 1, self.plan.rounds);
            for (nth, (load, pair)) in steps.iter().enumerate() {
                self.step(stage, *load, *pair, (round * steps.len() + nth + 1, all));
            }
            if starts {
                self.start_pods(stage, round);
            }
        }
    }

    /// Every load with every pair that it fits, as a round plays them: another one begins each time, so that none is always
    /// measured right after the same one.
    fn steps(&self, stage: &Stage, round: usize) -> Vec<(usize, usize)> {
        let fits = |(ground, load): &(Ground, Load), pair: &Pair| {
            pair.mode.ground == *ground && load.fits(&pair.mode)
        };
        let mut steps = Vec::new();
        for (nth, load) in self.loads.iter().enumerate() {
            let pairs = stage.pairs.iter().enumerate();
            let mut of_load: Vec<_> = pairs
                .filter(|(_, pair)| fits(load, pair))
                .map(|(at, _)| (nth, at))
                .collect();
            let first = round % of_load.len().max(1);
            of_load.rotate_left(first);
            steps.extend(of_load);
        }
        steps
    }

    fn step(&mut self, stage: &Stage, load: usize, pair: usize, progress: (usize, usize)) {
        let pair = &stage.pairs[pair];
        let (ground, of) = self.loads[load];
        bar(progress, &format!("{ground}: {of}: {}", pair.mode.name));
        let figures = match self.play(stage, of, pair) {
            Ok(outcome) => {
                if let Some(times) = outcome.times {
                    self.curve(ground, of, &pair.mode.name, times);
                }
                outcome.figures
            }
            Err(error) => {
                self.fail(format!("{ground}: {of}: {}: {error:#}", pair.mode.name));
                Vec::new()
            }
        };
        let mode = &pair.mode.name;
        for (nth, series) in self.series[load].iter_mut().enumerate() {
            series.add(mode, figures.get(nth).copied().flatten());
        }
        if let Some(first) = self.series[load].first() {
            tell(first, mode);
        }
    }

    fn play(&self, stage: &Stage, load: Load, pair: &Pair) -> Result<Outcome> {
        let run = || load.run(stage, pair, &self.plan);
        match &self.watch {
            Some(watch) if pair.mode.name != BASELINE => watch.during(&pair.carriers(), run)?,
            _ => run(),
        }
    }

    fn curve(&mut self, ground: Ground, load: Load, mode: &str, times: Vec<(f64, f64)>) {
        let load = load.to_string();
        let same = |curve: &&mut Rounds| curve.load == load && curve.ground == ground && curve.mode == mode;
        match self.curves.iter_mut().find(same) {
            Some(curve) => curve.times.push(times),
            None => self.curves.push(Rounds {
                load,
                ground,
                mode: mode.to_owned(),
                times: vec![times],
            }),
        }
    }

    /// A new pod in each mode that carries TCP.
    fn start_pods(&mut self, stage: &mut Stage, round: usize) {
        for at in 0..stage.pairs.len() {
            let mode = stage.pairs[at].mode.clone();
            if mode.http_only() || mode.ground == Ground::OneNode {
                continue;
            }
            let waited = start::run(stage, at, round).map_err(|error| self.fail(format!("{error:#}")));
            let measure = Measure::new("a new pod's first byte", Unit::Millis);
            if self.starts.is_empty() {
                self.starts.push(Series::new(measure, mode.ground));
            }
            if let Some(series) = self.starts.first_mut() {
                series.add(&mode.name, waited.ok());
            }
        }
    }

    /// What is looked at once: memory and sockets, and how both grow.
    fn once(&mut self, stage: &mut Stage) {
        println!("\nmemory, sockets, growth");
        settle("the rounds are over");
        let mut outcomes = vec![memory::look(stage, "after the rounds", &mut self.memory)];
        let crowds = &CROWDS[..if self.plan.quick { 1 } else { 2 }];
        for count in crowds {
            println!("  {count} connections open");
            outcomes.push(memory::crowded(
                stage,
                *count,
                &mut self.memory,
                &mut self.skipped,
            ));
        }
        // Pods first: a mesh of 50,000 workloads is in memory for a while after it has gone.
        settle("the connections are closed");
        let of_pods = growth::of_pods(stage, &self.plan, &mut self.skipped);
        let of_workloads = growth::of_workloads(stage, &self.plan);
        for growth in [of_workloads, of_pods] {
            outcomes.push(growth.map(|growth| self.growth.push(growth)));
        }
        let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        failed
            .into_iter()
            .for_each(|error| self.fail(format!("{error:#}")));
    }

    fn fail(&mut self, what: String) {
        println!("\n    FAILED {what}");
        self.failures.push(what);
    }

    fn report(self, options: &Options, started: Instant) -> Report {
        let series = self
            .series
            .into_iter()
            .flatten()
            .chain(self.starts)
            .chain(self.memory);
        Report {
            machine: self.machine,
            command: options.command.clone(),
            modes: self.modes.iter().map(Mode::info).collect(),
            // What no mode has a figure of is no row.
            series: series
                .filter(|series| series.figures.values().flatten().any(Option::is_some))
                .collect(),
            curves: self.curves.iter().map(Rounds::median).collect(),
            growth: self.growth,
            failures: self.failures,
            skipped: self.skipped,
            rounds: self.plan.rounds,
            seconds: started.elapsed().as_secs(),
        }
    }
}

impl Rounds {
    /// At each share the median of the rounds.
    fn median(&self) -> Curve {
        let shares = self.times.first().into_iter().flatten().map(|(share, _)| *share);
        let at = |share: f64| -> Option<(f64, f64)> {
            let times: Vec<f64> = self
                .times
                .iter()
                .filter_map(|times| crate::figures::at(times, share))
                .collect();
            Some((share, median(&times)?))
        };
        Curve {
            load: self.load.clone(),
            ground: self.ground,
            mode: self.mode.clone(),
            points: shares.filter_map(at).collect(),
        }
    }
}

/// Memory is looked at when things have come to rest, in all modes alike.
fn settle(since: &str) {
    println!("  waiting for {} s since {since}", REST.as_secs());
    thread::sleep(REST);
}

fn names(modes: &[Mode]) -> String {
    let mut names: Vec<_> = modes.iter().map(|mode| mode.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    format!("there are {}", names.join(", "))
}

/// How far the run is, on a line of its own; on a terminal it gives way to the next.
fn bar((nth, all): (usize, usize), what: &str) {
    const WIDTH: usize = 20;
    let done = nth * WIDTH / all.max(1);
    let (full, empty) = ("█".repeat(done), "░".repeat(WIDTH - done));
    let start = if io::stdout().is_terminal() {
        "\r\x1b[K"
    } else {
        ""
    };
    print!("{start}  {full}{empty} {nth}/{all} {what}");
    let _ = io::stdout().flush();
}

/// The figure that has just come in.
fn tell(series: &Series, mode: &str) {
    let figures = series.figures.get(mode);
    let text = match figures.and_then(|figures| figures.last().copied().flatten()) {
        Some(figure) => series.measure.unit.show(figure),
        None => "-".to_owned(),
    };
    println!("  {text}");
}

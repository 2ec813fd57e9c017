//! `cargo xtask <command>`: everything a developer does besides editing. This file only parses the command line and
//! calls one function; each command is a file of its own, and the file's `//!` says what the command promises.

mod bench;
mod build;
mod chart;
mod ci;
mod counts;
mod demo;
mod fuzz;
mod image;
mod mutate;
mod preflight;
mod profile;
mod setup;
mod shell;
mod simulate;
mod test;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// weft's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples, all from the root of the checkout:
  cargo xtask demo                 see the mesh at work on two nodes (as root)
  cargo xtask test                 every test, with real sockets and real eBPF programs (as root)
  cargo xtask test half_close      only the tests whose name contains half_close
  cargo xtask test kube --kubeconfig FILE   the end-to-end suite, on a real cluster of two nodes
  cargo xtask setup --no-install   print what is missing and the commands that install it
  cargo xtask ci                   all that CI checks; --help of each command says more";

#[derive(Subcommand)]
enum Command {
    /// Find what building and testing need; install what is missing, saying so
    Setup {
        /// Print the commands instead of running them; exit 1 if anything is missing
        #[arg(long)]
        no_install: bool,
        /// Also what only `ci` needs (cargo-deny, rustfmt, clippy, valgrind, containerd, runc)
        #[arg(long)]
        dev: bool,
    },
    /// Build weft (with its eBPF programs) and the test world's helper process
    Build {
        /// With optimisations, as it is shipped
        #[arg(long)]
        release: bool,
    },
    /// Run the tests (as root); ends in `N passed, N failed`
    ///
    /// `test kube --kubeconfig FILE` is another one: the end-to-end suite, on a real cluster
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Run the end-to-end suite on the cluster of this kubeconfig instead: install by the chart, traffic, policy, upgrade,
        /// uninstall. Needs two nodes, an administrator's rights, and that weft is not installed there; needs no root here
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// The image that the chart installs and the suite's own pods run, as REPOSITORY:TAG or REPOSITORY@DIGEST. The nodes must
        /// have it (`cargo xtask image`, then `ctr -n k8s.io images import` there) or be able to pull it [default: the chart's own]
        #[arg(long, value_name = "REF", requires = "kubeconfig")]
        image: Option<String>,
        /// Build --image first, and push it to its registry
        #[arg(long, requires = "image")]
        push: bool,
        /// Values of the chart that this cluster needs: {"clusterCIDRs": ["10.244.0.0/16", "10.96.0.0/12"]}
        #[arg(long, value_name = "JSON", requires = "kubeconfig")]
        values: Option<String>,
        /// Leave weft and the suite's namespaces in the cluster
        #[arg(long)]
        keep: bool,
        /// Run the end-to-end suite on a cluster of our own making instead (as root): a stand-in API server, and two nodes with
        /// containerd, of which it says what they are not
        #[arg(long, conflicts_with = "kubeconfig")]
        rehearse: bool,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Show two nodes talking through the mesh, with the evidence (as root)
    Demo {
        /// Leave it running and print commands to try
        #[arg(long)]
        keep: bool,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Measure weft against no mesh and against sidecars (as root): tables, a page with charts, JSON
    Bench {
        /// Fewer and shorter rounds of what decides: a first look, under 3 minutes
        #[arg(long)]
        quick: bool,
        /// `scale`: what a cluster of 1,000 nodes and 50,000 pods costs the controller and an agent, and one push of 10,000
        /// workloads; `scale --check` measures that push alone, and fails where it is over its limits. And what `weft-bench`
        /// knows besides: `--only bulk`, `--markdown`, `--rival NAME=COMMAND`, `--compare OLD.json`:
        /// `cargo run --bin weft-bench -- --help` shows all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MORE")]
        args: Vec<String>,
        /// Build without optimisations: to work on the benchmark; its figures mean nothing
        #[arg(long)]
        dev: bool,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// See where the agents' time goes under a load of the benchmark: a flame graph and a list (as root)
    Profile {
        /// The first load whose name contains this, as `bench --only` has it: `connect, echo`, `bulk, 1`, `kept alive, 64`
        #[arg(required_unless_present = "functions")]
        load: Option<String>,
        /// The mode: `weft`, or `envoy L4` to see what another does
        #[arg(long, default_value = "weft")]
        mode: String,
        /// Instead, add to agent/hot-functions.txt which functions run under all loads: the linker keeps them together (x86-64)
        #[arg(long, conflicts_with_all = ["load", "mode"])]
        functions: bool,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Count the instructions of authorize, route and reading a CONNECT; compare with the committed counts
    Counts {
        /// Write the counts to the committed file instead
        #[arg(long)]
        update: bool,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Ask route, authorize and the plan of enrolment random questions, against an oracle
    Simulate {
        /// The first seed: that of a failure replays it
        #[arg(long)]
        seed: u64,
        /// How many seeds, of 10,000 questions each
        #[arg(long, default_value_t = 1)]
        seeds: u64,
    },
    /// Check all that CI checks: format, clippy, dependencies, tidy, chart, image, counts, then the tests (as root)
    Ci {
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Check deploy/chart with Helm's own library: lint, install, uninstall, and what each object may do
    Chart {
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Build the container image: a static binary, FROM scratch, and its bill of materials
    Image(image::Options),
    /// Check the house rules: layers, lengths, headers, unsafe, dead files, words
    Tidy,
    /// Feed what reads others' bytes with inputs that nobody thought of; ends in `N passed, N failed`
    Fuzz {
        /// Only this target; without it, all of them
        target: Option<String>,
        /// How long each target is fed
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        seconds: u32,
        /// Run the target with this one input, such as one that broke it
        #[arg(long, value_name = "FILE", requires = "target")]
        replay: Option<PathBuf>,
        /// Print what is missing instead of installing it
        #[arg(long)]
        no_install: bool,
    },
    /// Prove that the safety tests can fail: break the code, see them go red (as root)
    Mutate {
        /// Only this mutation, or `pure` for the quick ones; without it, all of them
        name: Option<String>,
        /// Print the mutations and check that each still fits the code, without running any
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is::<test::Failed>() => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("\nerror: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup { no_install, dev } => setup::run(setup::Options {
            install: !no_install,
            tests: true,
            dev,
        }),
        Command::Build { release } => build::product(release),
        Command::Test {
            filter,
            kubeconfig: Some(kubeconfig),
            image,
            push,
            values,
            keep,
            no_install,
            ..
        } => test::kube::run(&test::kube::Options {
            filter,
            kubeconfig,
            image,
            push,
            values,
            keep,
            install: !no_install,
        }),
        Command::Test {
            rehearse: true,
            filter,
            keep,
            no_install,
            ..
        } => test::rehearse::run(filter.as_deref(), keep, !no_install),
        Command::Test {
            filter, no_install, ..
        } => test::run(filter.as_deref(), !no_install, Vec::new()),
        Command::Demo { keep, no_install } => demo::run(keep, !no_install),
        Command::Bench {
            quick,
            args,
            dev,
            no_install,
        } => bench::run(bench::Options {
            quick,
            args,
            dev,
            install: !no_install,
        }),
        Command::Profile {
            load: Some(load),
            mode,
            no_install,
            ..
        } => profile::run(&profile::Options {
            load,
            mode,
            install: !no_install,
        }),
        Command::Profile {
            load: None,
            no_install,
            ..
        } => profile::functions(!no_install),
        Command::Counts { update, no_install } => counts::run(update, !no_install),
        Command::Simulate { seed, seeds } => simulate::run(seed, seeds),
        Command::Ci { no_install } => ci::run(!no_install),
        Command::Chart { no_install } => chart::run(!no_install),
        Command::Image(options) => image::run(&options),
        Command::Tidy => tidy::run(),
        Command::Fuzz {
            target,
            seconds,
            replay,
            no_install,
        } => fuzz::run(&fuzz::Options {
            target: target.as_deref(),
            seconds,
            replay: replay.as_deref(),
            install: !no_install,
        }),
        Command::Mutate { name, list: true } => mutate::list(name.as_deref()),
        Command::Mutate { name, list: false } => mutate::run(name.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}

//! `setup`: finds what building and testing need and installs what is missing, with one line for each. A level-triggered
//! list: every need has a check and the ways to meet it, best first; after a way was tried, the check decides. What is
//! where is data in `setup/needs.rs`; this file only walks it.

mod needs;

use std::process::Command;

use anyhow::{Result, bail};
use needs::{Need, Way};
pub(crate) use needs::{envoy, helm_dir};

use crate::shell;

/// How setup behaves.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    /// Install what is missing; otherwise print the commands and fail.
    pub(crate) install: bool,
    /// Also what only the tests need.
    pub(crate) tests: bool,
    /// Also what only `ci` needs.
    pub(crate) dev: bool,
}

/// Finds or installs everything.
///
/// # Errors
/// Something is missing: it could not be installed, or `install` is off. The commands are already printed.
pub(crate) fn run(options: Options) -> Result<()> {
    satisfy(needs::all(options.tests, options.dev), options.install)?;
    // CI leaves nothing out.
    if options.dev {
        satisfy(vec![needs::container_runtime()], options.install)?;
    } else if options.tests {
        optional(needs::container_runtime(), options.install, "the tests of NRI");
    }
    Ok(())
}

/// Finds or installs what fuzzing needs besides what building does.
///
/// # Errors
/// The same.
pub(crate) fn fuzzer(install: bool) -> Result<()> {
    satisfy(needs::fuzzer(), install)
}

/// Finds or installs what counts instructions.
///
/// # Errors
/// The same.
pub(crate) fn counting(install: bool) -> Result<()> {
    satisfy(needs::counting().into(), install)
}

/// Finds or installs Helm.
///
/// # Errors
/// The same.
pub(crate) fn helm(install: bool) -> Result<()> {
    satisfy(vec![needs::helm()], install)
}

/// Finds or installs what starts containers.
///
/// # Errors
/// The same.
pub(crate) fn runtime(install: bool) -> Result<()> {
    satisfy(needs::runtime(), install)
}

/// Finds or installs what pushes the image.
///
/// # Errors
/// The same.
pub(crate) fn pusher(install: bool) -> Result<()> {
    satisfy(
        vec![needs::packaged(
            "skopeo",
            &needs::Check::Program("skopeo"),
            "skopeo",
        )],
        install,
    )
}

/// Finds or installs what the rehearsal of the end-to-end suite runs pods with.
///
/// # Errors
/// The same.
pub(crate) fn rehearsal(install: bool) -> Result<()> {
    let needs = needs::runtime().into_iter().chain(needs::rehearsal());
    satisfy(needs.collect(), install)
}

/// Finds or installs what `profile` needs besides what `bench` does.
///
/// # Errors
/// The same.
pub(crate) fn profiler(install: bool) -> Result<()> {
    satisfy(needs::profiler(), install)
}

/// Finds or installs what only `bench` needs. What cannot be had is told, and what is measured with it is left out.
pub(crate) fn benchmark(install: bool) {
    for need in needs::benchmark() {
        optional(need, install, "what is measured with it");
    }
}

fn optional(need: Need, install: bool, left_out: &str) {
    let name = need.name.clone();
    if let Err(error) = satisfy(vec![need], install) {
        println!("- {name}: {error:#}; {left_out} will be left out");
    }
}

fn satisfy(needs: Vec<Need>, install: bool) -> Result<()> {
    let mut missing = Vec::new();
    for need in needs {
        match need.check.found() {
            Some(found) => println!("✓ {}: {found}", need.name),
            None => missing.push(need),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    // One apt-get for all packages: its start-up is most of its time.
    let (packages, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|need| need.package().is_some());
    let packages = merged(&packages);
    let needs: Vec<_> = packages.into_iter().chain(others).collect();
    let mut unmet = 0;
    if install
        && needs
            .iter()
            .any(|need| need.ways.first().is_some_and(Way::unknown))
    {
        update()?;
    }
    for need in &needs {
        if !(install && meet(need)?) {
            unmet += 1;
            explain(need);
        }
    }
    match unmet {
        0 => Ok(()),
        _ if install => {
            bail!("setup could not install everything: do what is printed above, then run it again")
        }
        _ => bail!("something is missing: run the commands above, or leave out --no-install"),
    }
}

/// Many needs that are one package each, as one need.
fn merged(packages: &[Need]) -> Option<Need> {
    let names: Vec<_> = packages.iter().filter_map(Need::package).collect();
    (!names.is_empty()).then(|| Need {
        name: packages
            .iter()
            .map(|need| need.name.clone())
            .collect::<Vec<_>>()
            .join(", "),
        check: needs::Check::All(packages.iter().map(|need| need.check.clone()).collect()),
        ways: vec![Way::packages(&names)],
        mend: "install these programs with your distribution's package manager",
    })
}

/// Tries the ways until the check passes.
fn meet(need: &Need) -> Result<bool> {
    for way in &need.ways {
        if let Err(why) = way.possible() {
            println!("- {}: not with `{}`: {why}", need.name, way.first());
            continue;
        }
        for command in way.commands() {
            println!("+ {}: installing with `{}`", need.name, command.join(" "));
            if let Err(err) = execute(&command) {
                println!("- {}: {err:#}", need.name);
                break;
            }
        }
        if let Some(found) = need.check.found() {
            println!("✓ {}: {found}", need.name);
            return Ok(true);
        }
    }
    Ok(false)
}

fn execute(words: &[String]) -> Result<()> {
    let Some((program, args)) = words.split_first() else {
        return Ok(());
    };
    shell::run(
        Command::new(program)
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Lets apt fetch its lists; nothing to do where there is no apt, or no right to use it.
fn update() -> Result<()> {
    if shell::find("apt-get").is_none() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    println!("+ apt does not know some of the packages: `apt-get update`");
    execute(&["apt-get".to_owned(), "update".to_owned(), "-q".to_owned()])
}

fn explain(need: &Need) {
    println!("✗ {} is missing", need.name);
    let known: Vec<_> = need.ways.iter().filter(|way| !way.unknown()).collect();
    let ways = if known.is_empty() {
        need.ways.iter().take(1).collect()
    } else {
        known
    };
    for (i, way) in ways.iter().enumerate() {
        println!("  {}", if i == 0 { "run:" } else { "or:" });
        if way.unknown() {
            println!("    apt-get update");
        }
        for command in way.commands() {
            println!("    {}", command.join(" "));
        }
    }
    println!("  if that is not possible: {}", need.mend);
}

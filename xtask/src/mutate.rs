//! `mutate`: proof that the tests of the safety promises can fail. Each mutation is one change of the code that breaks a
//! promise, and the test that must notice. It is made in a copy under `target/mutate`, never in the checkout: the named
//! test must pass there without the change, and must run and fail with it. A mutation that does not build proves nothing.
//! The mutations are data in `mutate/mutations.rs`.

mod copy;
mod mutations;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use mutations::{MUTATIONS, Mutation};

use crate::{
    build::{self, Artifacts},
    preflight, setup, shell,
    test::{self, Ending, Interrupt},
};

/// The name of all mutations whose tests are quick: those of the pure parts.
const PURE: &str = "pure";
/// Lines of a failure that are shown.
const REASON_LINES: usize = 6;

/// Checks that every mutation still fits the code, and prints them.
///
/// # Errors
/// One of them does not fit, or none has the name.
pub(crate) fn list(name: Option<&str>) -> Result<()> {
    for mutation in chosen(name)? {
        let (line, _) = mutation.apply(&shell::root())?;
        println!(
            "{}: {}:{line}: {}",
            mutation.name, mutation.file, mutation.promise
        );
        println!("  must turn red: {} {}", mutation.target, mutation.test);
    }
    Ok(())
}

/// Runs the mutations.
///
/// # Errors
/// A mutation went unnoticed, or could not be tried.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    list(name)?;
    setup::run(setup::Options {
        install: true,
        tests: true,
        dev: false,
    })?;
    preflight::run()?;
    let interrupt = Interrupt::listen()?;
    let place = Place::new()?;
    place.refresh()?;
    let outcome = prove(&place, &chosen(name)?, &interrupt);
    for gone in weft_tests::sweep()? {
        println!("swept {gone}");
    }
    outcome
}

fn chosen(name: Option<&str>) -> Result<Vec<&'static Mutation>> {
    let chosen: Vec<_> = MUTATIONS
        .iter()
        .filter(|mutation| {
            name.is_none_or(|name| mutation.name == name || name == PURE && mutation.is_pure())
        })
        .collect();
    let names: Vec<_> = MUTATIONS.iter().map(|mutation| mutation.name).collect();
    ensure!(
        !chosen.is_empty(),
        "no mutation has this name; there are: {}",
        names.join(", ")
    );
    Ok(chosen)
}

fn prove(place: &Place, mutations: &[&Mutation], interrupt: &Interrupt) -> Result<()> {
    test::step("the tests without a change");
    let whole = mutations.iter().any(|mutation| !mutation.is_pure());
    let pure = mutations.iter().any(|mutation| mutation.is_pure());
    let build = |wanted: bool, pure: bool| wanted.then(|| place.build(pure)).transpose();
    let artifacts = [build(whole, false)?, build(pure, true)?];
    for mutation in mutations {
        let artifacts = artifacts[usize::from(mutation.is_pure())].as_ref();
        let artifacts = artifacts.context("the code without a change is not built")?;
        match place.test(mutation, artifacts, interrupt)? {
            Colour::Green => println!("✓ {} passes without a change", mutation.test),
            Colour::Red => bail!("{} fails without a change: mend the code first", mutation.test),
        }
    }
    let mut unnoticed = Vec::new();
    for mutation in mutations {
        if interrupt.came() {
            bail!("interrupted");
        }
        if place.mutated(mutation, interrupt)? == Colour::Green {
            unnoticed.push(mutation.name);
        }
    }
    println!(
        "\n{} noticed, {} unnoticed",
        mutations.len() - unnoticed.len(),
        unnoticed.len()
    );
    ensure!(
        unnoticed.is_empty(),
        "these broke a promise and no test noticed: {}",
        unnoticed.join(", ")
    );
    Ok(())
}

/// What a test did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    Green,
    Red,
}

/// Where the code is broken: a copy of the sources with a target directory of its own. Sharing the checkout's would be
/// wrong: cargo gives both the same names for what it builds, and would take the broken binary for the real one.
struct Place {
    root: PathBuf,
    target: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let target = shell::root().join("target");
        let place = Self {
            root: target.join("mutate/src"),
            target: target.join("mutate/target"),
        };
        copy::seed(&target.join("debug"), &place.target.join("debug"))?;
        Ok(place)
    }

    /// Makes the copy equal to the checkout.
    fn refresh(&self) -> Result<()> {
        copy::mirror(&shell::root(), &self.root)
    }

    fn build(&self, pure: bool) -> Result<Artifacts> {
        let build = if pure { build::pure } else { build::everything };
        build(&self.root, Some(&self.target))
    }

    /// Breaks the copy, runs the test, and mends the copy.
    fn mutated(&self, mutation: &Mutation, interrupt: &Interrupt) -> Result<Colour> {
        test::step(&format!("{}: {}", mutation.name, mutation.promise));
        let started = Instant::now();
        let (line, text) = mutation.apply(&self.root)?;
        fs::write(self.root.join(mutation.file), text)?;
        println!("changed {}:{line}", mutation.file);
        let colour = self
            .build(mutation.is_pure())
            .with_context(|| {
                format!(
                    "{} does not build, so it proves nothing: mend the mutation",
                    mutation.name
                )
            })
            .and_then(|artifacts| self.test(mutation, &artifacts, interrupt));
        self.refresh()?;
        let colour = colour?;
        let took = started.elapsed().as_secs();
        match colour {
            Colour::Red => println!("✓ {}: {} went red ({took} s)", mutation.name, mutation.test),
            Colour::Green => println!("✗ {}: {} did not notice ({took} s)", mutation.name, mutation.test),
        }
        Ok(colour)
    }

    /// Runs one test. It must run: a name that matches nothing, a crash or a hang is no proof in either direction.
    fn test(&self, mutation: &Mutation, artifacts: &Artifacts, interrupt: &Interrupt) -> Result<Colour> {
        let binary = artifacts
            .tests
            .iter()
            .find(|binary| binary.title() == mutation.target);
        let binary = binary.with_context(|| format!("there is no test binary {}", mutation.target))?;
        let mut command = test::command(binary, Some(mutation.test));
        command.arg("--exact").env("RUST_BACKTRACE", "0");
        if let Some(weft) = &artifacts.weft {
            command.env("WEFT_BIN", weft);
        }
        let mut lines = Vec::new();
        let (_, ending) = test::stream(&mut command, test::LIMIT, interrupt, |line| {
            lines.push(line.to_owned());
        })?;
        for line in reason(&lines) {
            println!("  | {line}");
        }
        let Some(colour) = judge(&lines, mutation.test).filter(|_| matches!(ending, Ending::Exited(_)))
        else {
            bail!(
                "{} came to no verdict; its binary printed:\n{}",
                mutation.test,
                lines.join("\n")
            );
        };
        Ok(colour)
    }
}

/// What libtest says of the one that failed: the evidence that it was the promise that broke.
fn reason(lines: &[String]) -> impl Iterator<Item = &String> {
    let failure = lines.iter().skip_while(|line| !line.starts_with("---- ")).skip(1);
    failure
        .filter(|line| !line.is_empty())
        .take_while(|line| *line != "failures:")
        .take(REASON_LINES)
}

/// The verdict on the one test that ran; none if it did not.
fn judge(lines: &[String], test: &str) -> Option<Colour> {
    let verdict = lines.iter().find_map(|line| {
        line.strip_prefix("test ")?
            .strip_prefix(test)?
            .strip_prefix(" ... ")
    });
    match verdict? {
        "ok" => Some(Colour::Green),
        "FAILED" => Some(Colour::Red),
        _ => None,
    }
}

impl Mutation {
    /// Whether its test is one of the pure parts compiled by themselves.
    fn is_pure(&self) -> bool {
        self.target.starts_with("pure/")
    }

    /// The file's text with the change, and the change's line.
    fn apply(&self, root: &Path) -> Result<(usize, String)> {
        let text = fs::read_to_string(root.join(self.file))
            .with_context(|| format!("{}: {}", self.name, self.file))?;
        let times = text.matches(self.find).count();
        ensure!(
            times == 1,
            "{}: its text is {times} times in {}, and must be there once: {:?}",
            self.name,
            self.file,
            self.find
        );
        let before = text.split(self.find).next().unwrap_or_default();
        Ok((
            before.lines().count().max(1),
            text.replace(self.find, self.replace),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_fits_the_code() {
        for mutation in MUTATIONS {
            mutation.apply(&shell::root()).unwrap();
            assert_ne!(mutation.find, mutation.replace);
        }
    }

    #[test]
    fn only_a_test_that_ran_has_a_colour() {
        let judge = |lines: &str| judge(&lines.lines().map(str::to_owned).collect::<Vec<_>>(), "a::b");
        assert_eq!(judge("running 1 test\ntest a::b ... ok\n"), Some(Colour::Green));
        assert_eq!(judge("running 1 test\ntest a::b ... FAILED\n"), Some(Colour::Red));
        for none in [
            "running 0 tests",
            "test a::b ... ignored",
            "test a::bc ... ok",
            "",
            "error: could not compile",
        ] {
            assert_eq!(judge(none), None, "{none}");
        }
    }
}

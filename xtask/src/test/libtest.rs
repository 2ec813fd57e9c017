//! What libtest prints, counted. The `test result:` lines are the truth; a process that ends without one has failed.

use std::{collections::BTreeMap, fmt};

use super::Ending;

/// About as much is told of why a test failed, in characters.
const LONG: usize = 600;

/// How many tests did what. Prints as the last line of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    /// The names of those that failed.
    pub(super) failures: Vec<String>,
    /// What they say of why, by their names.
    pub(super) reasons: BTreeMap<String, String>,
    /// The one whose output comes.
    telling: Option<String>,
    /// Which of the skipped tests have said so themselves, and why: libtest calls them passed (`weft_tests::skip`).
    pub(super) skips: Vec<String>,
    /// How many of them the result line that is to come counts as passed.
    unsettled: usize,
    /// Result lines seen.
    results: usize,
}

impl Tally {
    /// One failure that is no test's.
    pub(super) fn failure(name: String) -> Self {
        Self {
            failed: 1,
            failures: vec![name],
            ..Self::default()
        }
    }

    /// Takes one line of output.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
        self.reason(line);
        if let Some(skip) = line.strip_prefix("SKIPPED ") {
            self.skips.push(skip.to_owned());
            self.unsettled += 1;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.results += 1;
            let skips = std::mem::take(&mut self.unsettled);
            self.passed += count(counts, "passed").saturating_sub(skips);
            self.failed += count(counts, "failed");
            self.skipped += count(counts, "ignored") + skips;
        }
    }

    /// Of what a failed test printed the first lines, up to the stack.
    fn reason(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.telling = Some(name.to_owned());
            return;
        }
        let Some(name) = &self.telling else { return };
        let reason = self.reasons.entry(name.clone()).or_default();
        let ends = ["stack backtrace:", "Stack backtrace:", "note: ", "{", "failures:"];
        if reason.len() > LONG || ends.iter().any(|end| line.starts_with(end)) {
            self.telling = None;
        } else if !line.trim().is_empty() {
            reason.push(' ');
            reason.extend(line.trim().chars().take(LONG));
        }
    }

    /// Takes how the process ended: what its lines do not tell is one more failure.
    pub(super) fn end(&mut self, ending: &Ending) {
        let told = match ending {
            Ending::Exited(status) => status.success() == (self.failed == 0) && self.results > 0,
            Ending::Interrupted => self.failed > 0,
            Ending::TimedOut(_) => false,
        };
        if !told && *ending != Ending::Interrupted {
            self.failed += 1;
            self.failures.push(ending.to_string());
        }
    }

    /// Takes the counts of a binary.
    pub(super) fn add(&mut self, title: &str, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures.iter().map(|name| {
            let reason = other.reasons.get(name).map_or("", String::as_str);
            format!("{title}: {name}{reason}")
        }));
        self.skips
            .extend(other.skips.iter().map(|skip| format!("{title}: {skip}")));
    }
}

/// The number before a word: 3 in `ok. 3 passed; 0 failed`.
fn count(counts: &str, word: &str) -> usize {
    let words: Vec<_> = counts
        .split([' ', ';', '.'])
        .filter(|word| !word.is_empty())
        .collect();
    let pair = words.windows(2).find(|pair| pair[1] == word);
    pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

    use super::*;

    const GREEN: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";
    const RED: &str =
        "test a::b ... FAILED\ntest c ... ok\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured";

    fn check(lines: &str, ending: &Ending, expect: &str, failures: usize) {
        let mut tally = Tally::default();
        lines.lines().for_each(|line| tally.line(line));
        tally.end(ending);
        assert_eq!(tally.to_string(), expect, "{lines} then {ending}");
        assert_eq!(tally.failures.len(), failures, "{tally:?}");
    }

    fn exited(code: i32) -> Ending {
        Ending::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn results_are_counted() {
        check(GREEN, &exited(0), "3 passed, 0 failed, 1 skipped", 0);
        check(RED, &exited(101), "1 passed, 1 failed", 1);
        check(
            &format!("{GREEN}\n{GREEN}"),
            &exited(0),
            "6 passed, 0 failed, 2 skipped",
            0,
        );
    }

    #[test]
    fn a_test_that_says_that_it_has_not_run_has_not_passed() {
        let lines = format!("test a ... ok\n\nSKIPPED b: no such kernel\ntest b ... ok\n{GREEN}\n{GREEN}");
        check(&lines, &exited(0), "5 passed, 0 failed, 3 skipped", 0);
        let (mut binary, mut all) = (Tally::default(), Tally::default());
        lines.lines().for_each(|line| binary.line(line));
        all.add("tests/nri", &binary);
        assert_eq!(all.skips, ["tests/nri: b: no such kernel"]);
    }

    #[test]
    fn what_the_lines_do_not_tell_is_a_failure() {
        check("test a ... ok", &exited(0), "0 passed, 1 failed", 1);
        check(GREEN, &exited(101), "3 passed, 1 failed, 1 skipped", 1);
        check(
            "",
            &Ending::Exited(ExitStatus::from_raw(11)),
            "0 passed, 1 failed",
            1,
        );
        check(
            "",
            &Ending::TimedOut(Duration::from_secs(1)),
            "0 passed, 1 failed",
            1,
        );
        check("", &Ending::Interrupted, "0 passed, 0 failed", 0);
    }

    #[test]
    fn failures_keep_their_binary() {
        let (mut all, mut one) = (Tally::default(), Tally::default());
        RED.lines().for_each(|line| one.line(line));
        all.add("tests/tunnel", &one);
        assert_eq!(all.failures, ["tests/tunnel: a::b"]);
    }

    #[test]
    fn failures_say_why() {
        let lines = "test a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\n\nthread 'a' (7) panicked at \
            x.rs:1:2:\nno way\nstack backtrace:\n   0: f\n---- b stdout ----\nError: waited\n\nCaused by:\n    0: it is late\n\n\
            failures:\n    a\n    b\n";
        let (mut all, mut one) = (Tally::default(), Tally::default());
        lines.lines().for_each(|line| one.line(line));
        all.add("tests/t", &one);
        let a = "tests/t: a thread 'a' (7) panicked at x.rs:1:2: no way";
        let b = "tests/t: b Error: waited Caused by: 0: it is late";
        assert_eq!(all.failures, [a, b]);
    }
}

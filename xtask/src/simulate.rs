//! `simulate`: asks more questions of the simulation (`agent/pure/tests/simulation`) than the tests do, or replays one seed.

use anyhow::Result;

use crate::shell;

/// Simulates `seeds` seeds from `seed` on.
///
/// # Errors
/// An answer was wrong: it is printed with its seed.
pub(crate) fn run(seed: u64, seeds: u64) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--quiet", "-p", "weft-pure", "--test", "simulation"]);
    cargo.args(["--", "--nocapture", "a_million_questions"]);
    cargo
        .env("WEFT_SEED", seed.to_string())
        .env("WEFT_SEEDS", seeds.to_string());
    cargo.env("RUST_BACKTRACE", "0");
    shell::run(&mut cargo)
}

//! Simulation: a world of random pods, services, policies and settings that keeps changing, and after each change random
//! connections. What `route`, `authorize` and the plan of enrolment answer is compared with an oracle that is too simple
//! to be wrong, and with what must never be. A step is one question, asked of both.
//!
//! A failure prints the seed; `cargo xtask simulate --seed N` replays it. Everything comes from the seed.

mod ask;
mod draw;
mod enrol;
mod oracle;
mod requests;
mod world;

use std::{
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use draw::Draw;
use enrol::Enrolment;
use weft_pure::mesh::Mesh;
use world::World;

/// Steps of one seed. Short, so that a failing one is soon found again and its world is small.
const STEPS: u64 = 10_000;
/// How many seeds make a million steps.
const SEEDS: u64 = 100;
/// Questions between two changes.
const QUESTIONS: u64 = 40;

/// A number that the environment gives, as `cargo xtask simulate` sets it.
#[expect(
    clippy::disallowed_methods,
    reason = "libtest leaves no other way into a test"
)]
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_million_questions_are_answered_as_the_oracle_does() {
    let (first, seeds) = match given("WEFT_SEED") {
        Some(seed) => (seed, given("WEFT_SEEDS").unwrap_or(1)),
        None => (0, SEEDS),
    };
    let next = AtomicU64::new(first);
    let steps = AtomicU64::new(0);
    let run = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= first + seeds {
            return Ok(());
        }
        let asked = simulate(seed)
            .map_err(|what| format!("{what}\n\nto replay it: cargo xtask simulate --seed {seed}"))?;
        steps.fetch_add(asked, Ordering::Relaxed);
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .expect("a panic is a failure as well: it is printed above")
            })
            .collect()
    });
    if let Some(failure) = results.into_iter().find_map(Result::err) {
        panic!("{failure}");
    }
    println!("{} steps of {seeds} seeds", steps.into_inner());
}

/// One world, from the first change to the last step; the number of steps.
fn simulate(seed: u64) -> Result<u64, String> {
    let mut draw = Draw::new(seed);
    let mut world = World::new(&mut draw);
    let mut enrolment = Enrolment::default();
    let mut step = 0;
    while step < STEPS {
        let what = world.change(&mut draw);
        let mesh = Mesh::new(world.parts.clone());
        for question in 0..QUESTIONS {
            let answered = match question {
                0 => enrolment.turn(&world, &mesh, &mut draw),
                _ if draw.percent(20) => requests::which_rule(&world, &mesh, &mut draw),
                _ if draw.percent(20) => requests::whether(&world, &mesh, &mut draw),
                _ if draw.percent(50) => ask::where_to(&world, &mesh, &mut draw),
                _ => ask::whether(&world, &mesh, &mut draw),
            };
            answered.map_err(|fault| format!("seed {seed}, step {step}, after {what}:\n{fault}"))?;
            step += 1;
        }
    }
    Ok(step)
}

/// The same world twice: a seed that fails today fails tomorrow.
#[test]
fn a_seed_is_the_same_world_every_time() {
    let worlds = [1, 1, 2].map(|seed| {
        let mut draw = Draw::new(seed);
        let mut world = World::new(&mut draw);
        let changes: Vec<_> = (0..100).map(|_| world.change(&mut draw)).collect();
        format!("{changes:?} {:?}", world.parts)
    });
    assert_eq!(worlds[0], worlds[1]);
    assert_ne!(worlds[0], worlds[2]);
}

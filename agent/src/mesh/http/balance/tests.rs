//! Shares and choices, exactly where they are exact and within bounds where they are drawn.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::mesh::http::{Destination, FaultDelay, HeaderChanges};

fn backends(weights: &[u32]) -> Vec<Backend> {
    let backend = |weight: &u32| Backend {
        to: Destination::Nowhere("".into()),
        weight: *weight,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    };
    weights.iter().map(backend).collect()
}

fn at(backends: &[Backend], draw: u64) -> Option<usize> {
    let found = weighted(backends, draw)?;
    backends.iter().position(|backend| std::ptr::eq(backend, found))
}

/// How often each is met by draws in a row.
fn counts(len: usize, draws: u64, choose: impl Fn(u64) -> Option<usize>) -> Vec<u64> {
    let mut counts = vec![0; len];
    for draw in 0..draws {
        counts[choose(draw).unwrap()] += 1;
    }
    counts
}

#[test]
fn weights() {
    for weights in [&[90, 10][..], &[1], &[0, 3, 0, 1], &[5, 0], &[1, 1, 1]] {
        let backends = backends(weights);
        let sum: u32 = weights.iter().sum();
        let expect: Vec<_> = weights.iter().map(|weight| u64::from(*weight)).collect();
        assert_eq!(
            counts(weights.len(), sum.into(), |draw| at(&backends, draw)),
            expect
        );
    }
    for nobody in [&[][..], &[0], &[0, 0]] {
        assert_eq!(at(&backends(nobody), 7), None);
    }
    // A sum that 32 bits do not hold.
    let large = backends(&[u32::MAX, u32::MAX, 1]);
    let max = u64::from(u32::MAX);
    for (draw, expect) in [
        (0, 0),
        (max - 1, 0),
        (max, 1),
        (2 * max - 1, 1),
        (2 * max, 2),
        (2 * max + 1, 0),
    ] {
        assert_eq!(at(&large, draw), Some(expect), "{draw}");
    }
    assert!(at(&large, u64::MAX).is_some());
}

#[test]
fn shares_of_faults_and_mirrors() {
    let delay = |per_10_000| Fault {
        delay: Some(FaultDelay {
            per_10_000,
            delay_ms: 5,
        }),
        abort: Some(FaultAbort {
            per_10_000,
            http_status: 503,
            grpc_status: None,
        }),
    };
    for (per_10_000, expect) in [(0, 0), (1, 1), (1000, 1000), (10_000, 10_000), (u32::MAX, 10_000)] {
        let fault = delay(per_10_000);
        let mirror = Mirror {
            to: Destination::Nowhere("".into()),
            per_10_000,
        };
        let met = |is: &dyn Fn(u64) -> bool| (0..10_000).filter(|draw| is(*draw)).count();
        assert_eq!(
            met(&|draw| fault.delay(draw) == Some(Duration::from_millis(5))),
            expect
        );
        assert_eq!(met(&|draw| fault.abort(draw).is_some()), expect);
        assert_eq!(met(&|draw| mirror.is_met(draw)), expect);
    }
    assert_eq!(Fault::default().delay(0), None);
    assert_eq!(Fault::default().abort(0), None);
}

fn loads(of: &[(u32, u32)]) -> Vec<Load> {
    let load = |(capacity, in_flight): &(u32, u32)| Load {
        capacity: *capacity,
        in_flight: *in_flight,
    };
    of.iter().map(load).collect()
}

#[test]
fn round_robin_goes_round() {
    let equal = loads(&[(1, 9), (1, 0), (1, 5)]);
    let turns: Vec<_> = (0..6)
        .map(|turn| pick(Balancer::RoundRobin, &equal, turn, 77, &[]))
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2].map(Some));
    // As often as the capacity says in a round, and the large one not in one go.
    let unequal = loads(&[(6, 0), (1, 0), (0, 0), (1, 0)]);
    let turn = |turn| pick(Balancer::RoundRobin, &unequal, turn, 0, &[]);
    assert_eq!(counts(4, 8, turn), [6, 1, 0, 1]);
    let turns: Vec<_> = (0..8).map(turn).collect();
    assert!(
        turns
            .windows(5)
            .any(|turns| turns.iter().any(|it| *it != Some(0)))
    );
    // Left out for one request.
    let others: Vec<_> = (0..4)
        .map(|turn| pick(Balancer::RoundRobin, &equal, turn, 0, &[false, true]))
        .collect();
    assert_eq!(others, [0, 2, 0, 2].map(Some));
}

#[test]
fn the_less_loaded_of_two() {
    // With two there is no choice but these two.
    for draw in [0, 1, 1 << 32, u64::MAX, 0x1234_5678_9abc_def0] {
        let pick =
            |of: &[(u32, u32)], tried: &[bool]| pick(Balancer::LeastRequest, &loads(of), 0, draw, tried);
        assert_eq!(pick(&[(1, 5), (1, 4)], &[]), Some(1));
        assert_eq!(pick(&[(1, 3), (1, 4)], &[]), Some(0));
        // For what it takes.
        assert_eq!(pick(&[(4, 5), (1, 4)], &[]), Some(0));
        assert_eq!(pick(&[(1, 0), (0, 0)], &[]), Some(0));
        assert_eq!(pick(&[(1, 0), (1, 9)], &[true]), Some(1));
        assert_eq!(pick(&[(1, 0), (1, 9)], &[true, true]), None);
        assert_eq!(pick(&[(0, 0)], &[]), None);
        assert_eq!(pick(&[], &[]), None);
    }
    // The most loaded of all is never chosen.
    let all = loads(&[(1, 2), (1, 7), (1, 3), (1, 2)]);
    for draw in 0..1000_u64 {
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_ne!(pick(Balancer::LeastRequest, &all, 0, draw, &[]), Some(1));
    }
}

proptest! {
    #[test]
    fn shares_are_exact(weights in vec(0..50_u32, 1..6), start in any::<u32>()) {
        let backends = backends(&weights);
        let sum: u64 = weights.iter().copied().map(u64::from).sum();
        let expect: Vec<_> = weights.iter().map(|weight| u64::from(*weight)).collect();
        let met = counts(weights.len(), sum, |draw| at(&backends, draw + u64::from(start)));
        prop_assert_eq!(met, expect);
    }

    /// Random draws: each share within five standard deviations.
    #[test]
    fn shares_of_draws_are_binomial(weights in vec(0..1000_u32, 2..5), seed in any::<u64>()) {
        const DRAWS: u32 = 4000;
        let backends = backends(&weights);
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        prop_assume!(sum > 0.0);
        let mut counts = vec![0_u32; weights.len()];
        let mut state = seed;
        for _ in 0..DRAWS {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            counts[at(&backends, z ^ (z >> 31)).unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            let share = f64::from(*weight) / sum;
            let deviation = (f64::from(DRAWS) * share * (1.0 - share)).sqrt();
            let off = (f64::from(*count) - f64::from(DRAWS) * share).abs();
            prop_assert!(off <= 5.0 * deviation + 0.5, "{} of {}: {}", weight, sum, count);
            prop_assert!(*weight > 0 || *count == 0);
        }
    }

    /// Whoever is chosen can take something and was not tried; and somebody is, where there is one.
    #[test]
    fn only_the_able_are_chosen(
        of in vec((0..4_u32, 0..9_u32), 0..6),
        tried in vec(any::<bool>(), 0..6),
        turn in any::<u64>(),
        draw in any::<u64>(),
    ) {
        let loads = loads(&of);
        let able = |at: usize| loads[at].capacity > 0 && !tried.get(at).copied().unwrap_or(false);
        for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random] {
            let picked = pick(balancer, &loads, turn, draw, &tried);
            prop_assert_eq!(picked.is_some(), (0..loads.len()).any(able));
            prop_assert!(picked.is_none_or(able));
        }
    }
}

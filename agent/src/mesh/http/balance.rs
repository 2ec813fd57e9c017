//! Draws: which backend, which endpoint, whom a fault or a mirror meets. The draws themselves come in.

use std::time::Duration;

use super::{Backend, Balancer, Fault, FaultAbort, Mirror, TcpRoute, TlsRule};

/// Parts that a share is given in.
const PARTS: u64 = 10_000;

impl TlsRule {
    /// Whose a connection is. None where nobody has a weight: it is refused.
    pub fn backend(&self, draw: u64) -> Option<&Backend> {
        weighted(&self.backends, draw)
    }
}

impl TcpRoute {
    /// Whose a connection is. None where nobody has a weight: it is refused.
    pub fn backend(&self, draw: u64) -> Option<&Backend> {
        weighted(&self.backends, draw)
    }
}

/// Of as many draws in a row as the weights' sum, each backend has as many as its weight.
pub(super) fn weighted(backends: &[Backend], draw: u64) -> Option<&Backend> {
    let at = position(backends.iter().map(|it| it.weight), draw)?;
    backends.get(at)
}

fn position(weights: impl Iterator<Item = u32> + Clone, draw: u64) -> Option<usize> {
    let sum: u64 = weights.clone().map(u64::from).sum();
    let mut left = draw.checked_rem(sum)?;
    for (at, weight) in weights.enumerate() {
        match left.checked_sub(u64::from(weight)) {
            Some(after) => left = after,
            None => return Some(at),
        }
    }
    None
}

impl Fault {
    /// How long a request is held up.
    pub fn delay(&self, draw: u64) -> Option<Duration> {
        let delay = self.delay.as_ref()?;
        is_met(delay.per_10_000, draw).then(|| Duration::from_millis(delay.delay_ms))
    }

    /// What a request is answered with, after its delay.
    pub fn abort(&self, draw: u64) -> Option<&FaultAbort> {
        self.abort.as_ref().filter(|abort| is_met(abort.per_10_000, draw))
    }
}

impl Mirror {
    /// Whether it gets a copy.
    pub fn is_met(&self, draw: u64) -> bool {
        is_met(self.per_10_000, draw)
    }
}

fn is_met(per_10_000: u32, draw: u64) -> bool {
    draw % PARTS < u64::from(per_10_000)
}

/// What an endpoint has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How much it takes, against the others; 0 is nothing.
    pub capacity: u32,
    /// Requests under way.
    pub in_flight: u32,
}

/// Which endpoint a request is given: none that was tried (`tried` may be shorter than `loads`) and none without
/// capacity. None where no other is left.
///
/// `turn` counts the requests, for round robin; `draw` is any number.
pub fn pick(balancer: Balancer, loads: &[Load], turn: u64, draw: u64, tried: &[bool]) -> Option<usize> {
    let able = Able { loads, tried };
    match balancer {
        Balancer::Random => able.at(draw, None),
        Balancer::RoundRobin => able.at(able.slot(turn), None),
        Balancer::LeastRequest => {
            let first = able.at(draw & u64::from(u32::MAX), None)?;
            let second = able.at(draw >> 32, Some(first));
            Some(second.map_or(first, |second| less_loaded(loads, first, second)))
        }
    }
}

/// Endpoints that may be chosen, each as often as its capacity says.
struct Able<'a> {
    loads: &'a [Load],
    tried: &'a [bool],
}

impl Able<'_> {
    fn weights(&self, but: Option<usize>) -> impl Iterator<Item = u32> + Clone {
        let left_out = move |at| but == Some(at) || self.tried.get(at).copied().unwrap_or(false);
        let loads = self.loads.iter().enumerate();
        loads.map(move |(at, load)| if left_out(at) { 0 } else { load.capacity })
    }

    fn at(&self, draw: u64, but: Option<usize>) -> Option<usize> {
        position(self.weights(but), draw)
    }

    /// The slot of a turn: one after the other where all are alike; otherwise in strides, so that who has many slots does
    /// not have them in a row.
    fn slot(&self, turn: u64) -> u64 {
        let mut capacities = self.weights(None).filter(|weight| *weight > 0);
        let first = capacities.next().unwrap_or(1);
        let sum: u64 = self.weights(None).map(u64::from).sum();
        if sum == 0 {
            return turn;
        }
        if capacities.all(|capacity| capacity == first) {
            return (turn % (sum / u64::from(first))) * u64::from(first);
        }
        let stride = u128::from(stride(sum));
        u64::try_from(u128::from(turn) * stride % u128::from(sum)).unwrap_or_default()
    }
}

/// About 0.618 of the sum, and without a divisor that both have: every slot comes once in a round.
fn stride(sum: u64) -> u64 {
    let near = u64::try_from(u128::from(sum) * 618 / 1000).unwrap_or(1).max(1);
    (near..=sum)
        .find(|stride| common_divisor(*stride, sum) == 1)
        .unwrap_or(1)
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The one with fewer requests for what it takes.
fn less_loaded(loads: &[Load], first: usize, second: usize) -> usize {
    let (a, b) = (&loads[first], &loads[second]);
    let of_a = u64::from(a.in_flight) * u64::from(b.capacity);
    let of_b = u64::from(b.in_flight) * u64::from(a.capacity);
    if of_b < of_a { second } else { first }
}

#[cfg(test)]
mod tests;

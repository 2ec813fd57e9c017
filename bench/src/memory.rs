//! The memory and the sockets of those who carry the traffic: just started, after the rounds, and with many connections
//! open.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use weft_tests::{Crowd, machine};

use crate::{
    figures::{BASELINE, Measure, Series, Unit},
    processes::{resident, sockets},
    stage::{Pair, Stage},
};

/// Where the crowd's server listens.
const PORT: u16 = 9100;
/// How long they have been open by then: what their opening alone needed may be given back.
const OPEN: Duration = Duration::from_secs(6);
/// Files that a process has open besides a crowd's connections.
const SPARE: u64 = 200;

/// One series for each side and for the waypoint: what is resident at this moment, in every mode that has somebody who carries.
pub(crate) fn look(stage: &Stage, when: &str, series: &mut Vec<Series>) -> Result<()> {
    for pair in pairs(stage) {
        add(pair, &format!("memory (RSS), {when}"), series)?;
    }
    Ok(())
}

/// The same with so many connections open for some seconds, each of which has carried a message; and how many sockets each of them takes.
pub(crate) fn crowded(
    stage: &Stage,
    count: usize,
    series: &mut Vec<Series>,
    skipped: &mut Vec<String>,
) -> Result<()> {
    for pair in pairs(stage).filter(|pair| !pair.mode.http_only()) {
        let limit = machine::file_limit();
        // A proxy beside an app has two sockets for each connection, and so has an agent that is at both ends of it.
        if pair.has_two_sockets() && 2 * count as u64 + SPARE > limit {
            let mode = &pair.mode;
            skipped.push(format!(
                "{mode}: {count} connections open, for which a process would need more than {limit} files"
            ));
            continue;
        }
        crowd(pair, count, series)
            .with_context(|| format!("{}, with {count} connections open", pair.mode))?;
    }
    Ok(())
}

/// With `count` connections open between one pair.
pub(crate) fn crowd(pair: &Pair, count: usize, series: &mut Vec<Series>) -> Result<()> {
    let carriers = pair.carriers();
    let all: Vec<u32> = carriers.all().collect();
    let before = sockets(&all);
    let to = pair.server.addr(PORT);
    let _server = Crowd::serve(&pair.server, to)?;
    let mut clients = Crowd::hold(&pair.client, count, &[to])?;
    clients.opened()?;
    sleep(OPEN);
    let when = format!("with {} connections open", thousands(count));
    add(pair, &format!("memory (RSS), {when}"), series)?;
    let each = sockets(&all).saturating_sub(before) as f64 / count as f64;
    let measure = Measure::new(
        format!("sockets for each connection, both sides, {when}"),
        Unit::Count,
    );
    put(pair, measure, Some(each), series);
    Ok(())
}

fn add(pair: &Pair, name: &str, series: &mut Vec<Series>) -> Result<()> {
    let carriers = pair.carriers();
    for (side, pids) in [
        ("client's side", &carriers.client),
        ("server's side", &carriers.server),
        ("waypoint", &carriers.waypoint),
    ] {
        if let Some(resident) = resident(pids)? {
            let measure = Measure::new(format!("{name}, {side}"), Unit::Mebibytes);
            put(pair, measure, Some(resident), series);
        }
    }
    Ok(())
}

fn put(pair: &Pair, measure: Measure, figure: Option<f64>, series: &mut Vec<Series>) {
    let ground = pair.mode.ground;
    let at = series
        .iter()
        .position(|series| series.measure == measure && series.ground == ground)
        .unwrap_or_else(|| {
            series.push(Series::new(measure, ground));
            series.len() - 1
        });
    series[at].add(&pair.mode.name, figure);
}

fn pairs(stage: &Stage) -> impl Iterator<Item = &Pair> {
    stage.pairs.iter().filter(|pair| pair.mode.name != BASELINE)
}

fn thousands(count: usize) -> String {
    match count {
        1000.. => format!("{},{:03}", count / 1000, count % 1000),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [999, 1000, 10_000].map(super::thousands),
            ["999", "1,000", "10,000"]
        );
    }
}

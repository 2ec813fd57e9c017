//! The stand-in API server is held to recordings of a real one: each recorded request, in order, against a fresh
//! stand-in, must be answered with the same status, the same headers and the same body.
//!
//! What varies between runs is left aside (`transcripts/compare.rs`); what the recorder did beside the requests is done
//! again (`transcripts/setup.rs`).

mod transcripts;

use anyhow::Result;
use transcripts::{parse, read, replay::Replay, setup};

/// Exchanges that the stand-in answers differently, and why. One that is answered as recorded must not be here.
const DIFFERENT: [(&str, usize, &str); 2] = [
    ("status.http", 6, "rules in CEL are not evaluated"),
    (
        "endpointslice.http",
        5,
        "no Endpoints are made: they are deprecated, and weft does not read them",
    ),
];

/// Replays a recording; what it tells is empty if all went as it should.
fn replay(file: &str) -> Result<Vec<String>> {
    let exchanges = parse::parse(&read(file)?)?;
    let mut replay = Replay::new()?;
    replay.seen.cut = ["list.http", "selectors.http"].contains(&file);
    setup::before_all(file, &mut replay)?;
    let mut told = Vec::new();
    for exchange in &exchanges {
        let number = exchange.number;
        replay.seen.cut |= (file, number) == ("gone.http", 8);
        setup::before(file, number, &mut replay)?;
        let anonymous = (file, number) == ("errors.http", 22);
        let outcome = replay.exchange(exchange, anonymous, |replay| setup::during(file, number, replay));
        let known = DIFFERENT
            .iter()
            .find(|(of, which, _)| (*of, *which) == (file, number));
        match (outcome, known) {
            (Err(err), None) => told.push(format!("{file} {number}: {err:#}")),
            (Ok(()), Some((.., why))) => {
                told.push(format!("{file} {number} is answered as recorded, though {why}"));
            }
            _ => {}
        }
    }
    println!(
        "{file}: {} exchanges, {} not as they should be",
        exchanges.len(),
        told.len()
    );
    Ok(told)
}

/// One test for each recording, so that one that fails hides no other.
macro_rules! recordings {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                let told = replay($file)?;
                assert!(told.is_empty(), "\n{}", told.join("\n"));
                Ok(())
            }
        )*

        /// No recording is left out.
        #[test]
        fn every_recording_is_replayed() -> Result<()> {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/kube-transcripts");
            let replayed = [$($file),*];
            for entry in std::fs::read_dir(directory)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                assert!(!name.ends_with(".http") || replayed.contains(&name.as_str()), "{name} is not replayed");
            }
            Ok(())
        }
    };
}

recordings! {
    access_review: "access-review.http",
    discovery: "discovery.http",
    endpointslice: "endpointslice.http",
    errors: "errors.http",
    events: "events.http",
    gone: "gone.http",
    lease: "lease.http",
    list: "list.http",
    namespaces: "namespaces.http",
    patch: "patch.http",
    pod_lifecycle: "pod-lifecycle.http",
    selectors: "selectors.http",
    ssa: "ssa.http",
    status: "status.http",
    token: "token.http",
    watch: "watch.http",
    watch_bookmarks: "watch-bookmarks.http",
    watch_list: "watch-list.http",
}

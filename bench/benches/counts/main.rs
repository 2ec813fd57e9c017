//! What the questions of every connection cost, in instructions: `authorize` and `route` in a large mesh, and reading
//! what a CONNECT says. Run by `cargo xtask counts`, which compares with the committed counts.
//!
//! Instructions and not time: a count is the same on a busy machine and on an idle one. It says nothing of caches, so
//! no count here stands for a time; what holds is the limit below, and that the count does not grow unseen.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::disallowed_methods,
    reason = "what the macros of gungraun make"
)]

mod large;

use std::hint::black_box;

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use large::{Arrival, Dial};
use weft_pure::{
    headers::{Authority, Baggage, Forwarded, HeaderError},
    mesh::{Route, Verdict, authorize, route},
};

/// One microsecond: the instructions that a core of 3 GHz retires in it at one a cycle, where such code does better.
const MICROSECOND: u64 = 3_000;

/// A question that takes longer than a microsecond fails, whatever the committed counts say.
fn within_a_microsecond() -> LibraryBenchmarkConfig {
    let mut callgrind = counting();
    callgrind.hard_limits([(EventKind::Ir, MICROSECOND)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn counting() -> Callgrind {
    Callgrind::with_args(["--cache-sim=no"])
}

#[library_benchmark]
#[bench::no_allow_policy(large::no_allow_policy())]
#[bench::allowed_by_the_last_of_30(large::allowed_by_the_last_of_30())]
#[bench::denied_by_the_last_of_16(large::denied_by_the_last_of_16())]
#[bench::not_allowed(large::not_allowed())]
#[bench::plaintext_to_strict(large::plaintext_to_strict())]
#[bench::plaintext_to_permissive(large::plaintext_to_permissive())]
#[bench::policy_missing(large::policy_missing())]
fn authorized(arrival: &'static Arrival) -> Verdict {
    let Arrival { mesh, workload, conn } = black_box(arrival);
    authorize(mesh, workload, conn)
}

#[library_benchmark]
#[bench::service(large::to_service())]
#[bench::service_over_ipv6(large::to_service_over_ipv6())]
#[bench::service_behind_waypoint(large::to_service_behind_waypoint())]
#[bench::pod(large::to_pod())]
#[bench::outside(large::to_outside())]
#[bench::unknown_inside(large::to_unknown_inside())]
#[bench::no_such_port(large::to_no_such_port())]
fn routed(dial: &'static Dial) -> Route {
    let Dial { mesh, conn, draw } = black_box(dial);
    route(mesh, conn, *draw)
}

#[library_benchmark]
#[bench::address("10.0.19.9:8080")]
#[bench::address_of_ipv6("[fd00:10::19:9]:8080")]
#[bench::hostname("svc-19.ns-00.svc.cluster.local:80")]
#[bench::refused("10.0.19.9:http")]
fn authority(text: &str) -> Result<Authority, HeaderError> {
    black_box(text).parse()
}

#[library_benchmark]
#[bench::whole(concat!(
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns-00,k8s.deployment.name=svc-19,service.name=svc-19,",
    "service.version=v1,cloud.region=region-a,cloud.availability_zone=zone-b"
))]
fn baggage(text: &str) -> Result<Baggage, HeaderError> {
    black_box(text).parse()
}

#[library_benchmark]
#[bench::client_and_host("for=\"10.0.19.9:43210\";host=svc-19.ns-00.svc.cluster.local")]
fn forwarded(text: &str) -> Result<Forwarded, HeaderError> {
    black_box(text).parse()
}

library_benchmark_group!(
    name = authorize_,
    config = within_a_microsecond(),
    benchmarks = authorized
);
library_benchmark_group!(
    name = route_,
    config = within_a_microsecond(),
    benchmarks = routed
);
library_benchmark_group!(name = head, benchmarks = [authority, baggage, forwarded]);

main!(
    config = LibraryBenchmarkConfig::default().tool(counting()),
    library_benchmark_groups = [authorize_, route_, head]
);

//! What the questions of every connection cost, in instructions: `authorize` and `route` in a large mesh, and reading
//! what a CONNECT says; and those of every request through a waypoint. Run by `cargo xtask counts`, which compares with the committed counts.
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
mod requests;

use std::hint::black_box;

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use http::HeaderMap;
use large::{Arrival, Dial};
use requests::{Asked, PORT, Request};
use weft_pure::{
    headers::{Authority, Baggage, Forwarded, HeaderError},
    mesh::{
        Route, Verdict, authorize, authorize_request, authorize_service,
        http::{Decision, HeaderChanges, Normalization, normalize},
        route,
    },
};

/// One microsecond: the instructions that a core of 3 GHz retires in it at one a cycle, where such code does better.
const MICROSECOND: u64 = 3_000;

/// A question of a connection that takes longer than a microsecond fails, whatever the committed counts say; of a request, that
/// takes longer than two.
fn within(limit: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = counting();
    callgrind.hard_limits([(EventKind::Ir, limit)]);
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

// A thousand routes cost what one does.
#[library_benchmark]
#[bench::one_path(requests::one_path())]
#[bench::a_thousand_paths(requests::a_thousand_paths())]
#[bench::one_exact_path(requests::one_exact_path())]
#[bench::a_thousand_exact_paths(requests::a_thousand_exact_paths())]
#[bench::one_beginning(requests::one_beginning())]
#[bench::a_thousand_beginnings(requests::a_thousand_beginnings())]
#[bench::one_host(requests::one_host())]
#[bench::a_thousand_hosts(requests::a_thousand_hosts())]
fn decided(request: &'static Request) -> Decision<'static> {
    let Request { routes, head } = black_box(request);
    routes.decide(PORT, head)
}

#[library_benchmark]
#[bench::allowed_by_the_last_of_30(requests::to_workload(large::allowed_by_the_last_of_30()))]
#[bench::denied_by_the_last_of_16(requests::to_workload(large::denied_by_the_last_of_16()))]
fn request_authorized(asked: &'static Asked) -> Verdict {
    let asked = black_box(asked);
    authorize_request(asked.mesh, asked.workload, asked.conn, &asked.facts)
}

#[library_benchmark]
#[bench::allowed_by_the_last_of_10(requests::to_service())]
fn service_authorized(asked: &'static Asked) -> Verdict {
    let asked = black_box(asked);
    authorize_service(asked.mesh, &asked.policies, asked.conn, &asked.facts)
}

#[library_benchmark]
#[bench::four(requests::headers())]
fn headers_changed((mut headers, changes): (HeaderMap, &'static HeaderChanges)) -> HeaderMap {
    black_box(changes).apply(&mut headers);
    headers
}

#[library_benchmark]
#[bench::normal("/api/v1/route-0999/items/17")]
#[bench::of_dots_and_slashes("/api//v1/./x/../route-0999%2Fitems/%31%37")]
fn path_normalized(path: &str) -> usize {
    let path = normalize(black_box(path), Normalization::MergeSlashes);
    path.map_or(0, |path| path.len())
}

library_benchmark_group!(
    name = authorize_,
    config = within(MICROSECOND),
    benchmarks = authorized
);
library_benchmark_group!(name = route_, config = within(MICROSECOND), benchmarks = routed);
library_benchmark_group!(
    name = requests_,
    config = within(2 * MICROSECOND),
    benchmarks = [
        decided,
        request_authorized,
        service_authorized,
        headers_changed,
        path_normalized
    ]
);
library_benchmark_group!(name = head, benchmarks = [authority, baggage, forwarded]);

main!(
    config = LibraryBenchmarkConfig::default().tool(counting()),
    library_benchmark_groups = [authorize_, route_, requests_, head]
);

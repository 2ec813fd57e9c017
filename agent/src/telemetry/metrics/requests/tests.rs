//! Golden series of requests: names, labels, buckets, bounds, eviction.

use std::time::Duration;

use super::*;
use crate::telemetry::{DroppedLines, Metrics, sample};

fn metrics() -> Metrics {
    Metrics::new("1.2.3", DroppedLines::default())
}

/// The sample lines whose name begins with `prefix`, sorted.
fn samples(metrics: &Metrics, prefix: &str) -> Vec<String> {
    let text = metrics.encode();
    let lines = text.lines().filter(|line| line.starts_with(prefix));
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

const ENDS: &str = "reporter=\"waypoint\",source_workload=\"curl\",source_canonical_service=\"curl\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"demo\",\
    source_principal=\"spiffe://cluster.local/ns/demo/sa/curl\",source_app=\"curl\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_service=\"web.demo.svc.cluster.local\",\
    destination_service_namespace=\"demo\",destination_service_name=\"web\",destination_workload=\"web\",\
    destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
    destination_workload_namespace=\"demo\",destination_principal=\"spiffe://cluster.local/ns/demo/sa/web\",\
    destination_app=\"web\",destination_version=\"v1\",destination_cluster=\"Kubernetes\"";

#[test]
fn a_request_has_istios_names_and_labels() {
    let metrics = metrics();
    for _ in 0..3 {
        metrics.record_request(&sample::request());
    }
    let labels = format!(
        "{ENDS},request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\""
    );
    let check = |name: &str, expect: String| assert_eq!(samples(&metrics, name), [expect]);
    check(
        "istio_requests_total",
        format!("istio_requests_total{{{labels}}} 3"),
    );
    let name = "istio_request_duration_milliseconds";
    check(&format!("{name}_sum"), format!("{name}_sum{{{labels}}} 47.7"));
    check(&format!("{name}_count"), format!("{name}_count{{{labels}}} 3"));
    let buckets = samples(&metrics, &format!("{name}_bucket"));
    assert_eq!(buckets.len(), 20);
    for bucket in [
        format!("{name}_bucket{{le=\"0.5\",{labels}}} 0"),
        format!("{name}_bucket{{le=\"10.0\",{labels}}} 0"),
        format!("{name}_bucket{{le=\"25.0\",{labels}}} 3"),
        format!("{name}_bucket{{le=\"3600000.0\",{labels}}} 3"),
        format!("{name}_bucket{{le=\"+Inf\",{labels}}} 3"),
    ] {
        assert!(buckets.contains(&bucket), "{bucket} is not in {buckets:#?}");
    }
    check(
        "istio_request_bytes_sum",
        format!("istio_request_bytes_sum{{{labels}}} 0.0"),
    );
    check(
        "istio_response_bytes_sum",
        format!("istio_response_bytes_sum{{{labels}}} 1074.0"),
    );
    check(
        "istio_response_bytes_count",
        format!("istio_response_bytes_count{{{labels}}} 3"),
    );
    assert!(samples(&metrics, "istio_request_messages_total").is_empty());
}

#[test]
fn a_call_counts_its_messages() {
    let metrics = metrics();
    metrics.record_request(&sample::call());
    let labels = format!(
        "{ENDS},request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"0\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\""
    );
    let check = |name: &str, value: u64| {
        assert_eq!(samples(&metrics, name), [format!("{name}{{{labels}}} {value}")]);
    };
    check("istio_requests_total", 1);
    check("istio_request_messages_total", 1);
    check("istio_response_messages_total", 30);
}

/// The labels of how one request went.
fn result(change: impl FnOnce(&mut RequestFlow)) -> String {
    let metrics = metrics();
    let mut flow = sample::request();
    change(&mut flow);
    metrics.record_request(&flow);
    let [line] = <[String; 1]>::try_from(samples(&metrics, "istio_requests_total")).unwrap();
    let (_, result) = line.split_once(",request_protocol=").unwrap();
    result.replace('"', "")
}

#[test]
fn how_a_request_went() {
    let check = |change: fn(&mut RequestFlow), expect: &str| assert_eq!(result(change), expect);
    check(
        |flow| flow.protocol = Protocol::Http11,
        "http,response_code=200,grpc_response_status=,response_flags=-,connection_security_policy=mutual_tls} 1",
    );
    check(
        |flow| (flow.status, flow.flag) = (None, ResponseFlag::DownstreamConnectionTermination),
        "http,response_code=0,grpc_response_status=,response_flags=DC,connection_security_policy=mutual_tls} 1",
    );
    check(
        |flow| (flow.protocol, flow.grpc_status) = (Protocol::Grpc, Some(14)),
        "grpc,response_code=200,grpc_response_status=14,response_flags=-,connection_security_policy=mutual_tls} 1",
    );
    check(
        |flow| (flow.protocol, flow.grpc_status) = (Protocol::Grpc, Some(4_000_000)),
        "grpc,response_code=200,grpc_response_status=unknown,response_flags=-,connection_security_policy=mutual_tls} 1",
    );
    check(
        |flow| flow.security = Security::Plaintext,
        "http,response_code=200,grpc_response_status=,response_flags=-,connection_security_policy=unknown} 1",
    );
}

#[test]
fn each_label_has_its_own_series_and_pods_share_theirs() {
    let metrics = metrics();
    let record = |change: &dyn Fn(&mut RequestFlow)| {
        let mut flow = sample::request();
        change(&mut flow);
        metrics.record_request(&flow);
    };
    // Another pod of the same Deployment, another path: nothing new.
    record(&|_| {});
    record(&|flow| flow.source.workload = Some(sample::workload("curl-other", "curl")));
    record(&|flow| flow.path = "/other".into());
    assert_eq!(samples(&metrics, "istio_requests_total").len(), 1);
    record(&|flow| flow.source.workload = Some(sample::workload("x", "x")));
    record(&|flow| flow.source.identity = Some(sample::identity("x")));
    record(&|flow| flow.destination.workload = None);
    record(&|flow| flow.destination.identity = None);
    record(&|flow| flow.service = None);
    record(&|flow| flow.status = Some(201));
    record(&|flow| flow.flag = ResponseFlag::NoRoute);
    record(&|flow| flow.security = Security::Kernel);
    assert_eq!(samples(&metrics, "istio_requests_total").len(), 9);
}

#[test]
fn too_many_series_share_one_for_each_kind_of_answer() {
    let metrics = metrics();
    let record = |nth: usize, status: u16| {
        let mut flow = sample::request();
        flow.source.workload = Some(sample::workload("x", &format!("app-{nth}")));
        flow.status = Some(status);
        metrics.record_request(&flow);
    };
    for nth in 0..MOST_SERIES {
        record(nth, 200);
    }
    assert_eq!(metrics.0.requests.snapshot().len(), MOST_SERIES);
    for status in 200..300 {
        record(MOST_SERIES, status);
    }
    record(MOST_SERIES + 1, 500);
    // One that is there goes on.
    record(0, 200);
    let all = metrics.0.requests.snapshot();
    assert_eq!(all.len(), MOST_SERIES + 2);
    let shared: Vec<_> = all
        .iter()
        .filter(|series| series.labels.source.workload.is_none())
        .map(|series| (series.labels.result.status, series.requests.load(Relaxed)))
        .collect();
    assert!(
        shared.contains(&(200, 100)) && shared.contains(&(500, 1)),
        "{shared:?}"
    );
    let first = sample::workload("x", "app-0");
    let mut flow = sample::request();
    flow.source.workload = Some(first);
    let table = metrics.0.requests.table.read().unwrap();
    assert_eq!(find(&table, &Key::of(&flow)).unwrap().requests.load(Relaxed), 2);
}

#[test]
fn series_of_workloads_that_left_are_dropped_when_they_were_scraped() {
    let requests = Requests::default();
    requests.record(&sample::request());
    let mut unknown = sample::request();
    (unknown.source.workload, unknown.destination.workload) = (None, None);
    requests.record(&unknown);
    let (curl, web) = (sample::workload("c", "curl"), sample::workload("w", "web"));
    let both: FxHashSet<_> = [end(Some(&*curl)), end(Some(&*web))].into_iter().collect();
    let one: FxHashSet<_> = [end(Some(&*curl))].into_iter().collect();
    let start = Instant::now();
    let check = |at: Duration, expect: usize| {
        requests.evict(start + at);
        assert_eq!(requests.snapshot().len(), expect, "{at:?}");
        assert_eq!(requests.series.load(Relaxed), expect);
    };
    let second = Duration::from_secs(1);
    requests.retain(&both, start);
    check(LINGER * 2, 2);
    requests.retain(&one, start);
    check(LINGER - second, 2);
    // It came back.
    requests.retain(&both, start);
    check(LINGER * 2, 2);
    requests.retain(&one, start);
    requests.retain(&one, start + LINGER);
    check(LINGER - second, 2);
    check(LINGER, 1);
}

#[test]
fn buckets() {
    let check = |thousandths: u64, bound: f64| {
        let histogram = Histogram::default();
        histogram.observe(1, thousandths);
        let (_, count, buckets) = histogram.read();
        let hit: Vec<_> = buckets
            .iter()
            .filter(|(_, count)| *count == 1)
            .map(|(bound, _)| *bound)
            .collect();
        assert_eq!((count, hit), (1, vec![bound]), "{thousandths}");
    };
    check(0, 0.5);
    check(500, 0.5);
    check(501, 1.0);
    check(1_000, 1.0);
    check(1_001, 5.0);
    check(3_600_000_000, 3_600_000.0);
    check(3_600_000_001, f64::INFINITY);
    check(u64::MAX, f64::INFINITY);
}

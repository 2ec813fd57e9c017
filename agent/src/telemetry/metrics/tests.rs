//! Golden series: names, labels, directions, eviction.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    mesh::{Action, Direction, FailureKind, Limit, Outcome, Party, Refusal, Scope, Security},
    telemetry::sample,
};

fn metrics() -> Metrics {
    Metrics::new("1.2.3", DroppedLines::default())
}

/// The sample lines whose name begins with `prefix`, sorted.
fn samples(metrics: &Metrics, prefix: &str) -> Vec<String> {
    let text = metrics.encode();
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(prefix))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

const OUTBOUND_LABELS: &str = "{reporter=\"source\",source_workload=\"curl\",source_canonical_service=\"curl\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"demo\",\
    source_principal=\"spiffe://cluster.local/ns/demo/sa/curl\",source_app=\"curl\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_service=\"web.demo.svc.cluster.local\",\
    destination_service_namespace=\"demo\",destination_service_name=\"web\",destination_workload=\"web\",\
    destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
    destination_workload_namespace=\"demo\",destination_principal=\"spiffe://cluster.local/ns/demo/sa/web\",\
    destination_app=\"web\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",\
    request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"}";

#[test]
fn a_connection_has_istios_names_and_labels() {
    let metrics = metrics();
    let flow = sample::outbound();
    let open = metrics.open(&flow);
    open.request(80);
    open.request(4);
    open.response(358);
    assert_eq!((open.request_total(), open.response_total()), (84, 358));
    let line = |name: &str, value: u64| format!("istio_tcp_{name}{OUTBOUND_LABELS} {value}");
    let sockets = |source: u64| {
        [
            "istio_tcp_sockets_open{reporter=\"destination\"} 0".to_owned(),
            format!("istio_tcp_sockets_open{{reporter=\"source\"}} {source}"),
        ]
    };
    let expect = |closed| {
        let mut lines = vec![
            line("connections_closed_total", closed),
            line("connections_opened_total", 1),
            line("received_bytes_total", 84),
            line("sent_bytes_total", 358),
        ];
        lines.extend(sockets(1 - closed));
        lines.sort();
        lines
    };
    assert_eq!(samples(&metrics, "istio_tcp"), expect(0));
    open.close(&flow);
    assert_eq!(samples(&metrics, "istio_tcp"), expect(1));
}

#[test]
fn sent_is_server_to_client_whichever_side_reports() {
    let metrics = metrics();
    for flow in [sample::outbound(), sample::inbound()] {
        let open = metrics.open(&flow);
        open.request(84);
        open.response(358);
    }
    let check = |name: &str, value: &str| {
        let lines = samples(&metrics, name);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.ends_with(value)), "{lines:?}");
        assert!(lines[0].contains("reporter=\"destination\"") && lines[1].contains("reporter=\"source\""));
    };
    check("istio_tcp_received_bytes_total", " 84");
    check("istio_tcp_sent_bytes_total", " 358");
}

#[test]
fn what_is_not_known_is_unknown_and_plaintext_has_no_principal() {
    let metrics = metrics();
    let mut flow = sample::inbound();
    flow.security = Security::Plaintext;
    flow.source.workload = None;
    drop(metrics.open(&flow));
    let lines = samples(&metrics, "istio_tcp_connections_opened_total");
    assert_eq!(
        lines,
        [
            "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"unknown\",\
          source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\",\
          source_workload_namespace=\"unknown\",source_principal=\"unknown\",source_app=\"unknown\",\
          source_version=\"unknown\",source_cluster=\"unknown\",destination_service=\"unknown\",\
          destination_service_namespace=\"unknown\",destination_service_name=\"unknown\",\
          destination_workload=\"web\",destination_canonical_service=\"web\",\
          destination_canonical_revision=\"v1\",destination_workload_namespace=\"demo\",\
          destination_principal=\"unknown\",destination_app=\"web\",destination_version=\"v1\",\
          destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",response_flags=\"-\",\
          connection_security_policy=\"unknown\"} 1"
        ]
    );
}

#[test]
fn a_refusal_counts_as_failed_and_as_nothing_else() {
    let metrics = metrics();
    let mut flow = sample::outbound();
    flow.outcome = Outcome::Refused(Refusal::NotAllowed(Default::default()));
    metrics.refused(&flow);
    flow.outcome = Outcome::Failed(FailureKind::Identity, "another".to_owned());
    metrics.refused(&flow);
    metrics.refused(&flow);
    let failed = samples(&metrics, "istio_tcp_connections_failed_total");
    assert_eq!(failed.len(), 2);
    assert!(
        failed[0].contains("response_flags=\"DENY\"") && failed[0].ends_with(" 1"),
        "{failed:?}"
    );
    assert!(
        failed[1].contains("response_flags=\"IDENTITY_ERROR\"") && failed[1].ends_with(" 2"),
        "{failed:?}"
    );
    assert!(samples(&metrics, "istio_tcp_connections_opened_total").is_empty());
    assert!(samples(&metrics, "istio_tcp_connections_closed_total").is_empty());
    assert!(samples(&metrics, "istio_tcp_sent_bytes_total").is_empty());
}

#[test]
fn a_connection_that_a_policy_cut_off_is_closed_with_its_flags() {
    let metrics = metrics();
    let mut flow = sample::inbound();
    let open = metrics.open(&flow);
    flow.outcome = Outcome::Refused(Refusal::NotAllowed(Default::default()));
    open.close(&flow);
    let closed = samples(&metrics, "istio_tcp_connections_closed_total");
    let by_flags = |flags: &str| {
        let label = format!("response_flags=\"{flags}\"");
        closed
            .iter()
            .find(|line| line.contains(&label))
            .map(|line| line.rsplit(' ').next().unwrap_or_default())
    };
    assert_eq!(
        (by_flags("DENY"), by_flags("-")),
        (Some("1"), Some("0")),
        "{closed:?}"
    );
}

#[test]
fn a_connection_that_is_dropped_is_closed() {
    let metrics = metrics();
    drop(metrics.open(&sample::inbound()));
    let closed = samples(&metrics, "istio_tcp_connections_closed_total");
    assert!(closed.len() == 1 && closed[0].ends_with(" 1"), "{closed:?}");
    assert!(
        samples(&metrics, "istio_tcp_sockets_open")
            .iter()
            .all(|line| line.ends_with(" 0"))
    );
}

#[test]
fn pods_of_one_deployment_share_a_series() {
    let metrics = metrics();
    let mut flow = sample::outbound();
    drop(metrics.open(&flow));
    flow.source.workload = Some(sample::workload("curl-other", "curl"));
    drop(metrics.open(&flow));
    let opened = samples(&metrics, "istio_tcp_connections_opened_total");
    assert!(opened.len() == 1 && opened[0].ends_with(" 2"), "{opened:?}");
}

#[test]
fn series_of_workloads_that_left_are_dropped_after_a_while() {
    let metrics = metrics();
    let flow = sample::outbound();
    let (curl, web) = (
        sample::workload("curl-new", "curl"),
        sample::workload("web-5d4c", "web"),
    );
    let open = metrics.open(&flow);
    let count = || samples(&metrics, "istio_tcp_connections_opened_total").len();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let retain = |live: &[&Arc<Workload>], seconds| metrics.retain(live.iter().copied(), at(seconds));
    let evict = |seconds| metrics.0.connections.evict(at(seconds));
    // A pod that was replaced by another of its Deployment is not gone.
    retain(&[&curl, &web], 0);
    evict(1000);
    assert_eq!(count(), 1);
    // An open connection keeps its series.
    retain(&[&web], 2000);
    evict(3000);
    assert_eq!(count(), 1);
    // A workload that comes back starts the wait again.
    open.close(&flow);
    retain(&[&curl, &web], 3001);
    retain(&[&web], 3002);
    retain(&[&web], 3100);
    evict(3181);
    assert_eq!(count(), 1);
    evict(3182);
    assert_eq!(count(), 0);
}

#[test]
fn series_of_unknown_ends_stay() {
    let metrics = metrics();
    let flow = Flow::new(Direction::Outbound, Default::default(), Default::default());
    metrics.refused(&flow);
    let start = Instant::now();
    let none: [&Arc<Workload>; 0] = [];
    metrics.retain(none, start);
    metrics.0.connections.evict(start + Duration::from_secs(10_000));
    assert_eq!(samples(&metrics, "istio_tcp_connections_failed_total").len(), 1);
}

#[test]
fn too_many_series_share_one() {
    let metrics = metrics();
    let mut flow = sample::outbound();
    for n in 0..10_100 {
        flow.source.workload = Some(sample::workload("pod", &format!("app-{n}")));
        drop(metrics.open(&flow));
    }
    let opened = samples(&metrics, "istio_tcp_connections_opened_total");
    assert_eq!(opened.len(), 10_001);
    let shared: Vec<_> = opened
        .iter()
        .filter(|line| line.contains("source_workload=\"unknown\""))
        .collect();
    assert!(shared.len() == 1 && shared[0].ends_with(" 100"), "{shared:?}");
}

#[test]
fn the_other_metrics() {
    let metrics = metrics();
    metrics.proxies(3, 1);
    metrics.proxy_started();
    metrics.proxy_started();
    metrics.proxy_stopped();
    metrics.pods(4, 3);
    metrics.mesh_loaded(UNIX_EPOCH + Duration::from_millis(1_500));
    metrics.mesh_rejected();
    assert_eq!(
        samples(&metrics, "istio_build"),
        ["istio_build{component=\"weft\",tag=\"1.2.3\"} 1"]
    );
    assert_eq!(
        samples(&metrics, "workload_manager"),
        [
            "workload_manager_active_proxy_count 3",
            "workload_manager_pending_proxy_count 1",
            "workload_manager_proxies_started_total 2",
            "workload_manager_proxies_stopped_total 1",
        ]
    );
    let own = samples(&metrics, "weft");
    let limits = |line: &&String| !line.starts_with("weft_limit_rejections");
    assert_eq!(
        own.iter().filter(limits).collect::<Vec<_>>(),
        [
            "weft_access_log_dropped_total 0",
            "weft_captured_pods 3",
            "weft_expected_pods 4",
            "weft_mesh_loaded_timestamp_seconds 1.5",
            "weft_mesh_rejected_total 1",
            "weft_nri_connected 0",
        ]
    );
}

#[test]
fn a_controller_is_there_or_was_heard_of_and_without_one_nothing_is_said() {
    let metrics = metrics();
    assert_eq!(samples(&metrics, "weft_controller"), Vec::<String>::new());
    let heard = UNIX_EPOCH + std::time::Duration::from_millis(1500);
    metrics.watch_controller(Box::new(move || (false, Some(heard))));
    assert_eq!(
        samples(&metrics, "weft_controller"),
        [
            "weft_controller_connected 0",
            "weft_controller_heard_timestamp_seconds 1.5"
        ]
    );
}

#[test]
fn every_limit_is_counted_from_zero_and_elsewhere_too() {
    let metrics = metrics();
    let lines = samples(&metrics, "weft_limit_rejections_total");
    assert_eq!(lines.len(), Limit::ALL.len());
    assert!(lines.iter().all(|line| line.ends_with(" 0")), "{lines:#?}");
    metrics.count_limits(Box::new(|| {
        [(Limit::BufferedBytes, 3), (Limit::PeerBufferedBytes, 4)]
    }));
    let mut flow = Flow::new(Direction::Inbound, Party::default(), Party::default());
    flow.outcome = Refusal::OverLimit(Limit::PeerHandshakes).into();
    metrics.refused(&flow);
    flow.outcome = Refusal::NoMesh.into();
    metrics.refused(&flow);
    let lines = samples(&metrics, "weft_limit_rejections_total");
    for (label, count) in [
        ("peer_handshakes", 1),
        ("buffered_bytes", 3),
        ("peer_buffered_bytes", 4),
        ("sockets", 0),
    ] {
        let line = format!("weft_limit_rejections_total{{limit=\"{label}\"}} {count}");
        assert!(lines.contains(&line), "{line} is not in {lines:#?}");
    }
}

#[test]
fn dns_queries_have_istios_names_and_labels() {
    let metrics = metrics();
    let curl = sample::workload("curl-1", "curl");
    let labels = DnsLabels::new("aaaa", "tcp", Some(&curl));
    metrics.dns_request(&labels);
    metrics.dns_request(&labels);
    metrics.dns_upstream_request(&labels);
    metrics.dns_upstream_failure(&labels);
    metrics.dns_upstream_duration(&labels, Duration::from_millis(7));
    let labels = "request_query_type=\"aaaa\",request_protocol=\"tcp\",source_canonical_service=\"curl\",\
                  source_canonical_revision=\"v1\"";
    let lines = samples(&metrics, "istio_dns");
    let has = |name: &str, value: &str| lines.contains(&format!("istio_dns_{name}{{{labels}}} {value}"));
    assert!(has("requests_total", "2"), "{lines:#?}");
    assert!(
        has("upstream_requests_total", "1") && has("upstream_failures_total", "1"),
        "{lines:#?}"
    );
    assert!(has("upstream_request_duration_seconds_count", "1"), "{lines:#?}");
    let bucket = |bound: &str, count: u32| {
        let line =
            format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"{bound}\",{labels}}} {count}");
        assert!(lines.contains(&line), "{line} is not in {lines:#?}");
    };
    bucket("0.005", 0);
    bucket("0.01", 1);
    bucket("+Inf", 1);
}

#[test]
fn too_many_dns_series_share_one() {
    let metrics = metrics();
    for n in 0..10_050 {
        let source = sample::workload("pod", &format!("app-{n}"));
        let labels = DnsLabels::new("a", "udp", Some(&source));
        metrics.dns_request(&labels);
        metrics.dns_upstream_request(&labels);
    }
    for name in ["istio_dns_requests_total", "istio_dns_upstream_requests_total"] {
        let lines = samples(&metrics, name);
        assert_eq!(lines.len(), 10_001);
        let shared: Vec<_> = lines
            .iter()
            .filter(|line| line.contains("source_canonical_service=\"unknown\""))
            .collect();
        assert!(shared.len() == 1 && shared[0].ends_with(" 50"), "{shared:?}");
    }
}

/// OpenMetrics: the samples of a family stand together, under one HELP and one TYPE, and the text ends in EOF.
#[test]
fn the_text_is_openmetrics() {
    let metrics = metrics();
    drop(metrics.open(&sample::outbound()));
    drop(metrics.open(&sample::inbound()));
    let labels = DnsLabels::new("a", "udp", None);
    metrics.dns_request(&labels);
    metrics.dns_upstream_request(&labels);
    metrics.dns_upstream_failure(&labels);
    metrics.dns_upstream_duration(&labels, Duration::from_millis(20));
    let text = metrics.encode();
    assert!(text.ends_with("# EOF\n"));
    let (mut family, mut seen) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type line has a name and a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!seen.contains(&name.to_owned()), "{name} comes twice");
            family = if kind == "counter" {
                format!("{name}_total")
            } else {
                name.to_owned()
            };
            seen.push(name.to_owned());
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|part| name.strip_suffix(part));
            assert!(name == family || of_histogram == Some(&family), "{line}");
        }
    }
    assert!(seen.len() >= 19, "{seen:?}");
}

#[test]
fn values_with_quotes_and_line_feeds_are_escaped() {
    let metrics = metrics();
    let mut flow = sample::outbound();
    flow.source.workload = Some(sample::workload("pod", "web"));
    flow.source.workload = flow.source.workload.map(|workload| {
        let mut workload = (*workload).clone();
        workload.canonical_revision = "a\"b\\c\nd".into();
        Arc::new(workload)
    });
    drop(metrics.open(&flow));
    let opened = samples(&metrics, "istio_tcp_connections_opened_total");
    assert!(opened[0].contains(r#"source_version="a\"b\\c\nd""#), "{opened:?}");
}

#[test]
fn counts_from_many_threads_add_up() {
    let metrics = metrics();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let flow = sample::outbound();
                    let open = metrics.open(&flow);
                    open.request(1);
                    open.close(&flow);
                }
            });
        }
    });
    for name in ["connections_opened", "connections_closed", "received_bytes"] {
        let lines = samples(&metrics, &format!("istio_tcp_{name}_total"));
        assert!(lines.len() == 1 && lines[0].ends_with(" 2000"), "{lines:?}");
    }
}

#[test]
fn dry_run_matches_are_counted_by_policy_and_bounded() {
    let metrics = metrics();
    let policy = |name: &str, action| Policy {
        key: sample::policy(name),
        scope: Scope::Namespace,
        action,
        rules: Vec::new(),
        dry_run: true,
    };
    metrics.dry_run_matched(&policy("a", Action::Deny));
    metrics.dry_run_matched(&policy("a", Action::Deny));
    metrics.dry_run_matched(&policy("b", Action::Allow));
    let name = "weft_dry_run_matches_total";
    assert_eq!(
        samples(&metrics, name),
        [
            format!("{name}{{namespace=\"demo\",policy=\"a\",action=\"DENY\"}} 2"),
            format!("{name}{{namespace=\"demo\",policy=\"b\",action=\"ALLOW\"}} 1"),
        ]
    );
    for i in 0..2_000 {
        metrics.dry_run_matched(&policy(&format!("p{i}"), Action::Deny));
    }
    let all = samples(&metrics, name);
    assert_eq!(all.len(), 1_001);
    let rest = format!("{name}{{namespace=\"unknown\",policy=\"unknown\",action=\"DENY\"}} 1002");
    assert!(all.contains(&rest), "{:?}", all.last());
}

//! Golden access lines, and the filter.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Method;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::mesh::{
    FailureKind, MtlsMode, MtlsSetting, Refusal, Scope, Security,
    http::{Protocol, RequestFlow, ResponseFlag},
};
use crate::telemetry::sample;

/// Collects what a subscriber writes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// What `record` logs under `filter`.
fn logged(filter: &str, format: LogFormat, record: impl FnOnce()) -> String {
    let written = Lines::default();
    let filter = parse(filter).expect("the filter is one");
    let subscriber = Registry::default()
        .with(filter)
        .with(lines(format, written.clone()));
    tracing::subscriber::with_default(subscriber, record);
    let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    String::from_utf8(bytes).expect("lines are UTF-8")
}

/// The one text line of `flow`, without its time.
fn check(flow: &Flow, expect: &str) {
    let text = logged("info", LogFormat::Text, || access(flow));
    let line = text.strip_suffix('\n').expect("a line ends");
    assert!(!line.contains('\n'), "more than one line: {line}");
    let (time, rest) = line.split_once(' ').expect("a line begins with its time");
    assert!(time.ends_with('Z'), "{time} is not in UTC");
    assert_eq!(rest.trim_start(), expect);
}

#[test]
fn complete_outbound_through_a_tunnel() {
    check(
        &sample::outbound(),
        "INFO access: connection complete src.addr=10.244.1.2:41000 src.workload=\"curl-7f9c\" \
         src.namespace=\"demo\" src.identity=\"spiffe://cluster.local/ns/demo/sa/curl\" \
         src.cluster=\"Kubernetes\" dst.addr=10.244.2.2:15008 dst.hbone_addr=10.244.2.2:8080 \
         dst.service=\"web.demo.svc.cluster.local\" dst.workload=\"web-5d4c\" dst.namespace=\"demo\" \
         dst.identity=\"spiffe://cluster.local/ns/demo/sa/web\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" bytes_sent=84 bytes_recv=358 duration=\"15ms\"",
    );
}

#[test]
fn complete_inbound_has_the_bytes_the_other_way_round_and_the_policy() {
    check(
        &sample::inbound(),
        "INFO access: connection complete src.addr=10.244.1.2:41000 src.workload=\"curl-7f9c\" \
         src.namespace=\"demo\" src.identity=\"spiffe://cluster.local/ns/demo/sa/curl\" \
         src.cluster=\"Kubernetes\" dst.addr=10.244.2.2:8080 dst.workload=\"web-5d4c\" \
         dst.namespace=\"demo\" dst.identity=\"spiffe://cluster.local/ns/demo/sa/web\" \
         dst.cluster=\"Kubernetes\" direction=\"inbound\" policy=demo/allow-curl bytes_sent=358 \
         bytes_recv=84 duration=\"15ms\"",
    );
}

#[test]
fn refused_says_which_policy() {
    let mut flow = sample::inbound();
    flow.outcome = Outcome::Refused(Refusal::DeniedBy(sample::policy("deny-curl")));
    // The one that had allowed it, before the policies changed.
    flow.policy = Some(sample::policy("allow-curl"));
    (flow.request_bytes, flow.response_bytes) = (0, 0);
    check(
        &flow,
        "ERROR access: connection complete src.addr=10.244.1.2:41000 src.workload=\"curl-7f9c\" \
         src.namespace=\"demo\" src.identity=\"spiffe://cluster.local/ns/demo/sa/curl\" \
         src.cluster=\"Kubernetes\" dst.addr=10.244.2.2:8080 dst.workload=\"web-5d4c\" \
         dst.namespace=\"demo\" dst.identity=\"spiffe://cluster.local/ns/demo/sa/web\" \
         dst.cluster=\"Kubernetes\" direction=\"inbound\" policy=demo/deny-curl bytes_sent=0 bytes_recv=0 \
         duration=\"15ms\" error=\"denied by policy demo/deny-curl\"",
    );
}

#[test]
fn refused_by_what_is_missing_or_does_not_allow() {
    let line = |refusal: Refusal| {
        let mut flow = sample::inbound();
        flow.policy = Some(sample::policy("allowed-before"));
        flow.outcome = Outcome::Refused(refusal);
        logged("info", LogFormat::Text, || access(&flow))
    };
    let missing = line(Refusal::PolicyMissing(sample::policy("gone")));
    assert!(missing.contains(" policy=demo/gone "), "{missing}");
    let keys = [sample::policy("a"), sample::policy("b")];
    let in_scope = line(Refusal::NotAllowed(keys.iter().collect()));
    assert!(
        in_scope.contains("error=\"no ALLOW policy matched: demo/a, demo/b\""),
        "{in_scope}"
    );
    assert!(!in_scope.contains(" policy="), "{in_scope}");
}

#[test]
fn plaintext_has_no_identities_and_unknown_ends_leave_no_fields() {
    let mut flow = sample::inbound();
    flow.security = Security::Plaintext;
    flow.source.workload = None;
    flow.policy = None;
    let setting = MtlsSetting {
        mode: MtlsMode::Strict,
        scope: Scope::Namespace,
        key: sample::policy("all"),
    };
    flow.outcome = Outcome::Refused(Refusal::PlaintextToStrict(8080, setting));
    check(
        &flow,
        "ERROR access: connection complete src.addr=10.244.1.2:41000 dst.addr=10.244.2.2:8080 \
         dst.workload=\"web-5d4c\" dst.namespace=\"demo\" dst.cluster=\"Kubernetes\" direction=\"inbound\" \
         bytes_sent=358 bytes_recv=84 duration=\"15ms\" error=\"mutual TLS is required (STRICT) on port 8080 \
         by peer authentication demo/all (namespace)\"",
    );
}

#[test]
fn failed_has_the_whole_chain_and_cannot_forge_a_line() {
    let source = Party {
        addr: Some(SocketAddr::from(([10, 244, 1, 2], 41000))),
        ..Party::default()
    };
    let mut flow = Flow::new(Direction::Outbound, source, Party::default());
    let error = "connect to 10.0.0.1:1: refused\n2026 INFO access: forged \u{1b}[31m".to_owned();
    flow.outcome = Outcome::Failed(FailureKind::Connect, error);
    check(
        &flow,
        "ERROR access: connection complete src.addr=10.244.1.2:41000 direction=\"outbound\" bytes_sent=0 \
         bytes_recv=0 duration=\"0ms\" \
         error=\"connect to 10.0.0.1:1: refused\\n2026 INFO access: forged \\u{1b}[31m\"",
    );
}

#[test]
fn json_has_the_same_fields_flat() {
    let mut flow = sample::outbound();
    flow.outcome = Outcome::Failed(FailureKind::Tls, "handshake: bad certificate".to_owned());
    flow.policy = Some(sample::policy("p"));
    let text = logged("info", LogFormat::Json, || access(&flow));
    let mut line: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    let time = line.as_object_mut().and_then(|line| line.remove("timestamp"));
    assert!(time.is_some(), "no timestamp in {text}");
    assert_eq!(
        line,
        serde_json::json!({
            "level": "ERROR", "target": "access", "message": "connection complete",
            "src.addr": "10.244.1.2:41000", "src.workload": "curl-7f9c", "src.namespace": "demo",
            "src.identity": "spiffe://cluster.local/ns/demo/sa/curl", "src.cluster": "Kubernetes",
            "dst.addr": "10.244.2.2:15008", "dst.hbone_addr": "10.244.2.2:8080",
            "dst.service": "web.demo.svc.cluster.local", "dst.workload": "web-5d4c",
            "dst.namespace": "demo", "dst.identity": "spiffe://cluster.local/ns/demo/sa/web",
            "dst.cluster": "Kubernetes", "direction": "outbound", "policy": "demo/p",
            "bytes_sent": 84, "bytes_recv": 358, "duration": "15ms", "error": "handshake: bad certificate",
        })
    );
}

/// The one text line of a request, without its time.
fn check_request(flow: &RequestFlow, expect: &str) {
    let text = logged("info", LogFormat::Text, || request(flow));
    let (_, rest) = text.split_once(' ').expect("a line begins with its time");
    assert_eq!(rest.trim_start(), format!("{expect}\n"));
}

#[test]
fn a_request_that_was_answered() {
    check_request(
        &sample::request(),
        "INFO access: request complete src.addr=10.244.1.2:41000 src.workload=\"curl-7f9c\" \
         src.namespace=\"demo\" src.identity=\"spiffe://cluster.local/ns/demo/sa/curl\" \
         src.cluster=\"Kubernetes\" dst.addr=10.244.2.2:15008 dst.hbone_addr=10.244.2.2:8080 \
         dst.service=\"web.demo.svc.cluster.local\" dst.workload=\"web-5d4c\" dst.namespace=\"demo\" \
         dst.identity=\"spiffe://cluster.local/ns/demo/sa/web\" dst.cluster=\"Kubernetes\" method=\"GET\" \
         authority=\"web:80\" path=\"/cart\" protocol=\"HTTP/2\" route=\"HTTPRoute demo/web rule 0\" \
         response_code=200 response_flags=\"-\" bytes_recv=0 bytes_sent=358 duration=\"15ms\" attempts=2 \
         trace_id=abababababababababababababababab request_id=\"r-1\" policy=demo/allow-curl",
    );
}

#[test]
fn a_call_has_messages_and_a_status() {
    let line = logged("info", LogFormat::Text, || request(&sample::call()));
    for part in [
        " protocol=\"gRPC\" ",
        " response_code=200 grpc_status=0 response_flags=\"-\" ",
        " messages_recv=1 messages_sent=30 ",
    ] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_request_that_was_refused_says_why() {
    let mut flow = RequestFlow::new(sample::request().source, Protocol::Http11, Method::POST);
    (flow.status, flow.flag) = (Some(403), ResponseFlag::Unauthorized);
    flow.policy = Some(sample::policy("deny"));
    flow.error = Some("denied by policy demo/deny".into());
    flow.path = "/\u{1b}[31m\n2026 INFO access: forged".into();
    // Only claimed: nothing has proved it.
    check_request(
        &flow,
        "ERROR access: request complete src.addr=10.244.1.2:41000 src.workload=\"curl-7f9c\" \
         src.namespace=\"demo\" src.cluster=\"Kubernetes\" method=\"POST\" authority=\"\" \
         path=\"/\\u{1b}[31m\\n2026 INFO access: forged\" protocol=\"HTTP/1.1\" response_code=403 \
         response_flags=\"UAEX\" bytes_recv=0 bytes_sent=0 duration=\"0ms\" attempts=0 policy=demo/deny \
         error=\"denied by policy demo/deny\"",
    );
}

#[test]
fn levels_of_requests() {
    for flag in ResponseFlag::ALL {
        let mut flow = sample::request();
        flow.flag = flag;
        flow.status = None;
        let line = logged("info", LogFormat::Text, || request(&flow));
        let failed = !matches!(flag.label(), "-" | "DI");
        assert_eq!(line.contains("ERROR access:"), failed, "{line}");
        assert!(
            line.contains(&format!(" response_flags=\"{}\" ", flag.label())),
            "{line}"
        );
        assert!(!line.contains("response_code"), "{line}");
    }
}

#[test]
fn a_client_cannot_make_long_lines() {
    let mut flow = sample::request();
    flow.path = format!("/{}", "\u{e9}".repeat(5000)).into();
    let line = logged("info", LogFormat::Text, || request(&flow));
    assert!(line.len() < 2500, "{}", line.len());
    assert!(line.contains("\u{e9}... (10001 bytes)\""), "{line}");
}

#[test]
fn requests_in_json() {
    let text = logged("info", LogFormat::Json, || request(&sample::call()));
    let mut line: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    line.as_object_mut().and_then(|line| line.remove("timestamp"));
    assert_eq!(
        line,
        serde_json::json!({
            "level": "INFO", "target": "access", "message": "request complete",
            "src.addr": "10.244.1.2:41000", "src.workload": "curl-7f9c", "src.namespace": "demo",
            "src.identity": "spiffe://cluster.local/ns/demo/sa/curl", "src.cluster": "Kubernetes",
            "dst.addr": "10.244.2.2:15008", "dst.hbone_addr": "10.244.2.2:8080",
            "dst.service": "web.demo.svc.cluster.local", "dst.workload": "web-5d4c",
            "dst.namespace": "demo", "dst.identity": "spiffe://cluster.local/ns/demo/sa/web",
            "dst.cluster": "Kubernetes", "method": "POST", "authority": "web:80", "path": "/shop.Cart/Watch",
            "protocol": "gRPC", "route": "HTTPRoute demo/web rule 0", "response_code": 200, "grpc_status": 0,
            "response_flags": "-", "bytes_recv": 0, "bytes_sent": 358, "messages_recv": 1,
            "messages_sent": 30, "duration": "15ms", "attempts": 2,
            "trace_id": "abababababababababababababababab", "request_id": "r-1", "policy": "demo/allow-curl",
        })
    );
}

#[test]
fn opened_is_a_debug_line_without_an_end() {
    assert_eq!(
        logged("info", LogFormat::Text, || opened(&sample::outbound())),
        ""
    );
    let line = logged("debug", LogFormat::Text, || opened(&sample::outbound()));
    assert!(
        line.contains("DEBUG access: connection opened src.addr=10.244.1.2:41000 "),
        "{line}"
    );
    assert!(line.ends_with("direction=\"outbound\"\n"), "{line}");
}

#[test]
fn an_access_line_does_not_repeat_the_span_it_is_logged_in() {
    let line = logged("debug", LogFormat::Text, || {
        let span = tracing::info_span!("connection", peer = "10.0.0.1");
        span.in_scope(|| access(&sample::outbound()));
    });
    assert!(line.contains("INFO access: connection complete"), "{line}");
    assert!(!line.contains("peer="), "{line}");
}

#[test]
fn the_access_log_can_be_silenced_alone() {
    assert_eq!(
        logged("info,access=off", LogFormat::Text, || access(&sample::outbound())),
        ""
    );
}

#[test]
fn filters() {
    let check = |filter: &str, good: bool| assert_eq!(parse(filter).is_ok(), good, "{filter}");
    for filter in [
        "info",
        "INFO",
        "off",
        "info,weft=debug",
        "weft::hbone=trace, access=off",
        "[connection]=debug",
    ] {
        check(filter, true);
    }
    // Each of these would be taken for a target, or for nothing, and silence the log.
    for filter in [
        "verbose",
        "",
        "info,",
        "debg,weft=info",
        "weft=loud",
        "=",
        "\u{0}",
    ] {
        check(filter, false);
    }
}

#[test]
fn the_filter_changes_while_running() {
    let written = Lines::default();
    let (layer, handle) = reload::Layer::new(parse("info").expect("a filter"));
    let filter = LogFilter(handle);
    let subscriber = Registry::default()
        .with(layer)
        .with(lines(LogFormat::Text, written.clone()));
    tracing::subscriber::with_default(subscriber, || {
        tracing::debug!("before");
        filter.set("debug").expect("a filter");
        tracing::debug!("after");
        assert!(filter.set("verbose").is_err());
        assert_eq!(filter.current(), "debug");
        tracing::debug!("still");
    });
    let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let text = String::from_utf8(bytes).expect("UTF-8");
    let messages: Vec<_> = text.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(messages, ["after", "still"]);
}

#[test]
fn a_slow_reader_loses_lines_and_they_are_counted() {
    /// Does not write before it is let.
    struct Stalled(std::sync::mpsc::Receiver<()>);
    impl io::Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go, stalled) = std::sync::mpsc::sync_channel::<()>(0);
    let builder = NonBlockingBuilder::default().buffered_lines_limit(4).lossy(true);
    let (writer, guard) = builder.finish(Stalled(stalled));
    let dropped = DroppedLines(Some(writer.error_counter()));
    let subscriber = Registry::default().with(lines(LogFormat::Text, writer));
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..20 {
            access(&sample::outbound());
        }
    });
    // Four lines wait and the writer may hold a fifth.
    assert!((15..=16).contains(&dropped.count()), "{}", dropped.count());
    drop(go);
    drop(guard);
}

#[test]
fn a_duration_of_years_is_printed() {
    let mut flow = sample::outbound();
    flow.duration = Duration::MAX;
    let line = logged("info", LogFormat::Text, || access(&flow));
    assert!(line.contains("duration=\"18446744073709551615999ms\""), "{line}");
}

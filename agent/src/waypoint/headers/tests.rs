//! What the next hop gets: no claims of the client, and a trace that goes on.

use proptest::prelude::*;

use super::*;
use crate::mesh::http::TraceId;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// Names and values, sorted.
fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut pairs: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    pairs.sort();
    pairs
}

#[test]
fn hop_by_hop() {
    let check = |sent: &[(&str, &str)], expect: &[(&str, &str)], upgrade: Option<&str>| {
        let mut left = headers(sent);
        let asked = strip_hop_by_hop(&mut left);
        assert_eq!(pairs(&left), pairs(&headers(expect)), "{sent:?}");
        assert_eq!(
            asked.as_ref().map(|value| value.to_str().unwrap()),
            upgrade,
            "{sent:?}"
        );
    };
    check(&[("a", "1"), ("a", "2")], &[("a", "1"), ("a", "2")], None);
    check(
        &[
            ("connection", "close, X-Own ,,\u{e9}"),
            ("connection", "y"),
            ("x-own", "1"),
            ("y", "2"),
            ("z", "3"),
        ],
        &[("z", "3")],
        None,
    );
    check(
        &[
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x"),
        ],
        &[("trailer", "x")],
        None,
    );
    check(&[("te", "gzip, Trailers")], &[("te", "trailers")], None);
    check(
        &[("connection", "TE"), ("te", "trailers")],
        &[("te", "trailers")],
        None,
    );
    check(&[("te", "gzip")], &[], None);
    check(
        &[("connection", "Upgrade"), ("upgrade", "websocket")],
        &[],
        Some("websocket"),
    );
    // Meant for nobody who is connected to us.
    check(&[("upgrade", "websocket")], &[], None);
    check(
        &[
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
        ],
        &[],
        Some("h2c"),
    );
    // Nobody removes what frames the message, or says whom it is for.
    check(
        &[
            ("connection", "host, content-length"),
            ("host", "a"),
            ("content-length", "5"),
        ],
        &[("host", "a"), ("content-length", "5")],
        None,
    );
}

#[test]
fn who_the_client_is() {
    let by: SpiffeId = "spiffe://cluster.local/ns/demo/sa/waypoint".parse().unwrap();
    let curl: SpiffeId = "spiffe://cluster.local/ns/demo/sa/curl".parse().unwrap();
    let check = |sent: &[(&str, &str)], identity: Option<&SpiffeId>, ip: &str, expect: &[(&str, &str)]| {
        let mut left = headers(sent);
        let client = Client {
            by: &by,
            identity,
            ip: ip.parse().unwrap(),
            scheme: "http",
        };
        write_client(&mut left, &client);
        assert_eq!(pairs(&left), pairs(&headers(expect)), "{sent:?}");
    };
    let own = [
        (
            "x-forwarded-client-cert",
            "By=spiffe://cluster.local/ns/demo/sa/waypoint;URI=spiffe://cluster.local/ns/demo/sa/curl",
        ),
        ("x-forwarded-for", "10.0.0.7"),
        ("x-forwarded-proto", "http"),
    ];
    check(&[], Some(&curl), "10.0.0.7", &own);
    let lies = [
        (
            "X-Forwarded-Client-Cert",
            "URI=spiffe://cluster.local/ns/demo/sa/admin",
        ),
        ("x-forwarded-client-cert", "By=x"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("x-forwarded-for", "::1"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("x-envoy-external-address", "127.0.0.1"),
        ("X_Forwarded_For", "127.0.0.1"),
        ("x-forwarded_client-cert", "URI=x"),
        ("x_forwarded_proto", "https"),
        ("x-forwarded-proto", "javascript"),
    ];
    check(&lies, Some(&curl), "10.0.0.7", &own);
    check(
        &[("x-forwarded-proto", "https"), ("x_other", "1")],
        None,
        "fd00::7",
        &[
            ("x-forwarded-for", "fd00::7"),
            ("x-forwarded-proto", "https"),
            ("x_other", "1"),
        ],
    );
}

#[test]
fn ids_of_requests() {
    let check = |sent: &[&str], kept: bool| {
        let sent: Vec<_> = sent.iter().map(|id| ("x-request-id", *id)).collect();
        let mut left = headers(&sent);
        let id = request_id(&mut left, u128::MAX);
        assert_eq!(left.get_all(&X_REQUEST_ID).iter().collect::<Vec<_>>(), [&id]);
        let expect = if kept {
            sent[0].1
        } else {
            "ffffffff-ffff-4fff-bfff-ffffffffffff"
        };
        assert_eq!(id, expect, "{sent:?}");
    };
    let longest = "a".repeat(128);
    for id in [
        "x",
        "0b3f2b1e-7f0a-4ad2-9c59-4c1de5c1f3aa",
        "Root=1-67891233-abc",
        "a:b/c+d_e.f~",
        &longest,
    ] {
        check(&[id], true);
    }
    for id in [
        "",
        " x y",
        "a\"b",
        "a\u{e9}",
        "<script>",
        "a,b",
        &format!("{longest}a"),
    ] {
        check(&[id], false);
    }
    check(&[], false);
    check(&["a", "b"], false);
    assert_eq!(
        request_id(&mut HeaderMap::new(), 0),
        "00000000-0000-4000-8000-000000000000"
    );
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
/// The waypoint's.
const OWN: &str = "00000000000000aa";
/// A trace that begins here.
const FRESH: &str = "000000000000000000000000000000ff";

/// What the app gets of a trace, and whether it is recorded.
fn check_trace(sent: &[(&str, &str)], expect: &[(&str, &str)], id: &str, sampled: bool) {
    let mut left = headers(sent);
    let trace = continue_trace(&mut left, (0xff, 0xaa), false);
    let put = |(name, value): &(&str, &str)| {
        let value = value
            .replace("TRACE", TRACE)
            .replace("OWN", OWN)
            .replace("SPAN", SPAN)
            .replace("FRESH", FRESH);
        (name.to_lowercase(), value)
    };
    let mut expect: Vec<_> = expect.iter().map(put).collect();
    expect.sort();
    assert_eq!(pairs(&left), expect, "{sent:?}");
    let expect = Trace {
        id: TraceId(u128::from_str_radix(id, 16).unwrap().to_be_bytes()),
        span: 0xaa_u64.to_be_bytes(),
        sampled,
    };
    assert_eq!(trace, expect, "{sent:?}");
}

/// The same, of texts with TRACE and SPAN in them.
fn check_sent(sent: &[(&str, &str)], expect: &[(&str, &str)], id: &str, sampled: bool) {
    let put: Vec<_> = sent
        .iter()
        .map(|(name, value)| (*name, value.replace("TRACE", TRACE).replace("SPAN", SPAN)))
        .collect();
    let put: Vec<_> = put.iter().map(|(name, value)| (*name, value.as_str())).collect();
    check_trace(&put, expect, id, sampled);
}

const BEGUN: &[(&str, &str)] = &[("traceparent", "00-FRESH-OWN-00")];

#[test]
fn traces_of_w3c() {
    check_sent(&[], BEGUN, FRESH, false);
    check_sent(
        &[("traceparent", "00-TRACE-SPAN-01")],
        &[("traceparent", "00-TRACE-OWN-01")],
        TRACE,
        true,
    );
    check_sent(
        &[
            ("traceparent", "00-TRACE-SPAN-00"),
            ("tracestate", "a=1,b@c=2"),
            ("tracestate", "d=3"),
        ],
        &[
            ("traceparent", "00-TRACE-OWN-00"),
            ("tracestate", "a=1,b@c=2"),
            ("tracestate", "d=3"),
        ],
        TRACE,
        false,
    );
    // Flags that are not known are not passed on; a later version becomes ours.
    check_sent(
        &[("traceparent", "00-TRACE-SPAN-ff")],
        &[("traceparent", "00-TRACE-OWN-03")],
        TRACE,
        true,
    );
    check_sent(
        &[("traceparent", "01-TRACE-SPAN-01-more")],
        &[("traceparent", "00-TRACE-OWN-01")],
        TRACE,
        true,
    );
    for bad in [
        "",
        "00-TRACE-SPAN",
        "ff-TRACE-SPAN-01",
        "00-TRACE-SPAN-01-more",
        "00-TRACE-0000000000000000-01",
    ] {
        check_sent(
            &[("traceparent", bad), ("tracestate", "a=1")],
            BEGUN,
            FRESH,
            false,
        );
    }
    let upper = format!("00-{}-{SPAN}-01", TRACE.to_uppercase());
    check_trace(&[("traceparent", &upper)], BEGUN, FRESH, false);
    let twice = [
        ("traceparent", "00-TRACE-SPAN-01"),
        ("traceparent", "00-TRACE-SPAN-01"),
    ];
    check_sent(&twice, BEGUN, FRESH, false);
    let many = (0..33)
        .map(|nth| format!("k{nth}=v"))
        .collect::<Vec<_>>()
        .join(",");
    for bad in [
        "a",
        "=1",
        "A=1",
        "a=b=c",
        "a=\u{e9}",
        &many,
        &format!("a={}", "x".repeat(257)),
    ] {
        check_sent(
            &[("traceparent", "00-TRACE-SPAN-01"), ("tracestate", bad)],
            &[("traceparent", "00-TRACE-OWN-01")],
            TRACE,
            true,
        );
    }
}

#[test]
fn traces_of_b3_in_one_header() {
    let check = |sent: &str, expect: &[(&str, &str)], id: &str, sampled| {
        check_sent(&[("b3", sent)], expect, id, sampled);
    };
    check("TRACE-SPAN-1", &[("b3", "TRACE-OWN-1-SPAN")], TRACE, true);
    check(
        "TRACE-SPAN-0-1234567812345678",
        &[("b3", "TRACE-OWN-0-SPAN")],
        TRACE,
        false,
    );
    check("TRACE-SPAN-d", &[("b3", "TRACE-OWN-d-SPAN")], TRACE, true);
    check("TRACE-SPAN", &[("b3", "TRACE-OWN")], TRACE, false);
    // 64 bits stay 64 bits; upper case is read.
    check(
        "8448EB211C80319C-SPAN-1",
        &[("b3", "8448eb211c80319c-OWN-1-SPAN")],
        "8448eb211c80319c",
        true,
    );
    check(
        "0",
        &[("b3", "0"), ("traceparent", "00-FRESH-OWN-00")],
        FRESH,
        false,
    );
    check(
        "1",
        &[("b3", "1"), ("traceparent", "00-FRESH-OWN-01")],
        FRESH,
        true,
    );
    let zero = "0000000000000000-SPAN-1";
    for bad in [
        "",
        "x",
        "2",
        "TRACE",
        "TRACE-SPAN-x",
        "TRACE-SPAN-1-y",
        "TRACE-SPAN-1-SPAN-z",
        zero,
        "SPAN-TRACE-1",
    ] {
        check(bad, BEGUN, FRESH, false);
    }
    check_sent(
        &[("b3", "TRACE-SPAN-1"), ("b3", "TRACE-SPAN-1")],
        BEGUN,
        FRESH,
        false,
    );
}

#[test]
fn traces_of_b3_in_several_headers() {
    let (t, s, p) = ("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid");
    let (d, f) = ("x-b3-sampled", "x-b3-flags");
    let next =
        |more: &[(&'static str, &'static str)]| [&[(t, "TRACE"), (s, "OWN"), (p, "SPAN")], more].concat();
    check_sent(
        &[(t, "TRACE"), (s, "SPAN"), (d, "1")],
        &next(&[(d, "1")]),
        TRACE,
        true,
    );
    check_sent(
        &[(t, "TRACE"), (s, "SPAN"), (p, "1234567812345678"), (d, "0")],
        &next(&[(d, "0")]),
        TRACE,
        false,
    );
    check_sent(&[(t, "TRACE"), (s, "SPAN")], &next(&[]), TRACE, false);
    check_sent(
        &[(t, "TRACE"), (s, "SPAN"), (f, "1")],
        &next(&[(f, "1")]),
        TRACE,
        true,
    );
    check_sent(
        &[(d, "true")],
        &[(d, "true"), ("traceparent", "00-FRESH-OWN-01")],
        FRESH,
        true,
    );
    for bad in [
        &[(t, "TRACE")][..],
        &[(s, "SPAN"), (d, "1")],
        &[(t, "TRACE"), (s, "x")],
        &[(t, "TRACE"), (s, "SPAN"), (d, "d")],
        &[(t, "TRACE"), (s, "SPAN"), (f, "2")],
        &[(t, "TRACE"), (s, "SPAN"), (p, "x")],
        &[(t, "TRACE"), (t, "TRACE"), (s, "SPAN")],
        &[(p, "SPAN")],
    ] {
        check_sent(bad, BEGUN, FRESH, false);
    }
    // One header is read before several; W3C's and B3's go on side by side.
    check_sent(
        &[("b3", "TRACE-SPAN-1"), (t, "8448eb211c80319c"), (s, "SPAN")],
        &[("b3", "TRACE-OWN-1-SPAN")],
        TRACE,
        true,
    );
    check_sent(
        &[
            ("traceparent", "00-TRACE-SPAN-01"),
            ("b3", "8448eb211c80319c-SPAN-0"),
        ],
        &[
            ("traceparent", "00-TRACE-OWN-01"),
            ("b3", "8448eb211c80319c-OWN-0-SPAN"),
        ],
        TRACE,
        true,
    );
    check_sent(
        &[("traceparent", "x"), ("b3", "TRACE-SPAN-1")],
        &[("b3", "TRACE-OWN-1-SPAN")],
        TRACE,
        true,
    );
}

/// A name that something here looks at.
fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "connection",
        "te",
        "upgrade",
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-sampled",
        "x-b3-flags",
        "x-b3-parentspanid",
        "x-request-id",
        "x-forwarded-for",
        "x_forwarded_for",
        "host",
    ])
}

proptest! {
    #[test]
    fn whatever_is_sent_the_app_gets_one_sane_trace_and_no_claim(
        sent in prop::collection::vec((name(), "[0-9a-fA-Fd,; -]{0,60}|[ -~]{0,40}"), 0..8),
    ) {
        let pairs: Vec<_> = sent.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut left = headers(&pairs);
        strip_hop_by_hop(&mut left);
        let by: SpiffeId = "spiffe://cluster.local/ns/demo/sa/waypoint".parse().unwrap();
        let ip = "10.0.0.7".parse().unwrap();
        write_client(&mut left, &Client { by: &by, identity: None, ip, scheme: "http" });
        request_id(&mut left, 1);
        let trace = continue_trace(&mut left, (0xff, 0xaa), true);
        // What was written is read as it was meant.
        let mut next = left.clone();
        let again = continue_trace(&mut next, (1, 2), true);
        prop_assert_eq!((again.id, again.sampled), (trace.id, trace.sampled));
        prop_assert_eq!(&left["x-forwarded-for"], "10.0.0.7");
        prop_assert!(left.get("x_forwarded_for").is_none() && left.get("connection").is_none());
    }
}

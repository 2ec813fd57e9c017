//! One function for each thing that weft reads and somebody else wrote. Each takes any bytes, panics on none, and asserts
//! what must hold of whatever it understood. Called by the fuzzer, and with every seed by `tests/tests/fuzz_seeds.rs`.

use std::{fmt::Display, path::Path, str::FromStr, sync::LazyLock};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft::{
    dns::{self, Forward, Frames, Protocol},
    feed,
    hbone::{Authority, Baggage, Forwarded, Head, TraceParent},
    mesh::{
        Host, Limit, Refusal, SpiffeId, TrustDomain,
        http::{Decision, Normalization, RequestHead, RouteAction, Routes, normalize},
    },
    net::tls::peer_identity,
    waypoint::{grpc::MessageCounter, headers as rewriting},
};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: [Target; 7] = [
    ("connect_head", connect_head),
    ("headers", headers),
    ("mesh_file", mesh_file),
    ("dns_message", dns_message),
    ("spiffe_uri", spiffe_uri),
    ("certificate_san", certificate_san),
    ("request_head", request_head),
];

/// The head of a request as HTTP/2 hands it over. The first line is method and authority; each other one is a header.
pub fn connect_head(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let space = first.iter().position(|byte| *byte == b' ').unwrap_or(first.len());
    let (method, authority) = first.split_at(space);
    let mut request = http::Request::builder()
        .method(method)
        .uri(authority.get(1..).unwrap_or_default());
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        request = request.header(name, value.get(1..).unwrap_or_default());
    }
    let Ok(request) = request.body(()) else { return };
    let (parts, ()) = request.into_parts();
    match Head::read(&parts).target {
        Ok(authority) => {
            assert_eq!(parts.method, Method::CONNECT);
            reads_back(&authority);
        }
        Err(Refusal::BadAuthority(shown)) => assert!(shown.chars().count() <= 128),
        Err(refusal) => assert!(matches!(
            refusal,
            Refusal::NotConnect | Refusal::OverLimit(Limit::HeaderBytes)
        )),
    }
}

/// The texts that travel with a CONNECT.
pub fn headers(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(baggage) = text.parse::<Baggage>() {
        // One that is too long for a header is left out.
        let header = baggage.header();
        if !header.is_empty() {
            let printed = header.to_str().expect("a header of ours is ASCII");
            assert_eq!(printed.parse().as_ref(), Ok(&baggage));
        }
    }
    if let Ok(forwarded) = text.parse::<Forwarded>() {
        reads_back(&forwarded);
        assert!(forwarded.header().is_some());
    }
    if let Ok(trace) = text.parse::<TraceParent>() {
        reads_back(&trace);
    }
    if let Ok(authority) = text.parse::<Authority>() {
        reads_back(&authority);
    }
}

/// A mesh file.
pub fn mesh_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match feed::parse(text, Path::new("mesh.yaml"), "node-a") {
        Ok(file) => {
            for pod in &file.local_pods {
                assert!(file.mesh.workload(&pod.uid).is_some(), "a pod without a workload");
            }
        }
        Err(error) => {
            assert!(!error.problems.is_empty(), "refused without a reason");
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A DNS message: as a query of a pod, as a server's response, and as what a stream brings.
pub fn dns_message(data: &[u8]) {
    match dns::parse(data) {
        Ok(request) => query(&request),
        Err(dns::Unanswerable::Malformed(reply)) => assert!(dns::parse(&reply).is_err()),
        Err(dns::Unanswerable::Noise) => {}
    }
    let _ = dns::says_no_such_name(data);
    let mut frames = Frames::default();
    frames.room().extend_from_slice(data);
    while let Some(message) = frames.take() {
        assert_eq!(
            dns::framed(&message).map(|framed| framed.len()),
            Some(message.len() + 2)
        );
    }
}

fn query(request: &dns::Request<'_>) {
    let _ = (request.asks_for_addresses(), request.is_transfer());
    assert!(request.type_label().is_ascii());
    let failure = dns::server_failure(request);
    assert!(failure.len() >= 12 && dns::parse(&failure).is_err());
    if let Ok(forward) = Forward::new(request) {
        assert_eq!(forward.bytes().len(), request.bytes().len());
        assert!(
            forward.accept(forward.bytes().to_vec()).is_none(),
            "a query answers itself"
        );
    }
    let Some(ask) = request.ask() else { return };
    let host = Host {
        hostname: &ask.hostname,
        zone: &ask.hostname,
        addresses: vec![[10, 96, 0, 10].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 10].into()],
    };
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for reply in [
            dns::answer(request, &host, "cluster.local", protocol),
            dns::no_data(request, &host, "cluster.local", protocol),
        ] {
            assert!(reply.len() <= dns::LARGEST_MESSAGE);
            assert!(dns::parse(&reply).is_err(), "an answer that looks like a query");
        }
    }
}

/// A SPIFFE ID, and a trust domain.
pub fn spiffe_uri(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
    }
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    let domain: TrustDomain = id.trust_domain().parse().expect("its trust domain is one");
    let again = SpiffeId::new(&domain, id.namespace(), id.service_account());
    assert_eq!(again.as_ref().map(SpiffeId::as_str), Ok(text));
    assert_eq!(format!("spiffe://{}", id.principal()), text);
}

/// The names in a certificate: a whole one, or what stands in place of the names of a good one.
pub fn certificate_san(data: &[u8]) {
    let read = |der: Vec<u8>| {
        if let Ok(id) = peer_identity(&[der.into()]) {
            assert_eq!(id.as_str().parse().as_ref(), Ok(&id));
        }
    };
    read(data.to_vec());
    read(with_names(data));
}

/// A certificate as short as X.509 allows with these bytes as its subject alternative name. Nobody signed it: who signed
/// is verified before anybody asks for names.
fn with_names(names: &[u8]) -> Vec<u8> {
    let tlv = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&[tag, 0x84], &length[..], &content].concat()
    };
    let algorithm = tlv(0x30, &[b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"]);
    let nobody = tlv(0x30, &[]);
    let time = tlv(0x17, &[b"260101000000Z"]);
    let key = tlv(0x30, &[&algorithm, b"\x03\x02\x00\x04"]);
    let extension = tlv(0x30, &[b"\x06\x03\x55\x1d\x11", &tlv(0x04, &[names])]);
    let extensions = tlv(0xa3, &[&tlv(0x30, &[&extension])]);
    let body = tlv(
        0x30,
        &[
            b"\xa0\x03\x02\x01\x02\x02\x01\x01",
            &algorithm,
            &nobody,
            &tlv(0x30, &[&time, &time]),
            &nobody,
            &key,
            &extensions,
        ],
    );
    tlv(0x30, &[&body, &algorithm, b"\x03\x02\x00\x00"])
}

/// Routes with one of each kind of match and change.
static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let values = include_str!("routes.json");
    Routes::new(serde_json::from_str(values).expect("routes")).expect("routes that can be used")
});

/// A request's head as a waypoint treats it: normalised, matched, rewritten, passed on. The first line is method, path and
/// authority; each other one is a header.
pub fn request_head(data: &[u8]) {
    let mut counter = MessageCounter::default();
    counter.data(data);
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let mut word = || words.next().unwrap_or_default();
    let Ok(method) = Method::from_bytes(word().as_bytes()) else {
        return;
    };
    let (target, authority) = (word(), word());
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')).take(100) {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    for how in [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ] {
        let Ok(path) = normalize(path, how) else { continue };
        assert_eq!(
            normalize(&path, how).as_deref(),
            Ok(&*path),
            "not the same when done twice"
        );
        let head = RequestHead {
            method: &method,
            path: &path,
            query,
            authority,
            scheme: "http",
            headers: &headers,
            source_namespace: None,
        };
        decide(&head);
    }
    rewriting::strip_hop_by_hop(&mut headers);
    rewriting::continue_trace(&mut headers, (1, 2), false);
    assert!(!headers.contains_key("connection"));
}

fn decide(head: &RequestHead<'_>) {
    let Decision::Rule(matched) = ROUTES.decide(80, head) else {
        return;
    };
    let rule = matched.rule();
    if let Ok(Some(path)) = matched.rewritten_path(head) {
        assert!(path.starts_with('/'), "{path}");
    }
    match &rule.action {
        RouteAction::Redirect(redirect) => {
            let _ = matched.location(redirect, head, 80);
        }
        RouteAction::Forward(_) => assert!(matched.backend(7).is_some()),
        RouteAction::Respond(_) => {}
    }
    let mut headers = head.headers.clone();
    rule.request_headers.apply(&mut headers);
}

/// What was understood is printed as something that is understood the same.
fn reads_back<T: FromStr + Display + PartialEq>(value: &T) {
    let printed = value.to_string();
    assert!(printed.parse().is_ok_and(|again: T| again == *value), "{printed}");
}

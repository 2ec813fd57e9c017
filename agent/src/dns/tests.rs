//! Messages, byte by byte: what is read of them, what is said, and what is believed.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::mesh::{Host, Wanted};

/// A query with recursion desired, of class IN.
fn query(name: &str, record_type: u16) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(record_type.to_be_bytes());
    query.extend([0, 1]);
    query
}

/// The same with an OPT record (RFC 6891 6.1.2).
fn with_edns(mut query: Vec<u8>, payload: u16, version: u8) -> Vec<u8> {
    query[11] += 1;
    query.extend([0, 0, 41]);
    query.extend(payload.to_be_bytes());
    query.extend([0, version, 0, 0, 0, 0]);
    query
}

fn ask(bytes: &[u8]) -> Option<Ask> {
    parse(bytes).ok()?.ask()
}

#[test]
fn what_is_asked() {
    let check = |name: &str, record_type, hostname: &str, wanted| {
        let expect = Ask {
            hostname: hostname.to_owned(),
            wanted,
        };
        assert_eq!(
            ask(&query(name, record_type)),
            Some(expect),
            "{name} {record_type}"
        );
    };
    check(
        "Web.Demo.SVC.cluster.local",
        1,
        "web.demo.svc.cluster.local",
        Wanted::V4,
    );
    check("web_1.x-y.9", 28, "web_1.x-y.9", Wanted::V6);
    check("a", 255, "a", Wanted::Both);
    check("a", 33, "a", Wanted::Nothing);
    check("", 2, "", Wanted::Nothing);
    // No hostname: a dot in a label, an escape, a letter of another alphabet, the root's wildcard.
    for name in ["a b.c", "*.example.com", "\u{e9}.fr", "a/b"] {
        assert_eq!(ask(&query(name, 1)), None, "{name}");
    }
    let mut dotted = query("axb.c", 1);
    dotted[14] = b'.';
    assert_eq!(ask(&dotted), None);
    // Another class, another opcode: passed on.
    let mut chaos = query("version.bind", 16);
    *chaos.last_mut().unwrap() = 3;
    assert!(parse(&chaos).is_ok() && ask(&chaos).is_none());
    let mut update = query("example.com", 6);
    update[2] = 5 << 3;
    assert!(parse(&update).is_ok() && ask(&update).is_none());
}

#[test]
fn what_cannot_be_read() {
    let good = query("a.b", 1);
    let noise = |bytes: &[u8]| assert_eq!(parse(bytes).unwrap_err(), Unanswerable::Noise, "{bytes:?}");
    noise(&[]);
    noise(&good[..11]);
    let mut response = good.clone();
    response[2] |= 0x80;
    noise(&response);
    let malformed = |bytes: &[u8]| match parse(bytes).unwrap_err() {
        // The header alone: the ID, what was wished for, and FORMERR.
        Unanswerable::Malformed(reply) => assert_eq!(reply, [0x12, 0x34, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        Unanswerable::Noise => panic!("{bytes:?}"),
    };
    malformed(&good[..good.len() - 1]);
    for questions in [0, 2] {
        let mut other = good.clone();
        other[5] = questions;
        malformed(&other);
    }
    // A pointer, to itself and to the header.
    for offset in [12, 0] {
        malformed(&[&good[..12], &[0xc0, offset, 0, 1, 0, 1]].concat());
    }
}

fn host<'a>(hostname: &'a str, zone: &'a str, addresses: &[&str]) -> Host<'a> {
    Host {
        hostname,
        zone,
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

fn answered(query: &[u8], host: &Host<'_>, protocol: Protocol) -> Vec<u8> {
    answer(&parse(query).unwrap(), host, "cluster.local", protocol)
}

/// ID, flags, rcode and the four counts.
fn header(message: &[u8]) -> (u16, u8, u8, [u16; 4]) {
    let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    (
        word(0),
        message[2],
        message[3] & 0xf,
        [word(4), word(6), word(8), word(10)],
    )
}

const AA: u8 = 4;
const TC: u8 = 2;
const RESPONSE_RD: u8 = 0x81;

#[test]
fn an_address_is_an_authoritative_answer() {
    let query = query("Web.b", 1);
    let message = answered(
        &query,
        &host("web.b", "web.b", &["10.0.0.1", "10.0.0.2"]),
        Protocol::Udp,
    );
    assert_eq!(header(&message), (0x1234, RESPONSE_RD | AA, 0, [1, 2, 0, 0]));
    // The question comes back as it was, and the records point to it.
    assert_eq!(message[12..query.len()], query[12..]);
    let record = |last| [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, last];
    assert_eq!(message[query.len()..], [record(1), record(2)].concat());
}

#[test]
fn a_search_domain_is_a_cname_to_the_plain_name() {
    let query = query("web.b.c", 28);
    let message = answered(&query, &host("web.b", "web.b", &["fd00::1"]), Protocol::Udp);
    assert_eq!(header(&message).3, [1, 2, 0, 0]);
    let message = answered(&query, &host("web.b", "web.b", &[]), Protocol::Udp);
    assert_eq!(header(&message).3, [1, 1, 1, 0]);
}

#[test]
fn an_answer_keeps_to_what_the_client_takes_to_the_byte() {
    let all: Vec<String> = (0..5000_u32)
        .map(|n| IpAddr::from(n.to_be_bytes()).to_string())
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let check = |query: &[u8], addresses: usize, protocol, largest: usize| {
        let host = host("web.b", "web.b", &all[..addresses]);
        let message = answered(query, &host, protocol);
        let (_, flags, rcode, [_, records, _, opt]) = header(&message);
        let room = largest - query.len();
        let fit = (room / 16).min(addresses);
        assert_eq!(usize::from(records), fit, "{addresses} in {largest}");
        assert_eq!((flags & TC != 0, rcode), (fit < addresses, 0));
        assert_eq!(message.len(), query.len() + fit * 16);
        assert_eq!(opt, u16::from(query[11]));
    };
    let plain = query("web.b", 1);
    let exact = (512 - plain.len()) / 16;
    for addresses in [1, exact - 1, exact, exact + 1, 5000] {
        check(&plain, addresses, Protocol::Udp, 512);
    }
    // The name is as long as it must be for the last record to end at the limit.
    let padded = query("wwwwwwwwwwww.b", 1);
    assert_eq!((512 - padded.len()) % 16, 0, "{}", padded.len());
    let host_of = |n: usize| Host {
        hostname: "wwwwwwwwwwww.b",
        zone: "b",
        addresses: all[..n].iter().map(|ip| ip.parse().unwrap()).collect(),
    };
    let full = (512 - padded.len()) / 16;
    let message = answered(&padded, &host_of(full), Protocol::Udp);
    assert_eq!((message.len(), header(&message).1 & TC), (512, 0));
    let message = answered(&padded, &host_of(full + 1), Protocol::Udp);
    assert_eq!((message.len(), header(&message).1 & TC), (512, TC));
    // Less than 512 counts as 512, and more than we would send as that.
    check(&with_edns(plain.clone(), 100, 0), 5000, Protocol::Udp, 512);
    check(&with_edns(plain.clone(), 1232, 0), 5000, Protocol::Udp, 1232);
    check(&with_edns(plain.clone(), 65_535, 0), 5000, Protocol::Udp, 4096);
    check(&plain, 4000, Protocol::Tcp, LARGEST_MESSAGE);
    check(&plain, 5000, Protocol::Tcp, LARGEST_MESSAGE);
}

#[test]
fn nothing_of_the_kind_comes_with_the_zones_soa() {
    let query = query("a.eu.example.com", 28);
    let message = answered(
        &query,
        &host("a.eu.example.com", "eu.example.com", &[]),
        Protocol::Udp,
    );
    assert_eq!(header(&message), (0x1234, RESPONSE_RD | AA, 0, [1, 0, 1, 0]));
    // The zone within the question's name, type SOA, and for 5 s.
    let owner = 12 + 2;
    assert_eq!(
        message[query.len()..][..10],
        [0xc0, owner, 0, 6, 0, 1, 0, 0, 0, 5]
    );
    assert_eq!(message[message.len() - 4..], [0, 0, 0, 5]);
    let request = parse(&query).unwrap();
    let known = host("a.eu.example.com", "eu.example.com", &["fd00::1"]);
    assert_eq!(no_data(&request, &known, "cluster.local", Protocol::Udp), message);
}

#[test]
fn edns_is_answered_in_kind() {
    let known = host("a.b", "a.b", &["10.0.0.1"]);
    let later = answered(&with_edns(query("a.b", 1), 1232, 1), &known, Protocol::Udp);
    // BADVERS is 16: its upper bits stand in the OPT record.
    assert_eq!(header(&later), (0x1234, RESPONSE_RD, 0, [1, 0, 0, 1]));
    assert_eq!(later[later.len() - 11..], [0, 0, 41, 16, 0, 1, 0, 0, 0, 0, 0]);
    let twice = with_edns(with_edns(query("a.b", 1), 1232, 0), 1232, 0);
    assert_eq!(header(&answered(&twice, &known, Protocol::Udp)).2, 1);
    let mut cut = with_edns(query("a.b", 1), 1232, 0);
    cut.pop();
    assert_eq!(header(&answered(&cut, &known, Protocol::Udp)).2, 1);
    let failed = server_failure(&parse(&query("a.b", 1)).unwrap());
    assert_eq!(header(&failed), (0x1234, RESPONSE_RD, 2, [1, 0, 0, 0]));
}

#[test]
fn only_the_answer_to_the_question_is_accepted() {
    let asked = query("Host.example.com", 1);
    let forward = Forward::new(&parse(&asked).unwrap()).unwrap();
    assert_eq!(forward.bytes()[2..], asked[2..]);
    let mut right = forward.bytes().to_vec();
    right[2] |= 0x80;
    let mut expect = right.clone();
    expect[..2].copy_from_slice(&asked[..2]);
    assert_eq!(forward.accept(right.clone()), Some(expect));
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut response = right.clone();
        change(&mut response);
        assert_eq!(forward.accept(response.clone()), None, "{response:?}");
    };
    refused(&|it| it[0] ^= 1);
    refused(&|it| it[1] ^= 1);
    refused(&|it| it[2] &= 0x7f);
    refused(&|it| it[13] = b'm');
    refused(&|it| *it.last_mut().unwrap() = 3);
    refused(&|it| it[5] = 0);
    refused(&|it| it.truncate(14));
    refused(&|it| it.clear());
    // A server that could not read the question may leave it out.
    let unread = |rcode| {
        let mut response = right[..12].to_vec();
        (response[3], response[5]) = (rcode, 0);
        forward.accept(response).is_some()
    };
    assert!(unread(1) && unread(4) && !unread(0));
}

#[test]
fn random_ids() {
    let asked = query("a.b", 1);
    let ids: std::collections::HashSet<_> = (0..64)
        .map(|_| Forward::new(&parse(&asked).unwrap()).unwrap().bytes()[..2].to_vec())
        .collect();
    assert!(ids.len() > 32, "{ids:?}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), response in prop::collection::vec(any::<u8>(), 0..80)) {
        // Most random bytes are noise: these at least look like a query.
        let mut bytes = bytes;
        if let Some(head) = bytes.first_chunk_mut::<12>() {
            (head[2], head[4], head[5]) = (head[2] & 0x7f, 0, 1);
        }
        let Ok(request) = parse(&bytes) else { return Ok(()) };
        let _ = (request.ask(), request.type_label());
        let known = host("a.b", "b", &["10.0.0.1", "fd00::1"]);
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            prop_assert!(answer(&request, &known, "cluster.local", protocol).len() <= LARGEST_MESSAGE);
        }
        let _ = Forward::new(&request).unwrap().accept(response);
    }

    /// However a stream is cut, the same messages come out of it.
    #[test]
    fn messages_come_whole(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8), cut in 1_usize..20) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message).unwrap()).collect();
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for piece in stream.chunks(cut) {
            frames.room().extend_from_slice(piece);
            seen.extend(std::iter::from_fn(|| frames.take()));
        }
        prop_assert_eq!(seen, messages);
        prop_assert!(!frames.is_amid());
    }
}

#[test]
fn a_message_that_is_too_large_for_its_length_is_not_framed() {
    assert!(framed(&vec![0; LARGEST_MESSAGE]).is_some());
    assert!(framed(&vec![0; LARGEST_MESSAGE + 1]).is_none());
}

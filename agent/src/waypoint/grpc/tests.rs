//! Messages counted in any pieces; what is gRPC, and how it ended.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

/// Messages that are whole in `body`; none once a flag is wrong.
fn naive(mut body: &[u8]) -> u64 {
    let mut messages = 0;
    while let [0 | 1, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some(after) = rest.get(length..) else {
            break;
        };
        messages += 1;
        body = after;
    }
    messages
}

fn counted<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut counter = MessageCounter::default();
    for piece in pieces {
        counter.data(piece);
    }
    counter.messages()
}

#[test]
fn messages() {
    let check =
        |pieces: &[&[u8]], expect: u64| assert_eq!(counted(pieces.iter().copied()), expect, "{pieces:?}");
    check(&[], 0);
    check(&[b"\0\0\0\0\0"], 1);
    check(&[b"\0\0\0\0\x02hi"], 1);
    check(&[b"\x01\0\0\0\x02hi\0\0\0\0\0\0\0\0\0\x01x"], 3);
    // Cut anywhere.
    check(&[b"\0", b"\0\0", b"\0\x02", b"h", b"", b"i\0"], 1);
    // Not whole.
    check(&[b"\0\0\0\0"], 0);
    check(&[b"\0\0\0\0\x02h"], 0);
    check(&[b"\0\xff\xff\xff\xffh"], 0);
    // Not gRPC.
    check(&[b"GET / HTTP/1.1\r\n\0\0\0\0\0"], 0);
    check(&[b"\0\0\0\0\0\x02\0\0\0\0", b"\0\0\0\0\0"], 1);
}

#[test]
fn content_types() {
    let check = |content_type: &str, expect: bool| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        assert_eq!(is_grpc(&headers), expect, "{content_type}");
    };
    check("application/grpc", true);
    check("application/grpc+proto", true);
    check("Application/gRPC; charset=utf-8", true);
    check("application/grpc-web", false);
    check("application/grpc-web-text+proto", false);
    check("application/json", false);
    check("", false);
    assert!(!is_grpc(&HeaderMap::new()));
}

#[test]
fn statuses() {
    let check = |text: &[u8], expect: Option<u32>| {
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, HeaderValue::from_bytes(text).unwrap());
        assert_eq!(grpc_status(&trailers), expect, "{text:?}");
    };
    check(b"0", Some(0));
    check(b"14", Some(14));
    check(b"999999999", Some(999_999_999));
    check(b"9999999999", None);
    check(b"", None);
    check(b"-1", None);
    check(b"+1", None);
    check(b"1 4", None);
    check(b"\xff", None);
    assert_eq!(grpc_status(&HeaderMap::new()), None);
}

/// A byte that is likely to be part of a short message's prefix.
fn likely() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(0), 2 => 0_u8..6, 1 => any::<u8>()]
}

proptest! {
    #[test]
    fn any_body_in_any_pieces_counts_as_if_it_were_split(
        body in prop::collection::vec(likely(), 0..200),
        mut cuts in prop::collection::vec(0_usize..200, 0..10),
    ) {
        cuts.retain(|cut| *cut <= body.len());
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &body[cut[0]..cut[1]]);
        prop_assert_eq!(counted(pieces), naive(&body));
    }
}

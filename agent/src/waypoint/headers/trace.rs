//! A request's trace: continued in the form in which the client sent it (W3C Trace Context, B3 in one header or in several),
//! or begun.
//!
//! The waypoint is a span of its own under the client's. What cannot be read is as good as absent.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    hbone::{TraceParent, headers::TRACEPARENT},
    mesh::http::TraceId,
};

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Sampled, and random trace id (Trace Context Level 2, 3.2.2.5): the flags that there are.
const KNOWN_FLAGS: u8 = 0b11;
/// Trace Context 3.3.1.1: a list has at most so many members.
const MOST_MEMBERS: usize = 32;
/// The longest `tracestate` that is passed on; 3.3.1.5 asks for 512 bytes.
const LONGEST_STATE: usize = 4096;

/// The trace and the waypoint's own span in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub id: TraceId,
    /// The waypoint's span: the parent of whatever the app does.
    pub span: [u8; 8],
    /// Whether it is recorded.
    pub sampled: bool,
}

/// Makes the headers say that the request comes from a new span of the trace that they are about; of a new trace where they
/// are about none, `sampled` or not.
pub fn continue_trace(headers: &mut HeaderMap, draw: (u128, u64), sampled: bool) -> Trace {
    let mut random = [0; 24];
    random[..16].copy_from_slice(&draw.0.to_be_bytes());
    random[16..].copy_from_slice(&draw.1.to_be_bytes());
    let fresh = TraceParent::new(random, sampled);
    let of_b3 = continue_b3(headers, fresh.parent_id);
    if let Some(sent) = w3c(headers) {
        return write_w3c(headers, sent, fresh.parent_id);
    }
    headers.remove(TRACESTATE);
    match of_b3 {
        Some(B3Context::Span(trace)) => {
            headers.remove(TRACEPARENT);
            trace
        }
        Some(B3Context::Decision(sampled)) => {
            write_w3c(headers, TraceParent::new(random, sampled), fresh.parent_id)
        }
        None => write_w3c(headers, fresh, fresh.parent_id),
    }
}

/// What the client sent by W3C's rules. A state that cannot be read is removed.
fn w3c(headers: &mut HeaderMap) -> Option<TraceParent> {
    let sent: TraceParent = only(headers, &TRACEPARENT)?.parse().ok()?;
    if !is_state(headers) {
        headers.remove(TRACESTATE);
    }
    Some(sent)
}

fn write_w3c(headers: &mut HeaderMap, sent: TraceParent, span: [u8; 8]) -> Trace {
    let flags = sent.flags & KNOWN_FLAGS;
    let next = TraceParent {
        parent_id: span,
        flags,
        ..sent
    };
    match next.header() {
        Some(value) => headers.insert(TRACEPARENT, value),
        None => headers.remove(TRACEPARENT),
    };
    Trace {
        id: TraceId(sent.trace_id),
        span,
        sampled: flags & 1 == 1,
    }
}

/// Trace Context 3.3.1: `key=value` members of printable characters.
fn is_state(headers: &HeaderMap) -> bool {
    let (mut members, mut bytes) = (0, 0);
    for value in headers.get_all(&TRACESTATE) {
        let Ok(text) = value.to_str() else {
            return false;
        };
        bytes += text.len();
        for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            members += 1;
            if !is_member(member) {
                return false;
            }
        }
    }
    members <= MOST_MEMBERS && bytes <= LONGEST_STATE
}

fn is_member(member: &str) -> bool {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    member.split_once('=').is_some_and(|(key, value)| {
        !key.is_empty()
            && key.len() <= 256
            && key.bytes().all(legal)
            && value.len() <= 256
            && !value.contains('=')
    })
}

/// The one value of a header; of several nobody knows which counts.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).into_iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)?.to_str().ok()
}

/// What B3 headers say: a span, or only whether a trace that is to begin is recorded.
enum B3Context {
    Span(Trace),
    Decision(bool),
}

/// One header is read before several, as B3 has it. What cannot be read is removed.
fn continue_b3(headers: &mut HeaderMap, span: [u8; 8]) -> Option<B3Context> {
    if headers.contains_key(B3) {
        let read = only(headers, &B3).and_then(read_single);
        remove_multi(headers);
        return match read {
            Some(sent) => Some(write_single(headers, sent, span)),
            None => {
                headers.remove(B3);
                None
            }
        };
    }
    let read = read_multi(headers);
    let Some(sent) = read else {
        remove_multi(headers);
        return None;
    };
    Some(write_multi(headers, sent, span))
}

/// What was sent: the ids as texts, since a trace may have 64 bits or 128 and stays as long as it is.
struct Sent {
    ids: Option<(String, String)>,
    sampled: Sampled,
}

/// B3's decisions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sampled {
    Later,
    No,
    Yes,
    Debug,
}

impl Sampled {
    fn read(text: &str) -> Option<Self> {
        match text {
            "0" | "false" => Some(Self::No),
            "1" | "true" => Some(Self::Yes),
            "d" => Some(Self::Debug),
            _ => None,
        }
    }

    fn yes(self) -> bool {
        matches!(self, Self::Yes | Self::Debug)
    }
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or `{sampled}`.
fn read_single(text: &str) -> Option<Sent> {
    if let Some(sampled) = Sampled::read(text) {
        return Some(Sent { ids: None, sampled });
    }
    let mut fields = text.splitn(4, '-');
    let ids = (trace_text(fields.next()?)?, span_text(fields.next()?)?);
    let sampled = match fields.next() {
        Some(sampled) => Sampled::read(sampled)?,
        None => Sampled::Later,
    };
    if let Some(parent) = fields.next() {
        span_text(parent)?;
    }
    Some(Sent {
        ids: Some(ids),
        sampled,
    })
}

fn write_single(headers: &mut HeaderMap, sent: Sent, span: [u8; 8]) -> B3Context {
    let Some((trace, parent)) = sent.ids else {
        return B3Context::Decision(sent.sampled.yes());
    };
    let own = hex(span);
    let text = match sent.sampled {
        // A parent has its place after the decision only.
        Sampled::Later => format!("{trace}-{own}"),
        Sampled::No => format!("{trace}-{own}-0-{parent}"),
        Sampled::Yes => format!("{trace}-{own}-1-{parent}"),
        Sampled::Debug => format!("{trace}-{own}-d-{parent}"),
    };
    put(headers, B3, &text);
    context(&trace, span, sent.sampled)
}

fn read_multi(headers: &HeaderMap) -> Option<Sent> {
    let value = |name: &HeaderName| match headers.contains_key(name) {
        true => only(headers, name).map(Some),
        false => Some(None),
    };
    let (trace, span) = (value(&B3_TRACE)?, value(&B3_SPAN)?);
    let mut sampled = match value(&B3_SAMPLED)? {
        Some(text) => Sampled::read(text).filter(|sampled| *sampled != Sampled::Debug)?,
        None => Sampled::Later,
    };
    match value(&B3_FLAGS)? {
        Some("1") => sampled = Sampled::Debug,
        Some("0") | None => {}
        Some(_) => return None,
    }
    if let Some(parent) = value(&B3_PARENT)? {
        span_text(parent)?;
    }
    let ids = match (trace, span) {
        (Some(trace), Some(span)) => Some((trace_text(trace)?, span_text(span)?)),
        (None, None) if sampled != Sampled::Later => None,
        _ => return None,
    };
    Some(Sent { ids, sampled })
}

/// The decision stays as it was sent.
fn write_multi(headers: &mut HeaderMap, sent: Sent, span: [u8; 8]) -> B3Context {
    let Some((trace, parent)) = sent.ids else {
        return B3Context::Decision(sent.sampled.yes());
    };
    put(headers, B3_TRACE, &trace);
    put(headers, B3_SPAN, &hex(span));
    put(headers, B3_PARENT, &parent);
    context(&trace, span, sent.sampled)
}

fn context(trace: &str, span: [u8; 8], sampled: Sampled) -> B3Context {
    // Checked to be hexadecimal when it was read.
    let id = u128::from_str_radix(trace, 16).unwrap_or_default();
    B3Context::Span(Trace {
        id: TraceId(id.to_be_bytes()),
        span,
        sampled: sampled.yes(),
    })
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn remove_multi(headers: &mut HeaderMap) {
    for name in [B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS] {
        headers.remove(name);
    }
}

/// 64 or 128 bits, not zero, in lower case.
fn trace_text(text: &str) -> Option<String> {
    id_text(text, matches!(text.len(), 16 | 32))
}

/// 64 bits, not zero, in lower case.
fn span_text(text: &str) -> Option<String> {
    id_text(text, text.len() == 16)
}

fn id_text(text: &str, right_length: bool) -> Option<String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let zero = text.bytes().all(|byte| byte == b'0');
    (right_length && digits && !zero).then(|| text.to_ascii_lowercase())
}

fn hex(span: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(span))
}

//! The access line of a request: exactly one for every [`RequestFlow`].

use std::borrow::Cow;

use tracing::Level;

use super::{cluster, namespace, workload_name};
use crate::mesh::{
    Party,
    http::{Protocol, RequestFlow},
};

/// The longest method, authority and path that a line repeats, in bytes: a client chooses them.
const LONGEST: usize = 1024;

/// One event. Levels are part of the place that logs, so there is one place for each.
macro_rules! request_event {
    ($level:expr, $flow:expr) => {
        tracing::event!(
            target: "access",
            parent: None,
            $level,
            {
                src.addr = $flow.source.addr.map(tracing::field::display),
                src.workload = workload_name(&$flow.source),
                src.namespace = namespace(&$flow.source),
                src.identity = identity($flow, &$flow.source),
                src.cluster = cluster(&$flow.source),
                // As for connections: the address of the TCP connection, and what the tunnel in it asks for.
                dst.addr = $flow.upstream.or($flow.destination.addr).map(tracing::field::display),
                dst.hbone_addr = tunnelled($flow).map(tracing::field::display),
                dst.service = $flow.service.as_deref().map(|service| &*service.key.hostname),
                dst.workload = workload_name(&$flow.destination),
                dst.namespace = namespace(&$flow.destination),
                dst.identity = identity($flow, &$flow.destination),
                dst.cluster = cluster(&$flow.destination),
                method = &*short($flow.method.as_str()),
                authority = &*short(&$flow.authority),
                path = &*short(&$flow.path),
                protocol = $flow.protocol.name(),
                route = $flow.route.as_ref().map(|route| &*route.0),
                response_code = $flow.status,
                grpc_status = $flow.grpc_status,
                response_flags = $flow.flag.label(),
                bytes_recv = $flow.request_bytes,
                bytes_sent = $flow.response_bytes,
                messages_recv = messages($flow, $flow.request_messages),
                messages_sent = messages($flow, $flow.response_messages),
                duration = format!("{}ms", $flow.duration.as_millis()).as_str(),
                attempts = $flow.attempts,
                trace_id = $flow.trace_id.map(tracing::field::display),
                request_id = $flow.request_id.as_ref().and_then(|id| id.to_str().ok()),
                policy = $flow.policy.as_ref().map(tracing::field::display),
                error = $flow.error.as_deref()
            },
            "request complete"
        )
    };
}

/// The one line of a request that has ended: INFO where it went as it should have, ERROR otherwise. A response of 500 that
/// the app gave is the app's.
pub fn request(flow: &RequestFlow) {
    if flow.flag.is_failure() {
        request_event!(Level::ERROR, flow);
    } else {
        request_event!(Level::INFO, flow);
    }
}

/// What the tunnel asks for, where there is one.
fn tunnelled(flow: &RequestFlow) -> Option<std::net::SocketAddr> {
    flow.destination
        .addr
        .filter(|addr| flow.upstream.is_some_and(|upstream| upstream != *addr))
}

/// An identity is printed only where it is certain.
fn identity<'a>(flow: &RequestFlow, party: &'a Party) -> Option<&'a str> {
    let certain = party.identity.as_ref().filter(|_| flow.security.has_identities());
    certain.map(|identity| identity.as_str())
}

fn messages(flow: &RequestFlow, messages: u64) -> Option<u64> {
    (flow.protocol == Protocol::Grpc).then_some(messages)
}

/// The beginning of a long text, and how long it is.
fn short(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(LONGEST);
    let beginning = text.get(..end).unwrap_or_default();
    Cow::Owned(format!("{beginning}... ({} bytes)", text.len()))
}

//! What a request on a tunnel says. Pure: `server` answers it.

use http::{HeaderValue, Method, request::Parts};

use super::{Authority, Forwarded, TraceParent, headers, settings::HEADER_LIST};
use crate::mesh::{Limit, Refusal};

/// The head of a request, as far as it could be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where it wants to go; or that it is not a CONNECT, or to no address and port, or too long.
    pub target: Result<Authority, Refusal>,
    /// What the other agent says about its workload ([`super::Baggage`]), unread.
    pub baggage: Option<HeaderValue>,
    /// Who it says the connection is for.
    pub forwarded: Option<Forwarded>,
    /// The trace it is part of.
    pub traceparent: Option<TraceParent>,
}

/// What HTTP/2 adds to a field's name and value when it counts their bytes (RFC 9113 6.5.2).
const FIELD: usize = 32;
/// As much of a bad authority as is shown.
const SHOWN: usize = 128;

impl Head {
    /// Reads a request's head.
    pub fn read(request: &Parts) -> Self {
        Self {
            target: target(request),
            baggage: request.headers.get(headers::BAGGAGE).cloned(),
            forwarded: headers::read(&request.headers, &headers::FORWARDED),
            traceparent: headers::read(&request.headers, &headers::TRACEPARENT),
        }
    }
}

fn target(request: &Parts) -> Result<Authority, Refusal> {
    let fields = request.headers.iter();
    let bytes: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
        .sum();
    if bytes > HEADER_LIST {
        return Err(Refusal::OverLimit(Limit::HeaderBytes));
    }
    if request.method != Method::CONNECT {
        return Err(Refusal::NotConnect);
    }
    let authority = request.uri.authority().map(|authority| authority.as_str());
    let authority = authority.unwrap_or_default();
    authority
        .parse()
        .map_err(|_| Refusal::BadAuthority(authority.chars().take(SHOWN).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bytes_of_headers_than_are_read_are_refused_before_anything_is_believed() {
        for (length, refused) in [(100, false), (HEADER_LIST, true)] {
            let request = http::Request::connect("10.0.0.1:80").header("x", "y".repeat(length));
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let over = Err(Refusal::OverLimit(Limit::HeaderBytes));
            assert_eq!(Head::read(&parts).target == over, refused, "{length}");
        }
        assert_eq!(Refusal::OverLimit(Limit::HeaderBytes).http_status(), 431);
    }
}

//! What the waypoint answers itself: refusals, failures, and what a rule says. A gRPC client gets them as a status of gRPC.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::grpc::{GRPC_MESSAGE, GRPC_STATUS, status_of_http};
use crate::mesh::{PolicyKey, Refusal, http::ResponseFlag};

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) flag: ResponseFlag,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The policy that decided.
    pub(super) policy: Option<PolicyKey>,
    /// Why, for the log.
    pub(super) why: Option<Arc<str>>,
    /// gRPC's status, where a rule says which one.
    pub(super) grpc: Option<u16>,
}

impl Reply {
    /// A plain one.
    pub(super) fn new(status: StatusCode, flag: ResponseFlag, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            flag,
            headers: HeaderMap::new(),
            body: body.into(),
            policy: None,
            why: None,
            grpc: None,
        }
    }

    /// With a reason for the log.
    pub(super) fn because(mut self, why: impl Into<Arc<str>>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// The request makes no sense, or could be read in two ways.
    pub(super) fn bad_request(why: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ResponseFlag::None, why).because(why)
    }

    /// A policy's no, in Istio's words.
    pub(super) fn denied(refusal: &Refusal) -> Self {
        let mut reply = Self::new(
            StatusCode::FORBIDDEN,
            ResponseFlag::Unauthorized,
            "RBAC: access denied",
        );
        reply.policy = refusal.policy().cloned();
        reply.because(refusal.to_string())
    }

    /// There is nobody to send it to, or nothing is known of what to do with it.
    pub(super) fn unavailable(flag: ResponseFlag, why: impl Into<Arc<str>>) -> Self {
        let body = match flag {
            ResponseFlag::NoHealthyUpstream => "no healthy upstream",
            _ => "upstream connect error or disconnect/reset before headers",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, flag, body).because(why)
    }

    /// It took too long.
    pub(super) fn timed_out() -> Self {
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self::new(status, ResponseFlag::UpstreamTimeout, "upstream request timeout")
    }

    /// What the mesh refuses.
    pub(super) fn refused(refusal: &Refusal) -> Self {
        match refusal.http_status() {
            401 => Self::denied(refusal),
            _ => Self::unavailable(ResponseFlag::NoHealthyUpstream, refusal.to_string()),
        }
    }

    /// As it is sent; to a gRPC client as the end of its call.
    pub(super) fn into_response(self, is_grpc: bool) -> Response<Option<Bytes>> {
        let mut response = Response::new(None);
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        if is_grpc && (self.grpc.is_some() || !self.status.is_success()) {
            let status = self.grpc.map_or_else(|| status_of_http(self.status), u32::from);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(status));
            if let Ok(message) = HeaderValue::try_from(percent_encoded(&self.body)) {
                headers.insert(GRPC_MESSAGE, message);
            }
            return response;
        }
        if !self.body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        *response.status_mut() = self.status;
        *response.body_mut() = Some(self.body).filter(|body| !body.is_empty());
        response
    }
}

/// gRPC's form of a text in a header: percent-encoded UTF-8.
fn percent_encoded(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.iter().take(1024) {
        match byte {
            b' '..=b'~' if *byte != b'%' => encoded.push(char::from(*byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

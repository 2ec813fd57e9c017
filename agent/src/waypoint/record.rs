//! The record of one request while it is under way. It ends once, with the response's end: one line, one count.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Version};

use super::{
    body::Sent,
    client::{Client, Here},
    grpc::{MessageCounter, grpc_status, is_grpc},
    listen::Worker,
};
use crate::{
    mesh::{
        Party, Security,
        http::{HttpEndpoint, Protocol, RequestFlow, ResponseFlag},
    },
    telemetry::log,
};

/// A request that has begun.
pub(super) struct Exchange {
    worker: Arc<Worker>,
    since: Instant,
    pub(super) flow: Box<RequestFlow>,
    /// What was read of the request's body.
    sent: Option<Sent>,
    messages: Option<MessageCounter>,
    /// Whether the response came to its end, or why it did not is known.
    pub(super) is_complete: bool,
}

impl Exchange {
    /// Begins it.
    pub(super) fn begin<B>(client: &Client, request: &Request<B>) -> Self {
        let source = Party {
            addr: Some(client.addr),
            workload: None,
            identity: Some(client.identity().clone()),
        };
        let protocol = match request.version() {
            Version::HTTP_2 if is_grpc(request.headers()) => Protocol::Grpc,
            Version::HTTP_2 => Protocol::Http2,
            _ => Protocol::Http11,
        };
        let mut flow = RequestFlow::new(source, protocol, request.method().clone());
        flow.security = Security::MutualTls;
        Self {
            worker: Arc::clone(client.worker()),
            since: Instant::now(),
            flow: Box::new(flow),
            sent: None,
            messages: (protocol == Protocol::Grpc).then(MessageCounter::default),
            is_complete: false,
        }
    }

    /// What is spoken with the client.
    pub(super) fn is_grpc(&self) -> bool {
        self.flow.protocol == Protocol::Grpc
    }

    /// When it began.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Whom it is about.
    pub(super) fn found(&mut self, here: &Here) {
        self.flow.source.workload = here.source.clone();
        self.flow.service = here.bound.service().cloned();
    }

    /// The body that is read of the client.
    pub(super) fn reads(&mut self, sent: &Sent) {
        self.sent = Some(sent.clone());
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self, endpoint: &HttpEndpoint) {
        self.flow.attempts += 1;
        self.flow.upstream = endpoint.next.addr();
        self.flow.destination = Party {
            addr: Some(endpoint.addr),
            workload: Some(Arc::clone(&endpoint.workload)),
            identity: None,
        };
    }

    /// The endpoint that was tried last has answered, over a tunnel of which it proved to be the other end.
    pub(super) fn proven(&mut self) {
        let workload = self.flow.destination.workload.as_ref();
        self.flow.destination.identity = workload.map(|workload| workload.identity.clone());
    }

    /// What went wrong.
    pub(super) fn flag(&mut self, flag: ResponseFlag) {
        self.flow.flag = flag;
    }

    /// The response's head.
    pub(super) fn head(&mut self, status: u16, headers: &HeaderMap) {
        self.flow.status = Some(status);
        if self.is_grpc() {
            self.flow.grpc_status = grpc_status(headers);
        }
    }

    /// A piece of the response's body.
    pub(super) fn answered(&mut self, chunk: &Bytes) {
        self.flow.response_bytes += chunk.len() as u64;
        if let Some(messages) = &mut self.messages {
            messages.data(chunk);
        }
    }

    /// The response's trailers.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.is_grpc() {
            self.flow.grpc_status = grpc_status(trailers).or(self.flow.grpc_status);
        }
    }
}

impl Drop for Exchange {
    /// Writes the one line, and counts.
    fn drop(&mut self) {
        if !self.is_complete && self.flow.flag == ResponseFlag::None {
            self.flow.flag = ResponseFlag::DownstreamConnectionTermination;
        }
        self.flow.duration = self.since.elapsed();
        if let Some(sent) = &self.sent {
            self.flow.request_bytes += sent.bytes();
            self.flow.request_messages = sent.messages();
        }
        self.flow.response_messages = self.messages.as_ref().map_or(0, MessageCounter::messages);
        self.worker.shared.metrics.record_request(&self.flow);
        log::request(&self.flow);
    }
}

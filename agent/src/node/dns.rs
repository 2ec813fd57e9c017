//! DNS of captured pods: each query is answered from the mesh, or passed on, from inside the pod and over the protocol
//! that it came by, to the server that the app asked.
//!
//! `datagrams` has the steered UDP sockets, `stream` the steered TCP connections to port 53. Here is what both do with a
//! query.

mod datagrams;
mod stream;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) use self::{
    datagrams::{Datagrams, PodSocket, listen},
    stream::serve as serve_stream,
};
use super::{draws::Draws, pod::Pod, worker::Worker};
use crate::{
    dns::{
        Forward, Protocol, Request, UPSTREAM_TIMEOUT, Unanswerable, answer, no_data, parse, server_failure,
    },
    kernel::dns::DnsServers,
    mesh::{Host, Lookup, Mesh, Workload, resolve},
    telemetry::metrics::DnsLabels,
};

/// Queries of one pod that wait for servers. Each has a socket.
const WAITING_OF_POD: usize = 256;
/// How many of these each pod has for itself.
const RESERVED: usize = 16;
/// TCP connections to DNS servers that a pod may have open.
const STREAMS_OF_POD: usize = 64;

/// The port of DNS servers.
pub(super) const SERVER_PORT: u16 = crate::kernel::dns::SERVER_PORT;

/// What the queries of all pods share.
#[derive(Debug)]
pub(super) struct Places(Arc<Semaphore>);

impl Places {
    /// `waiting` are the queries that wait beyond those that each pod has for itself.
    pub(super) fn new(waiting: usize) -> Self {
        Self(Arc::new(Semaphore::new(waiting)))
    }

    pub(super) fn of_pod(&self) -> Limits {
        Limits {
            waiting: Arc::new(Semaphore::new(WAITING_OF_POD)),
            reserved: Arc::new(Semaphore::new(RESERVED)),
            streams: Arc::new(Semaphore::new(STREAMS_OF_POD)),
            of_all: Arc::clone(&self.0),
        }
    }
}

/// What bounds the queries of a pod.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    waiting: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    of_all: Arc<Semaphore>,
}

impl Limits {
    /// A place for a query that waits for a server. However many the other pods have, each has some.
    fn wait(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let take = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let of_pod = take(&self.waiting)?;
        let place = take(&self.reserved).or_else(|| take(&self.of_all))?;
        Some([of_pod, place])
    }

    fn stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}

/// What a worker has for DNS.
pub(super) struct Dns {
    /// Which server a steered datagram was for.
    pub(super) servers: DnsServers,
    /// Where datagrams are received, one at a time.
    pub(super) buffer: std::sync::Mutex<Box<[u8]>>,
}

impl Dns {
    pub(super) fn new(servers: DnsServers) -> Self {
        let buffer = vec![0; crate::dns::LARGEST_MESSAGE].into_boxed_slice();
        Self {
            servers,
            buffer: buffer.into(),
        }
    }
}

/// What is to be done with a query.
enum Next {
    /// Nothing.
    Ignore,
    /// Answer it at once.
    Reply(Vec<u8>),
    /// Ask the server.
    Ask(Box<Asking>),
}

/// A query that waits for its server.
struct Asking {
    forward: Forward,
    labels: DnsLabels,
    /// What the app is told when the server fails.
    failure: Vec<u8>,
    /// What it is told when the server does not know the name: the mesh does.
    no_data: Option<Vec<u8>>,
    /// Whether the response is several messages.
    is_transfer: bool,
    _place: [OwnedSemaphorePermit; 2],
}

/// Decides what is to be done with a query that a pod sent, and counts it.
fn next(worker: &Worker, pod: &Pod, limits: &Limits, bytes: &[u8], protocol: Protocol) -> Next {
    let mesh = worker.shared.mesh.load_full();
    let client = mesh.as_ref().and_then(|mesh| mesh.workload(&pod.uid));
    let request = match parse(bytes) {
        Ok(request) => request,
        Err(Unanswerable::Noise) => return Next::Ignore,
        Err(Unanswerable::Malformed(reply)) => {
            let labels = DnsLabels::new("malformed", protocol.as_str(), client);
            worker.shared.metrics.dns_request(&labels);
            return Next::Reply(reply);
        }
    };
    let labels = DnsLabels::new(request.type_label(), protocol.as_str(), client);
    worker.shared.metrics.dns_request(&labels);
    let known = mesh.as_deref().zip(client).map(|(mesh, client)| Known {
        mesh,
        client,
        draws: &worker.draws,
        protocol,
    });
    let answered = known.and_then(|known| known.answer(&request));
    match answered {
        Some(Answered::Whole(reply)) => Next::Reply(reply),
        Some(Answered::Unless(no_data)) => ask(limits, &request, labels, Some(no_data)),
        None => ask(limits, &request, labels, None),
    }
}

/// What a query is answered from.
struct Known<'a> {
    mesh: &'a Mesh,
    client: &'a Workload,
    draws: &'a Draws,
    protocol: Protocol,
}

/// What the mesh says to a query.
enum Answered {
    /// All there is.
    Whole(Vec<u8>),
    /// That the name exists: if its server says otherwise, this.
    Unless(Vec<u8>),
}

impl Known<'_> {
    /// `None` for what is not the mesh's.
    fn answer(&self, request: &Request<'_>) -> Option<Answered> {
        let asked = request.ask()?;
        let lookup = Lookup {
            hostname: &asked.hostname,
            wanted: asked.wanted,
            draw: self.draws.next((&asked.hostname, request.type_label())),
        };
        let host: Host<'_> = resolve(self.mesh, &lookup, self.client)?;
        let domain = self.mesh.cluster_domain();
        Some(if request.asks_for_addresses() {
            Answered::Whole(answer(request, &host, domain, self.protocol))
        } else {
            Answered::Unless(no_data(request, &host, domain, self.protocol))
        })
    }
}

fn ask(limits: &Limits, request: &Request<'_>, labels: DnsLabels, no_data: Option<Vec<u8>>) -> Next {
    let failure = server_failure(request);
    // Too many wait already, or there are no random numbers: in both cases the app is to try again.
    let Some((place, forward)) = limits.wait().zip(Forward::new(request).ok()) else {
        return Next::Reply(failure);
    };
    Next::Ask(Box::new(Asking {
        forward,
        labels,
        failure,
        no_data,
        is_transfer: request.is_transfer(),
        _place: place,
    }))
}

impl Asking {
    /// Waits for the server's response, for as long as the app is made to wait, and makes of it what the app is told.
    async fn response(
        &self,
        worker: &Worker,
        server: SocketAddr,
        exchange: impl Future<Output = Result<Vec<u8>, String>>,
    ) -> Vec<u8> {
        let metrics = &worker.shared.metrics;
        metrics.dns_upstream_request(&self.labels);
        let since = Instant::now();
        let outcome = tokio::time::timeout(UPSTREAM_TIMEOUT, exchange).await;
        match outcome.unwrap_or_else(|_| Err("no response in time".to_owned())) {
            Ok(response) => {
                metrics.dns_upstream_duration(&self.labels, since.elapsed());
                match &self.no_data {
                    Some(no_data) if crate::dns::says_no_such_name(&response) => no_data.clone(),
                    _ => response,
                }
            }
            Err(error) => {
                metrics.dns_upstream_failure(&self.labels);
                tracing::debug!(%server, error, "a DNS server failed");
                self.failure.clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITING: usize = 4096;

    #[test]
    fn pods_that_take_all_places_leave_others_theirs() {
        let places = Places::new(WAITING);
        let take = |limits: &Limits| std::iter::from_fn(|| limits.wait()).collect::<Vec<_>>();
        let greedy: Vec<_> = (0..20).map(|_| take(&places.of_pod())).collect();
        let counts: Vec<_> = greedy.iter().map(Vec::len).collect();
        assert_eq!(counts[..17], [WAITING_OF_POD; 17]);
        assert_eq!(counts.iter().sum::<usize>(), WAITING + 20 * RESERVED);
        let other = places.of_pod();
        let taken = take(&other);
        assert_eq!(taken.len(), RESERVED);
        drop(taken);
        drop(greedy);
        assert_eq!(take(&other).len(), WAITING_OF_POD);
    }
}

//! Queries that came as datagrams: the sockets that they are steered to, one for each server that a pod asks.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::{
        pod::Pod,
        worker::{Worker, canonical},
    },
    Asking, Limits, Next, next,
};
use crate::{
    dns::{Protocol, over_udp},
    kernel::dns::{DNS_PORT, DNS_SLOTS},
    net::{
        socket::Family,
        udp::{for_server, steered, try_reply},
    },
};

/// For how long nothing must have come before a socket is closed that gets no more datagrams.
const QUIET: Duration = Duration::from_millis(100);
/// After this it is closed in any case.
const RELEASE_GRACE: Duration = Duration::from_secs(5);

/// A socket in a pod, and whose datagrams it gets.
pub(in super::super) struct PodSocket {
    pub(in super::super) family: Family,
    /// Which of the servers that the pod asks.
    pub(in super::super) slot: u16,
    pub(in super::super) socket: std::net::UdpSocket,
}

/// The sockets of a pod.
///
/// # Errors
/// Those of the kernel; an app of the pod may have one of the ports.
pub(in super::super) fn listen(pod: &Pod) -> io::Result<Vec<PodSocket>> {
    let wanted = pod
        .families()
        .flat_map(|family| (0..DNS_SLOTS).map(move |slot| (family, slot)));
    let wanted: Vec<_> = wanted.collect();
    pod.netns.enter(|| {
        wanted
            .into_iter()
            .map(|(family, slot)| {
                let port = DNS_PORT + slot;
                let socket = steered(family, port).map_err(|error| {
                    let text = format!("UDP port {port}, which is for DNS: {error}");
                    io::Error::new(error.kind(), text)
                })?;
                Ok(PodSocket { family, slot, socket })
            })
            .collect()
    })
}

/// One socket's loop.
#[derive(Clone)]
pub(in super::super) struct Datagrams {
    pub(in super::super) worker: Arc<Worker>,
    pub(in super::super) pod: Arc<Pod>,
    pub(in super::super) limits: Limits,
    pub(in super::super) tasks: TaskTracker,
}

impl Datagrams {
    /// Serves until the pod is released or the agent shuts down, and then what has come by then.
    pub(in super::super) async fn run(self, socket: PodSocket, released: CancellationToken) {
        let slot = socket.slot;
        // Its answers may go to port 53, of an app that is a DNS server itself.
        let marked = self
            .worker
            .sockets
            .mark_own(&socket.socket)
            .map_err(io::Error::other);
        let socket = match marked.and_then(|()| UdpSocket::from_std(socket.socket)) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                tracing::error!(%error, pod = %self.pod.uid, "cannot answer DNS in a pod");
                return;
            }
        };
        // What the mesh says to a pod depends on whose it is. Until that is known queries wait in the socket.
        tokio::select! {
            () = released.cancelled() => {}
            () = self.worker.drain.begins.cancelled() => {}
            () = self.worker.be_told_of(&self.pod) => {}
        }
        loop {
            tokio::select! {
                () = released.cancelled() => break,
                () = self.worker.drain.begins.cancelled() => break,
                ready = socket.readable() => self.readable(&socket, slot, ready),
            }
        }
        let leftovers = async {
            while let Ok(ready) = timeout(QUIET, socket.readable()).await {
                self.readable(&socket, slot, ready);
            }
        };
        let _ = timeout(RELEASE_GRACE, leftovers).await;
    }

    /// Takes one datagram; the others have their turn when tokio says again that there are some.
    fn readable(&self, socket: &Arc<UdpSocket>, slot: u16, ready: io::Result<()>) {
        let received = ready.and_then(|()| self.receive(socket, slot));
        match received {
            Ok((client, server, Next::Ask(asking))) => {
                let (serving, socket) = (self.clone(), Arc::clone(socket));
                self.tasks.spawn(async move {
                    let response = serving.ask(server, &asking).await;
                    reply(&socket, &response, client).await;
                });
            }
            Ok((client, _, Next::Reply(response))) => {
                // One that does not fit in is lost, as datagrams may be.
                let _ = try_reply(socket, &response, client);
            }
            Ok((_, _, Next::Ignore)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, pod = %self.pod.uid, "a DNS socket failed"),
        }
    }

    /// One datagram: who sent it, to which server, and what is to be done with it.
    fn receive(&self, socket: &UdpSocket, slot: u16) -> io::Result<(SocketAddr, SocketAddr, Next)> {
        let dns = &self.worker.dns;
        let mut buffer = dns.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let (length, client) = socket.try_recv_from(&mut buffer)?;
        let client = canonical(client);
        let none = || io::Error::from(io::ErrorKind::WouldBlock);
        // What is steered comes from an address of the pod. Anything else an app sent here by itself.
        if !self.pod.addresses.contains(&client.ip()) {
            return Err(none());
        }
        let server = dns.servers.server(client.ip(), slot).ok_or_else(none)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let next = next(&self.worker, &self.pod, &self.limits, bytes, Protocol::Udp);
        Ok((client, server, next))
    }

    async fn ask(&self, server: SocketAddr, asking: &Asking) -> Vec<u8> {
        let exchange = async {
            let socket = self.connect(server).map_err(|error| error.to_string())?;
            over_udp(&socket, &asking.forward)
                .await
                .map_err(|error| error.to_string())
        };
        asking.response(&self.worker, server, exchange).await
    }

    /// A socket of our own in the pod, on a port that nobody can guess.
    fn connect(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.pod.netns.enter(|| for_server(server))?;
        self.worker.sockets.mark_own(&socket).map_err(io::Error::other)?;
        socket.connect(server)?;
        UdpSocket::from_std(socket)
    }
}

async fn reply(socket: &UdpSocket, response: &[u8], client: SocketAddr) {
    while let Err(error) = try_reply(socket, response, client) {
        if error.kind() != io::ErrorKind::WouldBlock || socket.writable().await.is_err() {
            tracing::debug!(%error, %client, "cannot answer a DNS query");
            return;
        }
    }
}

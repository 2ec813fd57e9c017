//! Enrolment: which pods are captured. Level-triggered: what should be is compared with what is, and the difference is
//! applied, so that a restart, a lost event and a second try are all the same.
//!
//! The only writer of the kernel's maps. What is to be done is `plan`'s to say.

mod error;
mod netns;
mod plan;
mod starting;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
pub(super) use error::EnrollError;
use netns::{check_addresses, open};
use plan::{Action, plan};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{dns, pod::Pod, pods::Newest, worker::Serve};
use crate::{
    kernel::{
        dns::DNS_SLOTS,
        load::{Kernel, LoadError},
        maps::{ListenerKind, Maps, PodsCgroup},
    },
    limits::Places,
    mesh::{MtlsMode, PortModes},
    net::{netns::NetnsSource, socket::Family},
    telemetry::chain,
};

/// A pod that should be captured.
pub(super) type Desired = plan::Desired<NetnsSource>;

/// A pod that is captured.
struct Captured {
    pod: Arc<Pod>,
    /// Where its network namespace was found.
    source: NetnsSource,
    modes: PortModes,
    /// Whether its DNS queries are to be captured.
    dns: bool,
    /// Ends the listeners.
    released: CancellationToken,
    /// What is in the kernel of it may be another agent's by now.
    stale: bool,
}

/// The loop's state: what is captured, and the hands that change it.
pub(super) struct Enrolment {
    kernel: Kernel,
    maps: Maps,
    workers: Vec<mpsc::Sender<Serve>>,
    captured: BTreeMap<Arc<str>, Captured>,
    fresh: Vec<Arc<Pod>>,
    dns_places: dns::Places,
    places: Places,
}

/// What one turn of the loop changed and what it could not.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) started: usize,
    pub(super) stopped: usize,
    pub(super) failed: BTreeMap<Arc<str>, String>,
    /// The pods that no agent had captured before: their open connections are not the mesh's.
    pub(super) fresh: Vec<Arc<Pod>>,
    /// Why an earlier agent's place could not be taken.
    pub(super) unsettled: Option<String>,
}

impl Enrolment {
    /// Takes over the kernel's maps. What an earlier agent captured stays captured, and refuses, until the first turn.
    pub(super) fn new(
        kernel: Kernel,
        workers: Vec<mpsc::Sender<Serve>>,
        places: Places,
    ) -> Result<Self, LoadError> {
        let maps = kernel.maps()?;
        let mut enrolment = Self {
            kernel,
            maps,
            workers,
            captured: BTreeMap::new(),
            fresh: Vec::new(),
            dns_places: dns::Places::new(places.limits().dns_queries),
            places,
        };
        enrolment.spread_over_fewer_workers()?;
        Ok(enrolment)
    }

    /// Until every pod has listeners of this agent, SYNs go to workers that this agent and the earlier one both have.
    fn spread_over_fewer_workers(&mut self) -> Result<(), LoadError> {
        let (before, now) = (self.maps.workers(), self.workers.len() as u16);
        if before == 0 || before > now {
            self.maps
                .set_workers(now)
                .map_err(|source| self.kernel.map_error(source))?;
        }
        Ok(())
    }

    /// Another agent writes the maps from now on. What is open here goes on, and so do the listeners.
    pub(super) fn hand_over(&mut self) {
        self.kernel.hand_over();
    }

    /// The other agent's listeners are in place of ours, which end when nothing waits in them; and tunnels' peers are told
    /// to go there.
    pub(super) fn retire(&mut self) {
        self.captured
            .values()
            .for_each(|captured| captured.released.cancel());
    }

    /// Writes the maps again, because the other agent has ended. Every pod is captured anew.
    pub(super) fn resume(&mut self, kernel: Kernel) -> Result<(), LoadError> {
        self.maps = kernel.maps()?;
        self.kernel = kernel;
        self.captured
            .values_mut()
            .for_each(|captured| captured.stale = true);
        self.spread_over_fewer_workers()
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Says who the node itself is, and where its pods are.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn set_node(&mut self, node: Option<u64>, pods: Option<PodsCgroup>) -> Result<(), LoadError> {
        let written = self.maps.set_node(node, pods);
        written.map_err(|source| self.kernel.map_error(source))
    }

    /// Says where the node's pods are, once that is known.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn set_pods_cgroup(&mut self, pods: PodsCgroup) -> Result<(), LoadError> {
        let written = self.maps.set_pods_cgroup(pods);
        written.map_err(|source| self.kernel.map_error(source))
    }

    /// Lets connections go from app to app until then, where nobody else's programs would not know them.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn set_lease(&mut self, until: Duration) -> Result<(), LoadError> {
        let until = if self.kernel.is_settled() {
            until
        } else {
            Duration::ZERO
        };
        let written = self.maps.set_lease(until);
        written.map_err(|source| self.kernel.map_error(source))
    }

    /// The captured pods; without those of which `desired` says something else, which the next turn lets go of or captures
    /// anew.
    pub(super) fn pods(&self, desired: &BTreeMap<Arc<str>, Desired>) -> Vec<Arc<Pod>> {
        let plan = plan(desired, &self.actual());
        let changes = |uid: &Arc<str>| {
            plan.iter().any(|action| match action {
                Action::Capture(it) | Action::Release(it) => it == uid,
                Action::SetModes(_) => false,
            })
        };
        let kept = self.captured.iter().filter(|(uid, _)| !changes(uid));
        kept.map(|(_, captured)| Arc::clone(&captured.pod)).collect()
    }

    /// Whether a pod is captured.
    pub(super) fn is_captured(&self, uid: &str) -> bool {
        self.captured.contains_key(uid)
    }

    pub(super) fn captured(&self) -> usize {
        self.captured.len()
    }

    /// The network namespaces that are captured.
    pub(super) fn cookies(&self) -> HashSet<u64> {
        let current = self.captured.values().filter(|captured| !captured.stale);
        current.map(|captured| captured.pod.netns.cookie()).collect()
    }

    /// Whether a pod is captured in this very namespace: one that was made anew has its predecessor's uid.
    pub(super) fn is_captured_at(&self, uid: &str, netns: &NetnsSource) -> bool {
        let captured = self.captured.get(uid);
        captured.is_some_and(|captured| !captured.stale && captured.source == *netns)
    }

    /// One turn: does what is missing. A pod that fails does not stop the others; it is tried again at the next turn,
    /// and what was captured of it before stays captured.
    ///
    /// `starting` is what the node shows by then: what starts meanwhile is held back between one pod and the next.
    pub(super) async fn turn(
        &mut self,
        desired: &BTreeMap<Arc<str>, Desired>,
        starting: impl Fn() -> Option<Newest>,
    ) -> Turn {
        let mut turn = Turn::default();
        let mut held = None;
        for action in plan(desired, &self.actual()) {
            let newest = starting().filter(|newest| held != Some(newest.looked));
            if let Some(newest) = newest {
                if let Err(error) = self.set_holds(Some(&newest)) {
                    tracing::error!(error = chain(&error), "pods that start are not held back");
                }
                held = Some(newest.looked);
            }
            let (uid, result) = match &action {
                Action::Capture(uid) => (uid, self.capture(uid, &desired[uid]).await),
                Action::SetModes(uid) => (uid, self.set_modes(uid, &desired[uid].modes)),
                Action::Release(uid) => (uid, self.release(uid)),
            };
            match (result, &action) {
                (Ok(()), Action::Capture(_)) => turn.started += 1,
                (Ok(()), Action::Release(_)) => turn.stopped += 1,
                (Ok(()), Action::SetModes(_)) => {}
                (Err(error), _) => drop(turn.failed.insert(uid.clone(), chain(&error))),
            }
        }
        turn.fresh = std::mem::take(&mut self.fresh);
        // A pod that an earlier agent captured and this one could not must go on refusing.
        let is_done = |uid: &Arc<str>, pod: &Desired| self.captured.contains_key(uid) || pod.netns.is_idle();
        let all = desired.iter().all(|(uid, pod)| is_done(uid, pod));
        if all {
            self.release_strangers(&mut turn);
        }
        if let Err(error) = self.settle(all) {
            let error = chain(&error);
            tracing::error!(error, "cannot take an earlier agent's place; trying again");
            turn.unsettled = Some(error);
        }
        turn
    }

    /// What could be captured is captured: the kernel's programs follow this agent alone from now on.
    fn settle(&mut self, all: bool) -> Result<(), EnrollError> {
        let ours: HashSet<u64> = self.captured.values().map(|it| it.pod.netns.cookie()).collect();
        if !all {
            let others = self.kernel.foreign_lookups().into_iter();
            others
                .filter(|cookie| !ours.contains(cookie))
                .try_for_each(|cookie| self.maps.refuse_pod(cookie))?;
        }
        let workers = self.workers.len() as u16;
        if self.maps.workers() != workers {
            self.maps.set_workers(workers)?;
        }
        self.kernel.settle(&ours, all).map_err(EnrollError::Attach)
    }

    fn actual(&self) -> BTreeMap<Arc<str>, Desired> {
        let of = |captured: &Captured| Desired {
            // A path that leads to another namespace by now belongs to a pod that was made anew.
            netns: Some(&captured.source)
                .filter(|source| !captured.stale && source.is_current(&captured.pod.netns))
                .cloned()
                .unwrap_or_default(),
            addresses: captured.pod.addresses.clone(),
            modes: captured.modes.clone(),
            dns: captured.dns,
        };
        self.captured
            .iter()
            .map(|(uid, captured)| (uid.clone(), of(captured)))
            .collect()
    }

    /// Inbound first, outbound last: a pod that is half captured refuses, it never leaks. A pod that is captured already
    /// is let go only after that, and only of what it no longer has.
    async fn capture(&mut self, uid: &Arc<str>, desired: &Desired) -> Result<(), EnrollError> {
        tracing::debug!(%uid, netns = %desired.netns, "capturing");
        let netns = open(&desired.netns)?;
        check_addresses(&netns, &desired.addresses)?;
        let mut pod = Pod {
            uid: uid.clone(),
            netns,
            addresses: desired.addresses.clone(),
            dns: desired.dns.then(|| self.dns_places.of_pod()),
            places: self.places.of_pod(),
            since: Instant::now(),
            baggage: ArcSwapOption::empty(),
        };
        let for_dns = listen_for_dns(&mut pod)?;
        let pod = Arc::new(pod);
        write_modes(&mut self.maps, &pod, &desired.modes)?;
        let cookie = pod.netns.cookie();
        let is_fresh =
            !self.kernel.lookups().contains(&cookie) && !self.kernel.foreign_lookups().contains(&cookie);
        // Ends the listeners again unless all of it succeeds.
        let listening = self.listen(&pod, for_dns).await?;
        self.kernel
            .attach_lookup(cookie, std::os::fd::AsFd::as_fd(&pod.netns))
            .map_err(EnrollError::Attach)?;
        self.maps.insert_pod(cookie, &pod.addresses, pod.dns.is_some())?;
        if is_fresh {
            self.fresh.push(Arc::clone(&pod));
        }
        let captured = Captured {
            pod,
            source: desired.netns.clone(),
            modes: desired.modes.clone(),
            dns: desired.dns,
            released: listening.disarm(),
            stale: false,
        };
        tracing::info!(%uid, netns = %desired.netns, "pod captured");
        match self.captured.insert(uid.clone(), captured) {
            Some(old) => self.let_go(&old, Some(cookie)),
            None => Ok(()),
        }
    }

    /// Gives each worker its listeners in the pod, and the kernel the list of them. Listeners of an earlier agent are
    /// replaced one by one; what waits in them is that agent's to finish.
    async fn listen(
        &mut self,
        pod: &Arc<Pod>,
        mut for_dns: Vec<dns::PodSocket>,
    ) -> Result<DropGuard, EnrollError> {
        let released = CancellationToken::new();
        let listening = released.clone().drop_guard();
        for socket in &for_dns {
            let family = |ip: &&IpAddr| Family::of(**ip) == socket.family;
            for address in pod.addresses.iter().filter(family) {
                self.maps
                    .insert_listener(*address, ListenerKind::Dns, socket.slot, &socket.socket)?;
            }
        }
        // One worker has all DNS sockets of a pod.
        let answering = pod.netns.cookie() % self.workers.len() as u64;
        for (number, worker) in (0_u16..).zip(&self.workers) {
            let listeners = pod.listen().map_err(EnrollError::Listen)?;
            for listener in &listeners {
                let family = |ip: &&IpAddr| Family::of(**ip) == listener.family;
                for address in pod.addresses.iter().filter(family) {
                    self.maps
                        .insert_listener(*address, listener.kind, number, &listener.socket)?;
                }
            }
            let datagrams = if u64::from(number) == answering {
                std::mem::take(&mut for_dns)
            } else {
                Vec::new()
            };
            let serve = Serve {
                pod: Arc::clone(pod),
                listeners,
                datagrams,
                released: released.clone(),
            };
            worker.send(serve).await.map_err(|_| EnrollError::WorkerGone)?;
        }
        Ok(listening)
    }

    fn set_modes(&mut self, uid: &str, modes: &PortModes) -> Result<(), EnrollError> {
        if let Some(captured) = self.captured.get_mut(uid) {
            write_modes(&mut self.maps, &captured.pod, modes)?;
            captured.modes = modes.clone();
        }
        Ok(())
    }

    fn release(&mut self, uid: &str) -> Result<(), EnrollError> {
        let Some(captured) = self.captured.remove(uid) else {
            return Ok(());
        };
        tracing::info!(uid, "pod released");
        self.let_go(&captured, None)
    }

    /// Outbound first: from here on the pod's new connections are its own. Running ones are carried to their end.
    /// What is still in use, by the pod's own new capture in the namespace `kept` or by another pod, stays.
    fn let_go(&mut self, captured: &Captured, kept: Option<u64>) -> Result<(), EnrollError> {
        let (pod, cookie) = (&captured.pod, captured.pod.netns.cookie());
        if kept != Some(cookie) {
            self.maps.remove_pod(cookie)?;
            self.kernel.detach_lookup(cookie).map_err(EnrollError::Attach)?;
        }
        captured.released.cancel();
        let in_use = |address: &&IpAddr| {
            self.captured
                .values()
                .any(|it| it.pod.addresses.contains(address))
        };
        let gone: Vec<_> = pod
            .addresses
            .iter()
            .filter(|address| !in_use(address))
            .copied()
            .collect();
        for address in gone {
            for worker in 0..self.workers.len() as u16 {
                for kind in [
                    ListenerKind::Outbound,
                    ListenerKind::Hbone,
                    ListenerKind::Plaintext,
                ] {
                    self.maps.remove_listener(address, kind, worker)?;
                }
            }
            for slot in 0..DNS_SLOTS {
                self.maps.remove_listener(address, ListenerKind::Dns, slot)?;
            }
            self.maps.set_port_modes(address, &[])?;
        }
        Ok(())
    }

    /// Lets go of what an earlier agent captured and nobody wants any more.
    fn release_strangers(&mut self, turn: &mut Turn) {
        let ours: HashSet<u64> = self.captured.values().map(|it| it.pod.netns.cookie()).collect();
        let strange = |cookie: &u64| !ours.contains(cookie);
        for cookie in self.maps.pods().into_iter().filter(strange) {
            match self.maps.remove_pod(cookie) {
                Ok(()) => turn.stopped += 1,
                Err(error) => tracing::warn!(cookie, %error, "cannot release a pod of an earlier agent"),
            }
        }
        for cookie in self.kernel.lookups().into_iter().filter(strange) {
            if let Err(error) = self.kernel.detach_lookup(cookie) {
                tracing::warn!(cookie, %error, "cannot detach from a pod of an earlier agent");
            }
        }
    }
}

/// Opens a pod's DNS sockets. Where an app of the pod has one of their ports, the pod asks its servers itself: no app can
/// keep its pod out of the mesh.
fn listen_for_dns(pod: &mut Pod) -> Result<Vec<dns::PodSocket>, EnrollError> {
    if pod.dns.is_none() {
        return Ok(Vec::new());
    }
    match dns::listen(pod) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(%error, pod = %pod.uid, "the pod's DNS queries are not captured: an app has their port");
            pod.dns = None;
            Ok(Vec::new())
        }
        listening => listening.map_err(EnrollError::Listen),
    }
}

fn write_modes(maps: &mut Maps, pod: &Pod, modes: &PortModes) -> Result<(), EnrollError> {
    let strict = |mode: &MtlsMode| *mode == MtlsMode::Strict;
    let ports = modes.ports.iter().map(|(port, mode)| (*port, strict(mode)));
    let all: Vec<_> = [(0, strict(&modes.mode))].into_iter().chain(ports).collect();
    pod.addresses
        .iter()
        .try_for_each(|address| maps.set_port_modes(*address, &all))
        .map_err(Into::into)
}

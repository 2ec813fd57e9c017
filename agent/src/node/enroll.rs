//! Enrolment: which pods are captured. Level-triggered: what should be is compared with what is, and the difference is
//! applied, so that a restart, a lost event and a second try are all the same.
//!
//! The only writer of the kernel's maps.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{pod::Pod, worker::Serve};
use crate::{
    kernel::{
        load::{Kernel, LoadError},
        maps::{ListenerKind, Maps},
    },
    mesh::{MtlsMode, PortModes},
    net::{netns::Netns, socket::Family},
};

/// A pod that should be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) netns: PathBuf,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) modes: PortModes,
}

/// A pod that is captured.
struct Captured {
    pod: Arc<Pod>,
    modes: PortModes,
    released: CancellationToken,
}

/// One step from what is to what should be.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Capture a pod.
    Capture(Arc<str>),
    /// Tell the kernel a pod's new port modes.
    SetModes(Arc<str>),
    /// Let a pod go.
    Release(Arc<str>),
}

/// Why a pod could not be captured or released.
#[derive(Debug, Error)]
pub(super) enum EnrollError {
    #[error("open the pod's network namespace {path}")]
    Netns { path: PathBuf, source: io::Error },
    #[error("the pod has no address in the mesh")]
    NoAddress,
    #[error("the mesh says that the pod has the address {address}, but its network namespace does not")]
    NotItsAddress { address: IpAddr, source: io::Error },
    #[error("listen inside the pod")]
    Listen(#[source] io::Error),
    #[error("write the maps of the kernel's programs")]
    Maps(#[from] aya::maps::MapError),
    #[error("attach to the pod's network namespace")]
    Attach(#[source] LoadError),
    #[error("a worker has ended")]
    WorkerGone,
}

/// The loop's state: what is captured, and the hands that change it.
pub(super) struct Enrolment {
    kernel: Kernel,
    maps: Maps,
    workers: Vec<mpsc::Sender<Serve>>,
    captured: BTreeMap<Arc<str>, Captured>,
}

/// What one turn of the loop changed and what it could not.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) started: usize,
    pub(super) stopped: usize,
    pub(super) failed: BTreeMap<Arc<str>, String>,
}

impl Enrolment {
    /// Takes over the kernel's maps. What an earlier agent captured stays captured, and refuses, until the first turn.
    pub(super) fn new(kernel: Kernel, workers: Vec<mpsc::Sender<Serve>>) -> Result<Self, LoadError> {
        let mut maps = kernel.maps()?;
        maps.set_workers(workers.len() as u16)
            .map_err(|source| LoadError::Maps {
                pin_dir: PathBuf::new(),
                source: Box::new(source),
            })?;
        Ok(Self {
            kernel,
            maps,
            workers,
            captured: BTreeMap::new(),
        })
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Whether a pod is captured.
    pub(super) fn is_captured(&self, uid: &str) -> bool {
        self.captured.contains_key(uid)
    }

    pub(super) fn captured(&self) -> usize {
        self.captured.len()
    }

    /// One turn: does what is missing. A pod that fails does not stop the others; it is tried again at the next turn,
    /// and what was captured of it before stays captured.
    pub(super) async fn turn(&mut self, desired: &BTreeMap<Arc<str>, Desired>) -> Turn {
        let mut turn = Turn::default();
        for action in plan(desired, &self.actual()) {
            let (uid, result) = match &action {
                Action::Capture(uid) => (uid, self.capture(uid, &desired[uid]).await),
                Action::SetModes(uid) => (uid, self.set_modes(uid, &desired[uid].modes)),
                Action::Release(uid) => (uid, self.release(uid)),
            };
            match (result, &action) {
                (Ok(()), Action::Capture(_)) => turn.started += 1,
                (Ok(()), Action::Release(_)) => turn.stopped += 1,
                (Ok(()), Action::SetModes(_)) => {}
                (Err(error), _) => drop(turn.failed.insert(uid.clone(), crate::telemetry::chain(&error))),
            }
        }
        // A pod that an earlier agent captured and this one could not must go on refusing.
        if desired.keys().all(|uid| self.captured.contains_key(uid)) {
            self.release_strangers(&mut turn);
        }
        turn
    }

    fn actual(&self) -> BTreeMap<Arc<str>, Desired> {
        let of = |captured: &Captured| Desired {
            // A path that leads to another namespace by now belongs to a pod that was made anew.
            netns: Some(captured.pod.netns.path())
                .filter(|_| captured.pod.netns.is_current())
                .map_or_else(PathBuf::new, Path::to_owned),
            addresses: captured.pod.addresses.clone(),
            modes: captured.modes.clone(),
        };
        self.captured
            .iter()
            .map(|(uid, captured)| (uid.clone(), of(captured)))
            .collect()
    }

    /// Inbound first, outbound last: a pod that is half captured refuses, it never leaks. A pod that is captured already
    /// is let go only after that, and only of what it no longer has.
    async fn capture(&mut self, uid: &Arc<str>, desired: &Desired) -> Result<(), EnrollError> {
        tracing::debug!(%uid, netns = %desired.netns.display(), "capturing");
        let netns = Netns::open(&desired.netns).map_err(|source| EnrollError::Netns {
            path: desired.netns.clone(),
            source,
        })?;
        check_addresses(&netns, &desired.addresses)?;
        let pod = Arc::new(Pod {
            uid: uid.clone(),
            netns,
            addresses: desired.addresses.clone(),
        });
        write_modes(&mut self.maps, &pod, &desired.modes)?;
        let cookie = pod.netns.cookie();
        // Ends the listeners again unless all of it succeeds.
        let listening = self.listen(&pod).await?;
        self.kernel
            .attach_lookup(cookie, std::os::fd::AsFd::as_fd(&pod.netns))
            .map_err(EnrollError::Attach)?;
        self.maps.insert_pod(cookie, &pod.addresses)?;
        let captured = Captured {
            pod,
            modes: desired.modes.clone(),
            released: listening.disarm(),
        };
        tracing::info!(%uid, netns = %desired.netns.display(), "pod captured");
        match self.captured.insert(uid.clone(), captured) {
            Some(old) => self.let_go(&old, Some(cookie)),
            None => Ok(()),
        }
    }

    /// Gives each worker its listeners in the pod, and the kernel the list of them. Listeners of an earlier agent are
    /// replaced one by one; what waits in them is that agent's to finish.
    async fn listen(&mut self, pod: &Arc<Pod>) -> Result<DropGuard, EnrollError> {
        let released = CancellationToken::new();
        let listening = released.clone().drop_guard();
        for (number, worker) in (0_u16..).zip(&self.workers) {
            let listeners = pod.listen().map_err(EnrollError::Listen)?;
            for listener in &listeners {
                let family = |ip: &&IpAddr| Family::of(**ip) == listener.family;
                for address in pod.addresses.iter().filter(family) {
                    self.maps
                        .insert_listener(*address, listener.kind, number, &listener.socket)?;
                }
            }
            let serve = Serve {
                pod: Arc::clone(pod),
                listeners,
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

/// The difference between what should be and what is. Releases come first: another pod may have the address of one that
/// went. A pod that changed, or was made anew, is captured as it is now and never released in between.
fn plan(desired: &BTreeMap<Arc<str>, Desired>, actual: &BTreeMap<Arc<str>, Desired>) -> Vec<Action> {
    let same_pod = |a: &Desired, b: &Desired| a.netns == b.netns && a.addresses == b.addresses;
    let unwanted = actual.keys().filter(|uid| !desired.contains_key(*uid));
    let releases = unwanted.map(|uid| Action::Release(uid.clone()));
    let rest = desired.iter().filter_map(|(uid, want)| match actual.get(uid) {
        Some(is) if same_pod(want, is) => (want.modes != is.modes).then(|| Action::SetModes(uid.clone())),
        _ => Some(Action::Capture(uid.clone())),
    });
    releases.chain(rest).collect()
}

/// The pod must have the addresses that the mesh gives it: a wrong one would send its apps' connections elsewhere.
fn check_addresses(netns: &Netns, addresses: &[IpAddr]) -> Result<(), EnrollError> {
    if addresses.is_empty() {
        return Err(EnrollError::NoAddress);
    }
    addresses.iter().try_for_each(|address| {
        let bound = netns.enter(|| UdpSocket::bind((*address, 0)));
        bound.map(drop).map_err(|source| EnrollError::NotItsAddress {
            address: *address,
            source,
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(netns: &str, address: &str, mode: MtlsMode) -> Desired {
        Desired {
            netns: netns.into(),
            addresses: vec![address.parse().expect("an address")],
            modes: PortModes {
                mode,
                ports: BTreeMap::new(),
            },
        }
    }

    fn check(desired: &[(&str, Desired)], actual: &[(&str, Desired)], expect: &[Action]) {
        let map = |pods: &[(&str, Desired)]| {
            pods.iter()
                .map(|(uid, pod)| (Arc::from(*uid), pod.clone()))
                .collect()
        };
        assert_eq!(plan(&map(desired), &map(actual)), expect);
    }

    #[test]
    fn the_plan_is_the_difference() {
        use MtlsMode::{Permissive, Strict};
        let a = || pod("/run/netns/a", "10.0.0.1", Permissive);
        check(&[], &[], &[]);
        check(&[("a", a())], &[], &[Action::Capture("a".into())]);
        check(&[("a", a())], &[("a", a())], &[]);
        check(&[], &[("a", a())], &[Action::Release("a".into())]);
        let strict = pod("/run/netns/a", "10.0.0.1", Strict);
        check(&[("a", strict)], &[("a", a())], &[Action::SetModes("a".into())]);
    }

    #[test]
    fn a_pod_that_changed_is_never_released_in_between() {
        let old = pod("/run/netns/a", "10.0.0.1", MtlsMode::Permissive);
        let captured_anew = [Action::Capture("a".into())];
        let moved = pod("/run/netns/b", "10.0.0.1", MtlsMode::Permissive);
        check(&[("a", moved)], &[("a", old.clone())], &captured_anew);
        let other_address = pod("/run/netns/a", "10.0.0.2", MtlsMode::Permissive);
        check(&[("a", other_address)], &[("a", old)], &captured_anew);
    }

    #[test]
    fn an_address_that_moved_to_another_pod_is_released_first() {
        let old = pod("/run/netns/z", "10.0.0.1", MtlsMode::Permissive);
        let new = pod("/run/netns/a", "10.0.0.1", MtlsMode::Permissive);
        check(
            &[("a", new)],
            &[("z", old)],
            &[Action::Release("z".into()), Action::Capture("a".into())],
        );
    }
}

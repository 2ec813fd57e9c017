//! A pod of this node that is captured.

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::HeaderValue;

use super::dns;
use crate::{
    hbone::Baggage,
    kernel::maps::ListenerKind,
    limits::PodPlaces,
    mesh::Workload,
    net::{
        netns::Netns,
        socket::{Family, Other, listen},
    },
};

/// A captured pod. Who it is (its service account, its policies) is asked of the mesh for each connection.
#[derive(Debug)]
pub(super) struct Pod {
    /// The workload's uid in the mesh.
    pub(super) uid: Arc<str>,
    /// Its network namespace.
    pub(super) netns: Netns,
    /// Its addresses, canonical.
    pub(super) addresses: Vec<IpAddr>,
    /// What bounds its DNS queries; none when it asks its servers itself.
    pub(super) dns: Option<dns::Limits>,
    /// What bounds its connections.
    pub(super) places: Arc<PodPlaces>,
    /// When it was captured.
    pub(super) since: Instant,
    /// What it says of itself in tunnels, of the workload it was made from.
    pub(super) baggage: ArcSwapOption<(Arc<Workload>, HeaderValue)>,
}

/// For how long after its capture a pod's connections wait for what the agent must be told of it: that the mesh knows it, and
/// its certificate. A pod may be captured before that (`pods::nri`), and dials with its first instruction.
const YOUNG: Duration = Duration::from_secs(10);

/// A listening socket in a pod, and which SYNs it is for.
pub(super) struct PodListener {
    pub(super) kind: ListenerKind,
    pub(super) family: Family,
    pub(super) socket: std::net::TcpListener,
}

impl Pod {
    /// What the pod says of itself in tunnels. `workload` is what the mesh has for it now; the text is made once for each.
    pub(super) fn baggage(&self, workload: &Arc<Workload>) -> HeaderValue {
        if let Some(made) = &*self.baggage.load()
            && Arc::ptr_eq(&made.0, workload)
        {
            return made.1.clone();
        }
        let header = Baggage::of(workload).header();
        self.baggage
            .store(Some(Arc::new((Arc::clone(workload), header.clone()))));
        header
    }

    /// How long its connections may wait for that; nothing for a pod that is not young any more.
    pub(super) fn patience(&self) -> Duration {
        YOUNG.saturating_sub(self.since.elapsed())
    }

    /// The families that the pod has addresses of.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        let has = |family| self.addresses.iter().any(|ip| Family::of(*ip) == family);
        [Family::V4, Family::V6]
            .into_iter()
            .filter(move |family| has(*family))
    }

    /// The listeners of one worker: each kind in each family.
    ///
    /// # Errors
    /// Those of the kernel, such as too many open files.
    pub(super) fn listen(&self) -> io::Result<Vec<PodListener>> {
        const KINDS: [ListenerKind; 3] = [
            ListenerKind::Outbound,
            ListenerKind::Hbone,
            ListenerKind::Plaintext,
        ];
        let wanted: Vec<_> = self
            .families()
            .flat_map(|family| KINDS.map(|kind| (kind, family)))
            .collect();
        self.netns.enter(|| {
            wanted
                .into_iter()
                .map(|(kind, family)| {
                    // An app's connection that has not come to its end is reset; a tunnel says by itself when it ends.
                    let (from, reset) = match kind {
                        ListenerKind::Outbound => (Other::App, true),
                        ListenerKind::Plaintext => (Other::Network, true),
                        ListenerKind::Hbone | ListenerKind::Dns => (Other::Network, false),
                    };
                    let socket = listen(family, from, reset)?;
                    Ok(PodListener { kind, family, socket })
                })
                .collect()
        })
    }
}

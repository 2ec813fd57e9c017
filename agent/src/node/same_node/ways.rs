//! The ways between two pods of the node: which of them are known to stay on it. Asked of the kernel once, and again when a
//! link, a route or a rule of the node has changed.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
};

use super::super::pod::Pod;
use crate::{
    net::{netlink::Changes, netns::Netns, veth},
    telemetry::chain,
};

/// A pod's network namespace and its address, and the other's.
type Ends = (u64, IpAddr, IpAddr);

/// What was found out.
pub(super) struct Ways {
    /// The node's own network namespace; without it nothing can be proved.
    node: Option<Netns>,
    changes: Option<Changes>,
    proofs: HashMap<Ends, Result<(), String>>,
}

impl Ways {
    pub(super) fn new(node: Option<Netns>) -> Self {
        Self {
            changes: node.as_ref().and_then(watch),
            node,
            proofs: HashMap::new(),
        }
    }

    pub(super) fn node(&self) -> Option<&Netns> {
        self.node.as_ref()
    }

    /// Whether something on the node has changed since this was last asked; then everything is proved anew.
    pub(super) fn have_changed(&mut self) -> bool {
        let changed = self.changes.as_ref().is_some_and(Changes::any);
        if changed {
            self.forget();
        }
        changed
    }

    pub(super) fn forget(&mut self) {
        self.proofs.clear();
    }

    /// Whether the way from a pod to an app of another stays on the node; or why that is not known.
    pub(super) fn proved(&mut self, from: &Pod, to: &Pod, app: SocketAddr) -> Result<(), String> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == app.is_ipv4();
        let source = from.addresses.iter().find(same_family).copied();
        let source = source.ok_or("the pod has no address of the family")?;
        let node = self.node.as_ref();
        let prove = || {
            let node = node.ok_or("the node's network namespace is not known")?;
            veth::prove(node, (&from.netns, source), (&to.netns, app.ip())).map_err(|error| chain(&error))
        };
        let ends = (from.netns.cookie(), source, app.ip());
        self.proofs.entry(ends).or_insert_with(prove).clone()
    }
}

/// Listens for changes of the node's links and routes. Without that, what was proved once is taken to hold.
fn watch(node: &Netns) -> Option<Changes> {
    let opened: io::Result<Changes> = node.enter(Changes::open);
    opened
        .inspect_err(|error| tracing::warn!(%error, "changes of the node's routes go unnoticed"))
        .ok()
}

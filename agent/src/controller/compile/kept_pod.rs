//! What is kept of a pod: tens of thousands of them are most of what a controller remembers of its cluster, and what the pods of one
//! Deployment have in common they share.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    cluster::objects::{Kind, Pod},
    manifests::ObjectRef,
    mesh::{Interned, Pool, values},
};

type Labels = BTreeMap<String, String>;
type NamedPorts = Arc<[(Arc<str>, u16)]>;

/// It. What is not in here makes no difference to anybody: two that are equal are no change.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptPod {
    /// Its name.
    pub name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) uid: Box<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The annotations that are read.
    pub annotations: Arc<Labels>,
    /// Kind and name of its controller.
    pub(super) made_by: Option<(Arc<str>, Arc<str>)>,
    /// The node that it is bound to.
    pub node: Option<Arc<str>>,
    pub(super) service_account: Option<Arc<str>>,
    /// Those that pods can have.
    pub(super) addresses: Box<[IpAddr]>,
    /// The TCP ports that its running containers name.
    pub(super) named_ports: NamedPorts,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Readiness gates included, and not about to go.
    pub(super) is_ready: bool,
    /// Whether it is about to go.
    pub is_leaving: bool,
    /// Whether it has begun, and not ended.
    pub is_running: bool,
    /// Whether it has come to its end: it will never run again, and others may have its addresses.
    pub is_over: bool,
}

/// What pods have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct InCommon {
    texts: Interned,
    labels: Pool<Arc<Labels>>,
    ports: Pool<NamedPorts>,
}

impl KeptPod {
    /// Of a pod that was trimmed.
    pub(super) fn new(pod: Pod, common: &mut InCommon) -> Self {
        let addresses = addresses(&pod);
        let (is_ready, is_over) = (pod.is_ready(), pod.is_over());
        let ports = pod.named_ports();
        let ports: Vec<_> = ports
            .map(|(name, port)| (common.texts.text(name), port))
            .collect();
        let mut text = |text: Option<String>| text.map(|it| common.texts.text(&it));
        let (metadata, spec) = (pod.metadata, pod.spec);
        let owner = metadata.owner_references.into_iter().flatten().next();
        Self {
            name: metadata.name.unwrap_or_default().into(),
            namespace: text(metadata.namespace).unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default().into(),
            made_by: owner.and_then(|it| Some((text(Some(it.kind))?, text(Some(it.name))?))),
            node: text(spec.node_name),
            service_account: text(spec.service_account_name),
            labels: common.labels.share(Arc::new(metadata.labels.unwrap_or_default())),
            annotations: common
                .labels
                .share(Arc::new(metadata.annotations.unwrap_or_default())),
            addresses,
            named_ports: common.ports.share(ports.into()),
            host_network: spec.host_network,
            is_ready,
            is_leaving: metadata.deletion_timestamp.is_some(),
            is_running: pod.status.phase.as_deref() == Some("Running"),
            is_over,
        }
    }

    /// What names it.
    pub(super) fn reference(&self) -> ObjectRef {
        ObjectRef {
            namespace: self.namespace.to_string(),
            kind: Kind::Pod,
            name: self.name.to_string(),
            uid: self.uid.to_string(),
            generation: 0,
        }
    }
}

fn addresses(pod: &Pod) -> Box<[IpAddr]> {
    let several = pod.status.pod_ips.iter().map(|it| it.ip.as_str());
    let one = pod
        .status
        .pod_ip
        .as_deref()
        .filter(|_| pod.status.pod_ips.is_empty());
    let mut addresses: Vec<_> = several
        .chain(one)
        .filter_map(|text| values::address(text).ok())
        .collect();
    addresses.dedup();
    addresses.into()
}

//! The `workloads` section of a mesh file: from its entries to workloads, with what only the compiler needs to know.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde_saphyr::{Location, Spanned};

use super::{
    compile::Globals,
    problem::{Place, Problems},
    schema::{Labels, WaypointEntry, WorkloadEntry},
    values,
};
use crate::mesh::{
    GatewayAddress, GatewayDestination, HBONE_PORT, Locality, SpiffeId, TunnelProtocol, Workload,
    WorkloadType,
};

/// A workload, and what selectors and this node ask of it.
pub(super) struct Pod<'a> {
    pub(super) workload: Workload,
    pub(super) labels: Option<&'a Labels>,
    /// And where the file says so.
    pub(super) netns: Option<(PathBuf, Location)>,
    /// Whether its DNS queries are captured, where the file says so.
    pub(super) dns_capture: Option<bool>,
    /// Where the file speaks of it.
    pub(super) at: Location,
    /// Which of the section's entries it is.
    pub(super) index: usize,
}

/// Reads an entry; `None` where it has no usable name, so that nothing can refer to it.
pub(super) fn pod<'a>(
    entry: &'a Spanned<WorkloadEntry>,
    index: usize,
    globals: &Globals,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Pod<'a>> {
    let (at, entry) = (entry.referenced, &entry.value);
    let name = problems.required(&entry.name, at, place, "name", values::name);
    let namespace = problems.required(&entry.namespace, at, place, "namespace", values::label);
    let (name, namespace) = (name?, namespace?);
    let service_account = problems.optional(&entry.service_account, place, "serviceAccount", values::name);
    let service_account = service_account.unwrap_or_else(|| "default".into());
    let workload_name = problems.optional(&entry.workload_name, place, "workloadName", values::word);
    let canonical_name = canonical_name(entry, place, problems)
        .or_else(|| workload_name.clone())
        .unwrap_or_else(|| name.clone());
    let canonical_revision = canonical_revision(entry, place, problems).unwrap_or_else(|| "latest".into());
    let workload = Workload {
        uid: format!("{}//Pod/{namespace}/{name}", globals.cluster).into(),
        identity: identity(globals, &namespace, &service_account, at, place, problems)?,
        addresses: problems.read_all(&entry.addresses, &place.field("addresses"), values::address),
        node: problems
            .optional(&entry.node, place, "node", values::name)
            .unwrap_or_default(),
        tunnel_protocol: problems
            .optional(&entry.tunnel_protocol, place, "tunnelProtocol", tunnel_protocol)
            .unwrap_or_default(),
        workload_type: type_of(entry, place, problems),
        canonical_name,
        canonical_revision,
        workload_name: workload_name.unwrap_or_else(|| name.clone()),
        cluster: globals.cluster.clone(),
        network: problems
            .optional(&entry.network, place, "network", values::word)
            .unwrap_or_default(),
        locality: locality(entry, place, problems),
        capacity: problems
            .optional(&entry.capacity, place, "capacity", values::capacity)
            .unwrap_or(1),
        healthy: entry.healthy.unwrap_or(true),
        host_network: entry.host_network.unwrap_or_default(),
        native_tunnel: entry.native_tunnel.unwrap_or_default(),
        waypoint: entry
            .waypoint
            .as_ref()
            .and_then(|w| waypoint(w, globals, &place.field("waypoint"), problems)),
        same_node: problems.optional(&entry.same_node, place, "sameNode", values::same_node),
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
        name,
        namespace,
    };
    check_labels(entry.labels.as_ref(), &place.field("labels"), problems);
    let netns = capture(entry, &workload, place, problems);
    Some(Pod {
        workload,
        labels: entry.labels.as_ref(),
        netns,
        dns_capture: entry.dns_capture,
        at,
        index,
    })
}

impl Pod<'_> {
    /// Whether a selector selects it: it has every label that the selector names.
    pub(super) fn is_selected_by(&self, selector: &Labels) -> bool {
        let has = |(key, value): (&String, &Spanned<String>)| {
            self.labels
                .and_then(|labels| labels.get(key))
                .is_some_and(|label| label.value == value.value)
        };
        selector.iter().all(has)
    }

    /// The same, for a manifest's.
    pub(super) fn has_labels(&self, wanted: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| {
            let label = self.labels.and_then(|labels| labels.get(key));
            label.is_some_and(|label| label.value == *value)
        };
        wanted.iter().all(has)
    }
}

fn canonical_name(entry: &WorkloadEntry, place: &Place<'_>, problems: &mut Problems) -> Option<Arc<str>> {
    let written = problems.optional(&entry.canonical_name, place, "canonicalName", values::word);
    written.or_else(|| label_of(entry, &values::CANONICAL_NAME))
}

fn canonical_revision(entry: &WorkloadEntry, place: &Place<'_>, problems: &mut Problems) -> Option<Arc<str>> {
    let written = problems.optional(
        &entry.canonical_revision,
        place,
        "canonicalRevision",
        values::word,
    );
    written.or_else(|| label_of(entry, &values::CANONICAL_REVISION))
}

fn label_of(entry: &WorkloadEntry, keys: &[&str]) -> Option<Arc<str>> {
    let labels = entry.labels.as_ref()?;
    let value = keys
        .iter()
        .find_map(|key| labels.get(*key))
        .filter(|label| !label.value.is_empty())?;
    Some(value.value.as_str().into())
}

fn identity(
    globals: &Globals,
    namespace: &str,
    service_account: &str,
    at: Location,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<SpiffeId> {
    let id = SpiffeId::new(&globals.trust_domain, namespace, service_account);
    id.map_err(|err| problems.add(at, place, format!("{err}: choose a shorter or a simpler name")))
        .ok()
}

fn tunnel_protocol(text: &str) -> Result<TunnelProtocol, String> {
    match text {
        "HBONE" => Ok(TunnelProtocol::Hbone),
        "NONE" => Ok(TunnelProtocol::None),
        _ => Err(values::one_of(text, "HBONE or NONE")),
    }
}

/// Where it is not written, a pod that has a workload's name is a Deployment's.
fn type_of(entry: &WorkloadEntry, place: &Place<'_>, problems: &mut Problems) -> WorkloadType {
    let written = problems.optional(&entry.workload_type, place, "workloadType", workload_type);
    written.unwrap_or(match entry.workload_name {
        Some(_) => WorkloadType::Deployment,
        None => WorkloadType::Pod,
    })
}

fn workload_type(text: &str) -> Result<WorkloadType, String> {
    match text.to_ascii_lowercase().as_str() {
        "deployment" => Ok(WorkloadType::Deployment),
        "cronjob" => Ok(WorkloadType::CronJob),
        "pod" => Ok(WorkloadType::Pod),
        "job" => Ok(WorkloadType::Job),
        _ => Err(values::one_of(text, "deployment, cronjob, job or pod")),
    }
}

fn locality(entry: &WorkloadEntry, place: &Place<'_>, problems: &mut Problems) -> Locality {
    let mut word = |text, field| {
        problems
            .optional(text, place, field, values::word)
            .unwrap_or_default()
    };
    Locality {
        region: word(&entry.region, "region"),
        zone: word(&entry.zone, "zone"),
        subzone: word(&entry.subzone, "subzone"),
    }
}

fn check_labels(labels: Option<&Labels>, place: &Place<'_>, problems: &mut Problems) {
    for (key, value) in labels.into_iter().flatten() {
        problems.read(value, &place.field(key), values::label_value);
    }
}

/// Where the pod is captured, and where the file says so.
fn capture(
    entry: &WorkloadEntry,
    workload: &Workload,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<(PathBuf, Location)> {
    check_capture(entry, workload, place, problems);
    check_native(entry, workload, place, problems);
    let netns = problems.optional(&entry.netns, place, "netns", netns);
    netns.zip(entry.netns.as_ref().map(|text| text.referenced))
}

/// A network namespace.
fn netns(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.contains('\0') {
        let value = values::quoted(text);
        return Err(format!(
            "{value} is not an absolute path: write, for example, /run/netns/curl-1"
        ));
    }
    Ok(path)
}

/// What is captured has to be in the mesh and on a node, and cannot share that node's network.
fn check_capture(entry: &WorkloadEntry, workload: &Workload, place: &Place<'_>, problems: &mut Problems) {
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone;
    if let Some(netns) = &entry.netns {
        let mut wrong = |message| problems.add(netns.referenced, &place.field("netns"), message);
        if workload.host_network {
            wrong("a pod with hostNetwork is never captured: remove netns");
        } else if workload.native_tunnel {
            wrong("a pod with nativeTunnel speaks HBONE itself and is never captured: remove netns");
        } else if entry.node.is_none() {
            wrong("a pod that is captured is on a node: add node");
        } else if !in_mesh && entry.tunnel_protocol.is_none() {
            wrong("a pod that is captured is in the mesh: add tunnelProtocol: HBONE, or remove netns");
        } else if !in_mesh {
            wrong("a pod that is captured is in the mesh: write tunnelProtocol: HBONE, or remove netns");
        }
    }
    if let Some(protocol) = entry
        .tunnel_protocol
        .as_ref()
        .filter(|_| in_mesh && workload.host_network)
    {
        let message = "a pod with hostNetwork is never in the mesh: write NONE";
        problems.add(protocol.referenced, &place.field("tunnelProtocol"), message);
    }
}

/// What speaks HBONE itself is reached by it.
fn check_native(entry: &WorkloadEntry, workload: &Workload, place: &Place<'_>, problems: &mut Problems) {
    let written = entry.tunnel_protocol.as_ref().or(entry.name.as_ref());
    let speaks = workload.tunnel_protocol == TunnelProtocol::Hbone;
    if let Some(written) = written.filter(|_| workload.native_tunnel && !speaks) {
        let message =
            "a pod with nativeTunnel speaks HBONE: write tunnelProtocol: HBONE, or remove nativeTunnel";
        problems.add(written.referenced, &place.field("tunnelProtocol"), message);
    }
}

/// Reads where a waypoint is; whether it is there, the whole file must say.
pub(super) fn waypoint(
    entry: &Spanned<WaypointEntry>,
    globals: &Globals,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<GatewayAddress> {
    let (at, entry) = (entry.referenced, &entry.value);
    let a_service = |text: &str| values::service(text, &globals.cluster_domain);
    let hbone_port = problems
        .optional(&entry.port, place, "port", values::port)
        .unwrap_or(HBONE_PORT);
    let destination = match (&entry.service, &entry.address) {
        (Some(service), None) => {
            GatewayDestination::Service(problems.read(service, &place.field("service"), a_service)?)
        }
        (None, Some(address)) => {
            GatewayDestination::Address(problems.read(address, &place.field("address"), values::address)?)
        }
        _ => {
            problems.add(
                at,
                place,
                "write either service: <namespace>/<name> or address: <IP address>",
            );
            return None;
        }
    };
    Some(GatewayAddress {
        destination,
        hbone_port,
    })
}

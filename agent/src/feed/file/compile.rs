//! From the shape of a mesh file to the mesh: what refers to what, and what contradicts what.
//!
//! Pure. Not here: single values (`values`), workloads (`workloads`), policies (`policies`, `rules`, `peer_authentications`).

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use serde_saphyr::Spanned;

use super::{
    LocalPod, MeshFile, Problem, balancing,
    manifests::ManifestFile,
    objects::Objects,
    peer_authentications, policies,
    problem::{Place, Problems},
    routes,
    schema::{Document, Labels, PortEntry, ServiceEntry, Text, WaypointEntry},
    values,
    workloads::{self, Pod},
};
use crate::{
    mesh::{
        AppProtocol, GatewayAddress, GatewayDestination, HBONE_PORT, Mesh, MeshParts, PortMapping, SameNode,
        SameNodes, Service, ServiceKey, TrustDomain,
    },
    net::netns::NetnsSource,
};

/// What every section of the file needs.
pub(super) struct Globals {
    pub(super) trust_domain: TrustDomain,
    pub(super) cluster: Arc<str>,
    pub(super) cluster_domain: Arc<str>,
    pub(super) root_namespace: Arc<str>,
}

/// Compiles a mesh file and the manifests that it names, as the node of this name sees it.
///
/// # Errors
/// Everything that is wrong with it, at least one problem.
pub(super) fn compile(
    document: &Document,
    files: &[ManifestFile],
    node: &str,
) -> Result<MeshFile, Vec<Problem>> {
    let mut problems = Problems::default();
    let globals = globals(document, &mut problems);
    let cluster_cidrs = problems.read_all(
        &document.cluster_cidrs,
        &Place::ROOT.field("clusterCidrs"),
        values::network,
    );
    let mut pods = pods(document, &globals, &mut problems);
    let services = services(document, &globals, &mut pods, &mut problems);
    check_addresses(document, &mut problems);
    check_waypoints(document, &globals, &pods, &services, &mut problems);
    let mut read = policies::policies(document, &globals, &mut pods, &services, &mut problems);
    let mut peer_authentications =
        peer_authentications::peer_authentications(document, &globals, &mut pods, &mut problems);
    let objects = Objects::read(document, files, &mut problems);
    let mut told = Vec::new();
    policies::of_manifests(&objects, &globals, &services, &mut pods, &mut read, &mut told);
    peer_authentications::of_manifests(
        &objects,
        &globals,
        &mut pods,
        &mut peer_authentications,
        &mut told,
    );
    let http = routes::http(&objects, &globals, &services, &mut pods, &mut read, &mut told);
    objects.tell(told, &mut problems);
    let same_nodes = same_nodes(document, &mut problems);
    let local_pods = local_pods(&pods, node, &mut problems);
    let warnings = problems.into_warnings()?;
    let mesh = Mesh::new(MeshParts {
        trust_domain: globals.trust_domain,
        cluster: globals.cluster,
        cluster_domain: globals.cluster_domain,
        root_namespace: globals.root_namespace,
        cluster_cidrs,
        workloads: pods.into_iter().map(|pod| pod.workload).collect(),
        services,
        policies: read.policies,
        peer_authentications,
        same_nodes,
        http,
    });
    Ok(MeshFile {
        mesh,
        local_pods,
        warnings,
    })
}

fn globals(document: &Document, problems: &mut Problems) -> Globals {
    let root = &Place::ROOT;
    let trust_domain = |text: &str| text.parse::<TrustDomain>().map_err(|err| err.to_string());
    let cluster = problems.optional(&document.cluster, root, "cluster", values::word);
    let cluster_domain = problems.optional(&document.cluster_domain, root, "clusterDomain", values::name);
    let root_namespace = problems.optional(&document.root_namespace, root, "rootNamespace", values::label);
    Globals {
        trust_domain: problems
            .optional(&document.trust_domain, root, "trustDomain", trust_domain)
            .unwrap_or_default(),
        cluster: cluster.unwrap_or_else(|| "Kubernetes".into()),
        cluster_domain: cluster_domain.unwrap_or_else(|| "cluster.local".into()),
        root_namespace: root_namespace.unwrap_or_else(|| "istio-system".into()),
    }
}

/// How connections inside a node go: in the mesh, and in the namespaces that say it.
fn same_nodes(document: &Document, problems: &mut Problems) -> SameNodes {
    let section = Place::ROOT.field("namespaces");
    let mut namespaces = FxHashMap::default();
    for (i, entry) in document.namespaces.iter().flatten().enumerate() {
        let (at, entry, place) = (entry.referenced, &entry.value, section.index(i));
        let name = problems.required(&entry.name, at, &place, "name", values::label);
        let same_node = problems.optional(&entry.same_node, &place, "sameNode", values::same_node);
        let Some(name) = name else { continue };
        let said = namespaces.contains_key(&name);
        if said {
            let message = format!("there are two namespaces {name}: remove one");
            problems.add(at, &place, message);
        }
        namespaces.insert(name, same_node);
    }
    let mesh = problems.optional(&document.same_node, &Place::ROOT, "sameNode", values::same_node);
    let said = |(name, same_node): (Arc<str>, Option<SameNode>)| Some((name, same_node?));
    SameNodes {
        mesh: mesh.unwrap_or_default(),
        namespaces: namespaces.into_iter().filter_map(said).collect(),
    }
}

fn pods<'a>(document: &'a Document, globals: &Globals, problems: &mut Problems) -> Vec<Pod<'a>> {
    let section = Place::ROOT.field("workloads");
    let mut names = FxHashSet::default();
    let mut pods = Vec::new();
    for (i, entry) in document.workloads.iter().flatten().enumerate() {
        let place = section.index(i);
        let Some(pod) = workloads::pod(entry, i, globals, &place, problems) else {
            continue;
        };
        if names.insert(pod.workload.uid.clone()) {
            pods.push(pod);
        } else {
            let name = pod.workload.namespaced_name();
            problems.add(
                pod.at,
                &place,
                format!("there are two workloads {name}: rename or remove one"),
            );
        }
    }
    pods
}

fn services(
    document: &Document,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    problems: &mut Problems,
) -> Vec<Service> {
    let section = Place::ROOT.field("services");
    let mut keys = FxHashSet::default();
    let mut services = Vec::new();
    for (i, entry) in document.services.iter().flatten().enumerate() {
        let place = section.index(i);
        let Some(service) = service(entry, globals, &place, problems) else {
            continue;
        };
        if !keys.insert(service.key.clone()) {
            let key = &service.key;
            problems.add(
                entry.referenced,
                &place,
                format!("there are two services {key}: rename or remove one"),
            );
            continue;
        }
        for pod in endpoints(entry, &service.key, pods, &place, problems) {
            pod.workload
                .services
                .insert(service.key.clone(), service.ports.clone());
        }
        services.push(service);
    }
    services
}

fn service(
    entry: &Spanned<ServiceEntry>,
    globals: &Globals,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Service> {
    let (at, entry) = (entry.referenced, &entry.value);
    let name = problems.required(&entry.name, at, place, "name", values::label);
    let namespace = problems.required(&entry.namespace, at, place, "namespace", values::label);
    let hostname = problems.optional(&entry.hostname, place, "hostname", values::hostname);
    let ip_families = problems.optional(&entry.ip_families, place, "ipFamilies", balancing::ip_families);
    let vips = problems.read_all(&entry.vips, &place.field("vips"), values::vip);
    let (vips, vip_networks) = vips.into_iter().partition::<Vec<_>, _>(is_single);
    let load_balancing = balancing::load_balancing(entry, place, problems);
    let (ports, app_protocols) = ports(&entry.ports, &place.field("ports"), problems);
    let (name, namespace) = (name?, namespace?);
    let hostname = match hostname {
        Some(hostname) => hostname,
        None => values::cluster_hostname(&name, &namespace, &globals.cluster_domain).ok()?,
    };
    Some(Service {
        key: ServiceKey { namespace, hostname },
        name,
        vips: vips.iter().map(IpNet::addr).collect(),
        vip_networks,
        ports,
        app_protocols,
        subject_alt_names: problems.read_all(
            &entry.subject_alt_names,
            &place.field("subjectAltNames"),
            values::identity,
        ),
        waypoint: entry
            .waypoint
            .as_ref()
            .and_then(|w| workloads::waypoint(w, globals, &place.field("waypoint"), problems)),
        load_balancing,
        ip_families: ip_families.unwrap_or_default(),
    })
}

fn is_single(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
}

/// And what is spoken on them.
fn ports(
    entries: &Option<Vec<Spanned<PortEntry>>>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> (Vec<PortMapping>, BTreeMap<u16, AppProtocol>) {
    let mut ports: Vec<PortMapping> = Vec::new();
    let mut spoken = BTreeMap::new();
    for (i, entry) in entries.iter().flatten().enumerate() {
        // A waypoint's own: nobody dials it as an app's.
        if is_hbone(&entry.value) {
            continue;
        }
        let place = place.index(i);
        let target = problems.optional(&entry.value.target_port, &place, "targetPort", values::app_port);
        let required = problems.required(
            &entry.value.port,
            entry.referenced,
            &place,
            "port",
            values::app_port,
        );
        let protocol = problems.optional(&entry.value.app_protocol, &place, "appProtocol", app_protocol);
        let Some(service_port) = required else { continue };
        spoken.extend(protocol.map(|protocol| (service_port, protocol)));
        if ports.iter().any(|port| port.service_port == service_port) {
            problems.add(
                entry.referenced,
                &place,
                format!("the service has port {service_port} twice"),
            );
        }
        ports.push(PortMapping {
            service_port,
            target_port: target.unwrap_or(service_port),
        });
    }
    (ports, spoken)
}

fn is_hbone(entry: &PortEntry) -> bool {
    let is = |text: &Text| values::port(&text.value) == Ok(HBONE_PORT);
    entry.port.as_ref().is_some_and(is) && entry.target_port.as_ref().is_none_or(is)
}

fn app_protocol(text: &str) -> Result<AppProtocol, String> {
    values::app_protocol(text).ok_or_else(|| values::one_of(text, "http, http2, grpc, tls or tcp"))
}

/// The pods behind a service: those that its selector selects, or those that it lists.
fn endpoints<'p, 'a>(
    entry: &Spanned<ServiceEntry>,
    key: &ServiceKey,
    pods: &'p mut [Pod<'a>],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<&'p mut Pod<'a>> {
    match (&entry.value.selector, &entry.value.endpoints) {
        (Some(selector), None) => selected(
            selector,
            Some(&key.namespace),
            pods,
            &place.field("selector"),
            problems,
        ),
        (None, Some(endpoints)) => listed(endpoints, pods, &place.field("endpoints"), problems),
        _ => {
            let message = "write either selector or endpoints (`endpoints: []` for a service with none)";
            problems.add(entry.referenced, place, message);
            Vec::new()
        }
    }
}

/// The pods that a selector selects, in one namespace or in all. One that selects nothing may be a slip of the pen,
/// or its pods have gone for the moment: a warning.
pub(super) fn selected<'p, 'a>(
    selector: &Spanned<Labels>,
    namespace: Option<&Arc<str>>,
    pods: &'p mut [Pod<'a>],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<&'p mut Pod<'a>> {
    if selector.value.is_empty() {
        problems.add(
            selector.referenced,
            place,
            "selects by no label: name at least one, or remove it",
        );
        return Vec::new();
    }
    let in_namespace = |pod: &Pod<'_>| namespace.is_none_or(|namespace| pod.workload.namespace == *namespace);
    let selects = |pod: &&mut Pod<'_>| in_namespace(pod) && pod.is_selected_by(&selector.value);
    let selected: Vec<_> = pods.iter_mut().filter(selects).collect();
    if selected.is_empty() {
        let where_ = namespace.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
        let message = format!("selects no workload{where_}: compare it with the workloads' labels");
        problems.warn(selector.referenced, place, message);
    }
    selected
}

fn listed<'p, 'a>(
    endpoints: &[Text],
    pods: &'p mut [Pod<'a>],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<&'p mut Pod<'a>> {
    let mut wanted = FxHashMap::default();
    for (i, text) in endpoints.iter().enumerate() {
        if let Some(pod) = problems.read(text, &place.index(i), values::pod) {
            wanted.insert(pod, (i, text));
        }
    }
    let mut found = Vec::with_capacity(wanted.len());
    for pod in pods {
        let name = (pod.workload.namespace.clone(), pod.workload.name.clone());
        if wanted.remove(&name).is_some() {
            found.push(pod);
        }
    }
    let mut unknown: Vec<_> = wanted.into_values().collect();
    unknown.sort_by_key(|(i, _)| *i);
    for (i, text) in unknown {
        let message = format!(
            "there is no workload {}: write <namespace>/<name> of one",
            text.value
        );
        problems.add(text.referenced, &place.index(i), message);
    }
    found
}

/// An address leads to one pod or one service; a network may lie in a larger one of another service. (hostNetwork pods share their node's.)
fn check_addresses(document: &Document, problems: &mut Problems) {
    let mut owners: FxHashMap<IpNet, String> = FxHashMap::default();
    let mut check = |texts: &Option<Vec<Text>>, owner: &Place<'_>, field: &str| {
        for (i, text) in texts.iter().flatten().enumerate() {
            // One that is no address has been noted already.
            let Ok(network) = values::vip(&text.value) else {
                continue;
            };
            if let Some(other) = owners.insert(network, owner.to_string()) {
                let message = if is_single(&network) {
                    let address = network.addr();
                    format!("{address} is an address of {other} as well: remove one of them")
                } else {
                    format!("{network} is a network of {other} as well: remove one of them")
                };
                problems.add(text.referenced, &owner.field(field).index(i), message);
            }
        }
    };
    let section = Place::ROOT.field("workloads");
    for (i, entry) in document.workloads.iter().flatten().enumerate() {
        if entry.value.host_network != Some(true) {
            check(&entry.value.addresses, &section.index(i), "addresses");
        }
    }
    let section = Place::ROOT.field("services");
    for (i, entry) in document.services.iter().flatten().enumerate() {
        check(&entry.value.vips, &section.index(i), "vips");
    }
}

/// A waypoint that is not there would refuse everything.
fn check_waypoints(
    document: &Document,
    globals: &Globals,
    pods: &[Pod<'_>],
    services: &[Service],
    problems: &mut Problems,
) {
    let keys: FxHashSet<_> = services.iter().map(|service| &service.key).collect();
    let of_services = services.iter().flat_map(|service| &service.vips);
    let of_pods = pods
        .iter()
        .filter(|pod| !pod.workload.host_network)
        .flat_map(|pod| &pod.workload.addresses);
    let addresses: FxHashSet<_> = of_services.chain(of_pods).collect();
    let is_there = |gateway: &GatewayAddress| match &gateway.destination {
        GatewayDestination::Service(key) => keys.contains(key),
        GatewayDestination::Address(address) => addresses.contains(address),
    };
    let mut check = |entry: &Option<Spanned<WaypointEntry>>, place: &Place<'_>| {
        let Some(entry) = entry else { return };
        // What is wrong with the entry itself has been noted already.
        let gateway = workloads::waypoint(entry, globals, place, &mut Problems::default());
        if gateway.is_some_and(|gateway| !is_there(&gateway)) {
            let message = "is neither a service nor the address of a service or a workload of this file";
            problems.add(entry.referenced, place, message);
        }
    };
    let section = Place::ROOT.field("workloads");
    for (i, entry) in document.workloads.iter().flatten().enumerate() {
        check(&entry.value.waypoint, &section.index(i).field("waypoint"));
    }
    let section = Place::ROOT.field("services");
    for (i, entry) in document.services.iter().flatten().enumerate() {
        check(&entry.value.waypoint, &section.index(i).field("waypoint"));
    }
}

/// The pods of this node that are captured; no two of any node may share a namespace.
fn local_pods(pods: &[Pod<'_>], node: &str, problems: &mut Problems) -> Vec<LocalPod> {
    let section = Place::ROOT.field("workloads");
    let mut owners = FxHashMap::default();
    let mut local_pods = Vec::new();
    for pod in pods {
        let Some((netns, at)) = &pod.netns else { continue };
        let place = section.index(pod.index);
        if let Some(other) = owners.insert((&pod.workload.node, netns), pod.workload.namespaced_name()) {
            let message = format!("is the network namespace of {other} as well: remove it from one");
            problems.add(*at, &place.field("netns"), message);
        }
        if &*pod.workload.node == node {
            local_pods.push(LocalPod {
                uid: pod.workload.uid.clone(),
                netns: NetnsSource::Path(netns.clone()),
                addresses: Vec::new(),
                dns_capture: pod.dns_capture,
            });
        }
    }
    local_pods
}

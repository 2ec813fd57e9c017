//! WorkloadEntries: machines outside of the cluster that are workloads, selected by labels as pods are.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    claims::{Claim, Owner, Rank, Thing},
    drafts::{Draft, Source},
    namespace::{Pass, label},
    pods::written_locality,
    shared::condition,
    waypoints::{Consumer, waypoint_of},
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    manifests::{Labels, Reader, Severity, there},
    mesh::{Locality, Place, SpiffeId, TunnelProtocol, Workload, WorkloadType, values},
};

/// What a WorkloadEntry, or an endpoint of a ServiceEntry, says: they have the same fields.
pub(super) struct Entry {
    /// None for what is no address.
    pub(super) address: Option<IpAddr>,
    /// By the names of a service's ports.
    pub(super) ports: BTreeMap<String, u16>,
    pub(super) labels: Labels,
    pub(super) service_account: Option<String>,
    pub(super) tunnel_protocol: TunnelProtocol,
    pub(super) locality: Locality,
    pub(super) network: Arc<str>,
    pub(super) capacity: u32,
}

/// Adds the namespace's WorkloadEntries.
pub(super) fn workload_entries(pass: &mut Pass<'_>) {
    let objects = pass.objects;
    for (name, object) in objects.of_kind(Kind::WorkloadEntry) {
        let mut reader = pass.reader(Kind::WorkloadEntry, &object.metadata);
        let place = Place::ROOT.field("spec");
        let entry = entry(&object.spec, &place, &mut reader);
        let Some(workload) = workload(name, object, &entry, pass) else {
            continue;
        };
        let owner = Owner {
            namespace: pass.namespace.clone(),
            kind: Kind::WorkloadEntry,
            name: workload.name.clone(),
        };
        pass.unit.claims.extend(entry.address.map(|address| Claim {
            thing: Thing::Address(IpNet::from(address)),
            rank: Rank::Endpoint,
            since: 0,
            owner: owner.clone(),
        }));
        let mut labels = object.metadata.labels.clone().unwrap_or_default();
        labels.extend(entry.labels);
        pass.drafts.all.push(Draft {
            workload,
            owner,
            source: Source::Entry(labels, entry.ports),
        });
    }
}

/// Reads the fields that both have.
pub(super) fn entry(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Entry {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let labels = there(value, "labels").and_then(|it| reader.labels(it, &place.field("labels")));
    let labels = labels.unwrap_or_default();
    let written = reader.optional(value, "address", place, text);
    let address = written.and_then(|text| address(&text, place, reader));
    let locality = reader.optional(value, "locality", place, text);
    let tunnelled = labels.get(labels::TUNNEL).is_some_and(|it| it == "http");
    Entry {
        address,
        ports: ports(value, place, reader),
        service_account: reader.optional(value, "serviceAccount", place, |text| {
            values::name(text).map(|_| text.to_owned())
        }),
        tunnel_protocol: match tunnelled {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::None,
        },
        locality: locality.map(|it| written_locality(&it, '/')).unwrap_or_default(),
        network: reader
            .optional(value, "network", place, |text| Ok(text.into()))
            .unwrap_or_default(),
        capacity: reader
            .optional(value, "weight", place, values::capacity)
            .unwrap_or(1),
        labels,
    }
}

fn address(text: &str, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<IpAddr> {
    match values::address(text) {
        Ok(address) => Some(address),
        Err(_) => {
            let value = values::quoted(text);
            let message = format!(
                "{value} is no IP address: names and sockets are not looked up, so that nothing leads there"
            );
            reader.warn(&place.field("address"), "NoAddress", message);
            None
        }
    }
}

fn ports(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> BTreeMap<String, u16> {
    let place = place.field("ports");
    let Some(written) = there(value, "ports").and_then(|it| reader.fields(it, &place)) else {
        return BTreeMap::new();
    };
    let ports = written.iter().filter_map(|(name, value)| {
        let port = reader.parse(value, &place.field(name), values::port)?;
        Some((name.clone(), port))
    });
    ports.collect()
}

fn workload(name: &str, object: &Custom, entry: &Entry, pass: &mut Pass<'_>) -> Option<Workload> {
    let settings = pass.cx.settings;
    let namespace = pass.namespace.clone();
    let account = entry.service_account.as_deref().unwrap_or("default");
    let identity = match SpiffeId::new(&settings.trust_domain, &namespace, account) {
        Ok(identity) => identity,
        Err(error) => {
            let mut reader = pass.reader(Kind::WorkloadEntry, &object.metadata);
            reader.tell(
                Severity::Error,
                "NoIdentity",
                format!("spec.serviceAccount: {error}"),
            );
            return None;
        }
    };
    let own = Some(&entry.labels);
    let text = |keys: &[&str]| keys.iter().find_map(|key| label(own, key)).map(Arc::from);
    let waypoint = waypoint_of(pass, Kind::WorkloadEntry, &object.metadata, Consumer::Workload);
    Some(Workload {
        uid: format!(
            "{}/networking.istio.io/WorkloadEntry/{namespace}/{name}",
            settings.cluster
        )
        .into(),
        name: name.into(),
        identity,
        addresses: entry.address.into_iter().collect(),
        node: Arc::default(),
        tunnel_protocol: entry.tunnel_protocol,
        workload_name: text(&[labels::WORKLOAD_NAME]).unwrap_or_else(|| name.into()),
        workload_type: WorkloadType::Pod,
        canonical_name: text(&values::CANONICAL_NAME).unwrap_or_else(|| name.into()),
        canonical_revision: text(&values::CANONICAL_REVISION).unwrap_or_else(|| "latest".into()),
        cluster: settings.cluster.clone(),
        network: entry.network.clone(),
        locality: entry.locality.clone(),
        capacity: entry.capacity,
        healthy: condition(&object.status, "Healthy").unwrap_or(true)
            && object.metadata.deletion_timestamp.is_none(),
        host_network: false,
        native_tunnel: entry.tunnel_protocol == TunnelProtocol::Hbone,
        waypoint,
        same_node: None,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
        namespace,
    })
}

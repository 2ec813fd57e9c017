//! ServiceEntries: services that Kubernetes does not have, a service for each host.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    claims::{Claim, Owner, Rank, Thing},
    drafts::Source,
    endpoints::{Outside, outside},
    namespace::Pass,
    services::{app_protocol, traffic_distribution},
    unit::Owned,
    waypoints::{Consumer, waypoint_of},
    workload_entries::{self, Entry},
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind, ObjectMeta},
    },
    manifests::{Labels, Reader, Severity, there},
    mesh::{
        AppProtocol, BalancingMode, IpFamilies, LoadBalancing, Place, PortMapping, Service, ServiceKey,
        SpiffeId, is_own_port, values,
    },
};

/// What a ServiceEntry says.
struct Read {
    hosts: Vec<Arc<str>>,
    /// Of all hosts, where its author wrote them.
    addresses: Vec<IpNet>,
    /// Those that were made up, with the host that one is for.
    allocated: Vec<(Option<String>, IpNet)>,
    ports: Vec<EntryPort>,
    resolution: Resolution,
    endpoints: Vec<Entry>,
    selector: Option<Labels>,
    subject_alt_names: Vec<SpiffeId>,
}

struct EntryPort {
    number: u16,
    target: u16,
    name: String,
    protocol: Option<AppProtocol>,
}

/// Where a connection leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolution {
    /// To what was dialled.
    None,
    /// To the endpoints.
    Static,
    /// To what a name stands for.
    Dns,
}

/// Adds the namespace's ServiceEntries, the oldest first: of two with the same host it keeps it.
pub(super) fn service_entries(pass: &mut Pass<'_>) {
    let mut entries: Vec<_> = pass.objects.of_kind(Kind::ServiceEntry).collect();
    entries.sort_by_key(|(name, object)| (since(&object.metadata), *name));
    for (name, object) in entries {
        service_entry(name, object, pass);
    }
}

fn service_entry(name: &str, object: &Custom, pass: &mut Pass<'_>) {
    let mut reader = pass.reader(Kind::ServiceEntry, &object.metadata);
    let read = read(object, &mut reader);
    let owner = Owner {
        namespace: pass.namespace.clone(),
        kind: Kind::ServiceEntry,
        name: name.into(),
    };
    let bound = waypoint_of(pass, Kind::ServiceEntry, &object.metadata, Consumer::Service);
    if read.resolution == Resolution::Dns && bound.is_none() {
        let mut reader = pass.reader(Kind::ServiceEntry, &object.metadata);
        let message = "spec.resolution: names are not looked up by an agent, so that this is as if it were not there: \
                       write STATIC with endpoints, or bind it to a waypoint";
        reader.tell(Severity::Warning, "DnsResolution", message);
        return;
    }
    let load_balancing = load_balancing(&read, object, pass);
    for host in &read.hosts {
        if is_anothers(host, pass) {
            let mut reader = pass.reader(Kind::ServiceEntry, &object.metadata);
            let message =
                format!("spec.hosts: {host} may be a service's name in another namespace, and is left out");
            reader.tell(Severity::Error, "HostTaken", message);
            continue;
        }
        let key = ServiceKey {
            namespace: pass.namespace.clone(),
            hostname: host.clone(),
        };
        if pass.unit.services.iter().any(|it| it.value.key == key) {
            let mut reader = pass.reader(Kind::ServiceEntry, &object.metadata);
            let message = format!("spec.hosts: {host} is another object's already: remove it here or there");
            reader.tell(Severity::Warning, "HostTaken", message);
            continue;
        }
        let (vips, vip_networks) = read.vips(host);
        let value = Arc::new(Service {
            key: key.clone(),
            name: name.into(),
            vips,
            vip_networks,
            ports: read.ports.iter().map(EntryPort::mapping).collect(),
            app_protocols: read.app_protocols(),
            subject_alt_names: read.subject_alt_names.clone(),
            waypoint: bound.clone(),
            load_balancing: load_balancing.clone(),
            ip_families: IpFamilies::Automatic,
        });
        let owner = owner.clone();
        pass.unit.services.push(Owned { owner, value });
        if read.resolution == Resolution::Static {
            endpoints(&read, name, &key, pass);
        }
    }
    let all = read
        .addresses
        .iter()
        .chain(read.allocated.iter().map(|(_, it)| it));
    let addresses = all.map(|address| Thing::Address(*address));
    let short = read.hosts.iter().filter(|host| host.matches('.').count() == 1);
    let names = short.map(|host| Thing::Name(host.clone()));
    let claims = addresses.chain(names).map(|thing| Claim {
        thing,
        rank: Rank::ServiceEntry,
        since: since(&object.metadata),
        owner: owner.clone(),
    });
    pass.unit.claims.extend(claims);
}

/// Whether a host is, or stands for, names that Kubernetes gives to services of other namespaces, also in their short forms:
/// whoever may write a ServiceEntry must not answer for those. (For `cart.shop` see `claims`.)
fn is_anothers(host: &str, pass: &Pass<'_>) -> bool {
    let services = format!("svc.{}", pass.cx.settings.cluster_domain);
    let (zone, wildcard) = match host.strip_prefix("*.") {
        Some(zone) => (zone, true),
        None => (host, false),
    };
    if !zone.contains('.') && !wildcard {
        return true;
    }
    let Some(below) = zone.strip_suffix(&services).or(zone.strip_suffix("svc")) else {
        // `*.local` stands for them too.
        return wildcard && services.ends_with(&format!(".{zone}"));
    };
    let namespace = below.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    (below.is_empty() || below.ends_with('.')) && *namespace != **pass.namespace
}

fn load_balancing(read: &Read, object: &Custom, pass: &mut Pass<'_>) -> LoadBalancing {
    let distribution = traffic_distribution(Kind::ServiceEntry, &object.metadata, None, pass);
    match read.resolution {
        Resolution::None => LoadBalancing {
            mode: BalancingMode::Passthrough,
            ..LoadBalancing::default()
        },
        Resolution::Static | Resolution::Dns => distribution.unwrap_or_default(),
    }
}

/// When an object was made, in seconds.
pub(super) fn since(metadata: &ObjectMeta) -> i64 {
    let made = metadata.creation_timestamp.as_ref();
    made.map_or(0, |time| time.0.as_second())
}

fn read(object: &Custom, reader: &mut Reader<'_>) -> Read {
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    let resolution = |text: &str| match text {
        "NONE" => Ok(Resolution::None),
        "STATIC" => Ok(Resolution::Static),
        "DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS" => Ok(Resolution::Dns),
        _ => Err(values::one_of(text, "NONE, STATIC or DNS")),
    };
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let entries = reader.list(spec, "endpoints", &place).iter().enumerate();
    let in_endpoints = place.field("endpoints");
    let endpoints = entries.map(|(i, it)| workload_entries::entry(it, &in_endpoints.index(i), reader));
    let endpoints = endpoints.collect();
    let export_to = reader.all(spec, "exportTo", &place, text);
    if export_to.iter().any(|it| it != "*") {
        let message = "is not asked: every namespace sees it";
        reader.warn(&place.field("exportTo"), "ExportToIgnored", message);
    }
    let subject_alt_names = reader.all(spec, "subjectAltNames", &place, text);
    let identities = subject_alt_names.iter().filter(|it| it.starts_with("spiffe://"));
    let addresses = reader.all(spec, "addresses", &place, values::vip);
    Read {
        hosts: reader.all(spec, "hosts", &place, values::hostname),
        allocated: match addresses.is_empty() {
            true => allocated(object, reader),
            false => Vec::new(),
        },
        addresses,
        ports: ports(spec, &place, reader),
        resolution: match there(spec, "resolution") {
            None => Resolution::None,
            // What cannot be read leads nowhere.
            Some(value) => reader
                .parse(value, &place.field("resolution"), resolution)
                .unwrap_or(Resolution::Static),
        },
        endpoints,
        selector: selector(spec, &place, reader),
        subject_alt_names: identities.filter_map(|it| values::identity(it).ok()).collect(),
    }
}

/// The addresses that its status says were made up for its hosts.
fn allocated(object: &Custom, reader: &mut Reader<'_>) -> Vec<(Option<String>, IpNet)> {
    let labels = object.metadata.labels.as_ref();
    if labels
        .and_then(|it| it.get(labels::AUTO_ALLOCATE))
        .is_some_and(|it| it == "false")
    {
        return Vec::new();
    }
    let place = Place::ROOT.field("status");
    let written = reader.list(&object.status, "addresses", &place).iter();
    let read = written.filter_map(|it| {
        let address = it.get("value")?.as_str()?;
        let host = it.get("host").and_then(Value::as_str).map(str::to_owned);
        Some((host, values::address(address).ok().map(IpNet::from)?))
    });
    read.collect()
}

fn ports(spec: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<EntryPort> {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let entries = reader.list(spec, "ports", place);
    let place = place.field("ports");
    let mut ports: Vec<EntryPort> = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let place = place.index(i);
        let number = reader.required(entry, "number", &place, values::app_port);
        let target = reader.optional(entry, "targetPort", &place, values::app_port);
        let name = reader.optional(entry, "name", &place, text).unwrap_or_default();
        let protocol = reader
            .optional(entry, "protocol", &place, text)
            .unwrap_or_default();
        let Some(number) = number.filter(|port| !is_own_port(*port)) else {
            continue;
        };
        let known = ports.iter().any(|port| port.number == number);
        if protocol.eq_ignore_ascii_case("UDP") || known {
            continue;
        }
        ports.push(EntryPort {
            number,
            target: target.unwrap_or(number),
            protocol: app_protocol(Some(&protocol), None),
            name,
        });
    }
    ports
}

fn selector(spec: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Labels> {
    let place = place.field("workloadSelector");
    let selector = there(spec, "workloadSelector")?;
    reader.fields(selector, &place)?;
    let labels = reader.labels(there(selector, "labels")?, &place.field("labels"))?;
    Some(labels).filter(|labels| !labels.is_empty())
}

impl EntryPort {
    fn mapping(&self) -> PortMapping {
        PortMapping {
            service_port: self.number,
            target_port: self.target,
        }
    }
}

impl Read {
    fn vips(&self, host: &str) -> (Vec<IpAddr>, Vec<IpNet>) {
        let is_for = |its: &Option<String>| its.as_deref().is_none_or(|its| its == host);
        let allocated = self
            .allocated
            .iter()
            .filter(|(its, _)| is_for(its))
            .map(|(_, it)| it);
        let all = self.addresses.iter().chain(allocated);
        let (single, networks): (Vec<IpNet>, Vec<_>) =
            all.partition(|net| net.prefix_len() == net.max_prefix_len());
        (single.iter().map(IpNet::addr).collect(), networks)
    }

    fn app_protocols(&self) -> BTreeMap<u16, AppProtocol> {
        let spoken = self
            .ports
            .iter()
            .filter_map(|port| Some((port.number, port.protocol?)));
        spoken.collect()
    }

    /// Where its ports lead at an endpoint that gives some of their names to ports of its own.
    fn mapped(&self, named: &BTreeMap<String, u16>) -> Vec<PortMapping> {
        let own = |port: &EntryPort| {
            let target_port = *named.get(&port.name)?;
            let service_port = port.number;
            Some(PortMapping {
                service_port,
                target_port,
            })
        };
        self.ports.iter().filter_map(own).collect()
    }
}

/// The endpoints that it names, or the workloads that it selects.
fn endpoints(read: &Read, name: &str, key: &ServiceKey, pass: &mut Pass<'_>) {
    for at in read
        .selector
        .iter()
        .flat_map(|labels| pass.drafts.select(labels))
        .collect::<Vec<_>>()
    {
        let draft = &mut pass.drafts.all[at];
        let mapped = match &draft.source {
            Source::Entry(_, ports) => read.mapped(ports),
            Source::Pod(_) | Source::Address => Vec::new(),
        };
        draft.workload.services.insert(key.clone(), mapped);
    }
    if read.selector.is_some() {
        return;
    }
    for entry in &read.endpoints {
        let Some(address) = entry.address else { continue };
        let it = Outside {
            service_account: entry.service_account.clone(),
            tunnel_protocol: entry.tunnel_protocol,
            locality: entry.locality.clone(),
            network: entry.network.clone(),
            capacity: entry.capacity,
            ..Outside::new(Kind::ServiceEntry, name, address)
        };
        outside(pass, it, key, read.mapped(&entry.ports));
    }
}

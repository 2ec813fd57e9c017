//! Services: their addresses and ports, and the workloads behind them: the pods that their selectors select, or what
//! EndpointSlices of one without a selector name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    claims::{Claim, Owner, Rank, Thing},
    endpoints::{Outside, outside},
    namespace::{Pass, annotation_value, label},
    unit::Owned,
    waypoints::{Consumer, waypoint_of},
};
use crate::{
    cluster::{
        labels,
        objects::{EndpointSlice, Kind, ObjectMeta, Service, ServicePort, TargetPort},
    },
    manifests::{Reader, Severity},
    mesh::{
        self, AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, PortMapping, ServiceKey, is_own_port,
        values,
    },
};

/// Adds the namespace's services.
pub(super) fn services(pass: &mut Pass<'_>) {
    let objects = pass.objects;
    let mut slices: BTreeMap<&str, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in objects.endpoint_slices.values() {
        if let Some(service) = slice.service_name() {
            slices.entry(service).or_default().push(slice);
        }
    }
    for (name, object) in &objects.services {
        // A name for another name: what that is, others say.
        if object.spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let Some(service) = service(name, object, pass) else {
            continue;
        };
        let owner = Owner {
            namespace: pass.namespace.clone(),
            kind: Kind::Service,
            name: service.name.clone(),
        };
        if object.spec.selector.is_empty() {
            for slice in slices.get(name.as_str()).into_iter().flatten() {
                listed(&service, object, slice, pass);
            }
        } else {
            selected(&service, object, pass);
        }
        pass.unit.claims.extend(claims(object, &owner));
        pass.unit.services.push(Owned {
            owner,
            value: service.into(),
        });
    }
}

fn service(name: &str, object: &Service, pass: &mut Pass<'_>) -> Option<mesh::Service> {
    let settings = pass.cx.settings;
    let hostname = match values::cluster_hostname(name, pass.namespace, &settings.cluster_domain) {
        Ok(hostname) => hostname,
        Err(message) => {
            let mut reader = pass.reader(Kind::Service, &object.metadata);
            reader.tell(Severity::Error, "InvalidName", message);
            return None;
        }
    };
    let key = ServiceKey {
        namespace: pass.namespace.clone(),
        hostname,
    };
    // A waypoint's own service leads to the waypoint: it is on no way to itself. One that somebody made by hand may lack the label.
    let gateway = label(object.metadata.labels.as_ref(), labels::GATEWAY_NAME);
    let of_gateway = gateway.and_then(|gateway| {
        let key = (pass.namespace.to_string(), gateway.to_owned());
        pass.cx.shared.waypoint(&key)
    });
    let is_waypoints = of_gateway.or_else(|| pass.cx.shared.waypoint_of(&key)).is_some();
    let waypoint = match is_waypoints {
        true => None,
        false => waypoint_of(pass, Kind::Service, &object.metadata, Consumer::Service),
    };
    let vips = cluster_ips(object).chain(load_balancer_ips(object)).collect();
    Some(mesh::Service {
        key,
        name: name.into(),
        vips,
        vip_networks: Vec::new(),
        ports: ports(object, is_waypoints, pass),
        app_protocols: app_protocols(object),
        subject_alt_names: Vec::new(),
        waypoint,
        load_balancing: load_balancing(object, pass),
        ip_families: ip_families(object),
    })
}

/// What Kubernetes gave it; none for a headless service.
fn cluster_ips(object: &Service) -> impl Iterator<Item = IpAddr> {
    let several = object.spec.cluster_ips.iter();
    let one = object.spec.cluster_ip.iter();
    let one = one.filter(|_| object.spec.cluster_ips.is_empty());
    several.chain(one).filter_map(|text| values::address(text).ok())
}

/// The addresses of load balancers that are the service's inside the cluster as well.
fn load_balancer_ips(object: &Service) -> impl Iterator<Item = IpAddr> {
    let headless = object.spec.cluster_ip.as_deref() == Some("None");
    let ingress = object
        .status
        .load_balancer
        .ingress
        .iter()
        .filter(move |_| !headless);
    let inside = ingress.filter(|it| it.ip_mode.as_deref() != Some("Proxy"));
    inside.filter_map(|it| values::address(it.ip.as_deref()?).ok())
}

fn claims<'a>(object: &'a Service, owner: &'a Owner) -> impl Iterator<Item = Claim> {
    let given = cluster_ips(object).map(|address| (address, Rank::ClusterIp));
    let balanced = load_balancer_ips(object).map(|address| (address, Rank::LoadBalancer));
    let addresses = given.chain(balanced);
    let addresses = addresses.map(|(address, rank)| (Thing::Address(IpNet::from(address)), rank));
    let name = Thing::Name(format!("{}.{}", owner.name, owner.namespace).into());
    addresses
        .chain([(name, Rank::ClusterIp)])
        .map(|(thing, rank)| Claim {
            thing,
            rank,
            since: 0,
            owner: owner.clone(),
        })
}

/// Its TCP ports, and where they lead; 0 where that is each pod's to say.
fn ports(object: &Service, is_waypoints: bool, pass: &mut Pass<'_>) -> Vec<PortMapping> {
    let mut reader = pass.reader(Kind::Service, &object.metadata);
    let mut ports = Vec::new();
    for port in tcp_ports(object) {
        let Some(service_port) = number(port.port) else {
            continue;
        };
        if is_own_port(service_port) {
            // A waypoint's service need not list its HBONE port.
            if !is_waypoints {
                let message =
                    format!("spec.ports: {service_port} is one of weft's own ports, and is left out");
                reader.tell(Severity::Warning, "OwnPort", message);
            }
            continue;
        }
        ports.push(PortMapping {
            service_port,
            target_port: match &port.target_port {
                None | Some(TargetPort::Number(0)) => service_port,
                Some(TargetPort::Number(target)) => number(*target).unwrap_or(0),
                Some(TargetPort::Name(_)) => 0,
            },
        });
    }
    ports
}

fn tcp_ports(object: &Service) -> impl Iterator<Item = &ServicePort> {
    let tcp = |port: &&ServicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    object.spec.ports.iter().filter(tcp)
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn app_protocols(object: &Service) -> BTreeMap<u16, AppProtocol> {
    let spoken = tcp_ports(object).filter_map(|port| {
        let protocol = app_protocol(port.app_protocol.as_deref(), port.name.as_deref())?;
        Some((number(port.port)?, protocol))
    });
    spoken.collect()
}

/// What `appProtocol` says, or else the beginning of the port's name.
pub(super) fn app_protocol(written: Option<&str>, name: Option<&str>) -> Option<AppProtocol> {
    let of_name = || name.map(|name| name.split_once('-').map_or(name, |(start, _)| start));
    values::app_protocol(written.or_else(of_name)?)
}

fn load_balancing(object: &Service, pass: &mut Pass<'_>) -> LoadBalancing {
    let distribution = traffic_distribution(
        Kind::Service,
        &object.metadata,
        object.spec.traffic_distribution.as_deref(),
        pass,
    );
    let mut reader = pass.reader(Kind::Service, &object.metadata);
    let local = object.spec.internal_traffic_policy.as_deref();
    let local = local.and_then(|text| {
        said(
            "internalTrafficPolicy",
            values::internal_policy(text),
            &mut reader,
        )
    });
    let health = match object.spec.publish_not_ready_addresses {
        true => HealthPolicy::AllowAll,
        false => HealthPolicy::OnlyHealthy,
    };
    // It outdoes the distribution, as in Kubernetes.
    let of_service = local.flatten().or(distribution).unwrap_or_default();
    LoadBalancing { health, ..of_service }
}

fn said<T>(field: &str, read: Result<T, String>, reader: &mut Reader<'_>) -> Option<T> {
    read.map_err(|message| {
        reader.tell(
            Severity::Error,
            "InvalidField",
            format!("spec.{field}: {message}"),
        );
    })
    .ok()
}

/// The field, or the annotation of the object, or else of its namespace.
pub(super) fn traffic_distribution(
    kind: Kind,
    metadata: &ObjectMeta,
    field: Option<&str>,
    pass: &mut Pass<'_>,
) -> Option<LoadBalancing> {
    let of_namespace = pass.annotation(labels::TRAFFIC_DISTRIBUTION);
    let mut reader = pass.reader(kind, metadata);
    let read = values::traffic_distribution;
    if let Some(field) = field {
        return said("trafficDistribution", read(field), &mut reader);
    }
    annotation_value(
        metadata.annotations.as_ref(),
        labels::TRAFFIC_DISTRIBUTION,
        &mut reader,
        read,
    )
    .or_else(|| of_namespace.and_then(|text| read(text).ok()))
}

fn ip_families(object: &Service) -> IpFamilies {
    let has = |family: &str| object.spec.ip_families.iter().any(|it| it == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

/// The pods and WorkloadEntries that its selector selects, each with the ports to which it gives the names.
fn selected(service: &mesh::Service, object: &Service, pass: &mut Pass<'_>) {
    for at in pass.drafts.select(&object.spec.selector) {
        let draft = &mut pass.drafts.all[at];
        let mapped = tcp_ports(object).filter_map(|port| {
            let service_port = number(port.port)?;
            let Some(TargetPort::Name(name)) = &port.target_port else {
                return None;
            };
            let target_port = draft.named_port(name)?;
            Some(PortMapping {
                service_port,
                target_port,
            })
        });
        let mapped: Vec<_> = mapped.filter(|port| !is_own_port(port.service_port)).collect();
        draft.workload.services.insert(service.key.clone(), mapped);
    }
}

/// The endpoints that a slice of a service without selector names: pods of the namespace, or other addresses.
fn listed(service: &mesh::Service, object: &Service, slice: &EndpointSlice, pass: &mut Pass<'_>) {
    if slice.address_type == "FQDN" {
        let mut reader = pass.reader(Kind::EndpointSlice, &slice.metadata);
        let message = "addressType: FQDN names no address: write IPv4 or IPv6";
        reader.tell(Severity::Warning, "NoAddresses", message);
        return;
    }
    let ports = slice_ports(object, slice);
    let mut strange = BTreeSet::new();
    for endpoint in &slice.endpoints {
        let well = endpoint.conditions.is_well() || object.spec.publish_not_ready_addresses;
        let named = endpoint
            .target_ref
            .as_ref()
            .filter(|it| it.kind.as_deref() == Some("Pod"));
        let named = named.filter(|it| it.namespace.as_deref().is_none_or(|ns| *ns == **pass.namespace));
        let named = named.and_then(|it| pass.drafts.pod(it.name.as_deref()?));
        if let Some(at) = named.filter(|_| well) {
            let services = &mut pass.drafts.all[at].workload.services;
            services.insert(service.key.clone(), ports.clone());
        }
        if named.is_some() {
            continue;
        }
        for text in &endpoint.addresses {
            let Ok(address) = values::address(text) else {
                strange.insert(text.as_str());
                continue;
            };
            let slice_name = slice.metadata.name.as_deref().unwrap_or_default();
            let it = Outside {
                well,
                ..Outside::new(Kind::EndpointSlice, slice_name, address)
            };
            outside(pass, it, &service.key, ports.clone());
        }
    }
    if let Some(text) = strange.first() {
        let message = format!(
            "endpoints: {} is an address that no endpoint can have, and is left out",
            values::quoted(text)
        );
        let mut reader = pass.reader(Kind::EndpointSlice, &slice.metadata);
        reader.tell(Severity::Error, "InvalidAddress", message);
    }
}

/// Where the service's ports lead at a slice's endpoints: to the ports of the same names. 0 where it has none of the name.
fn slice_ports(object: &Service, slice: &EndpointSlice) -> Vec<PortMapping> {
    let target = |name: &Option<String>| {
        let name = name.as_deref().unwrap_or_default();
        let mut ports = slice.ports.iter();
        let found = ports.find(|it| it.name.as_deref().unwrap_or_default() == name)?;
        number(found.port?)
    };
    let mapped = tcp_ports(object).filter_map(|port| {
        Some(PortMapping {
            service_port: number(port.port)?,
            target_port: target(&port.name).unwrap_or(0),
        })
    });
    mapped.filter(|port| !is_own_port(port.service_port)).collect()
}

//! VirtualService: for which hosts and which clients it is, and what it says.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use super::{http, passed};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{
        ObjectRef, Reader, Severity, Surroundings, full_hostname, rule::HttpRule, since, there, words,
    },
    mesh::{
        Place,
        http::{HostMatch, TcpRoute, TlsRule},
    },
};

/// What Istio calls the clients of the mesh among a VirtualService's `gateways`.
const MESH: &str = "mesh";

/// One, read.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::manifests) struct VirtualService {
    pub(in crate::manifests) object: ObjectRef,
    pub(in crate::manifests) since: i64,
    pub(in crate::manifests) hosts: Vec<HostMatch>,
    pub(in crate::manifests) export_to: ExportTo,
    pub(in crate::manifests) http: Vec<HttpRule>,
    /// Each with the only port on which it counts.
    pub(in crate::manifests) tls: Vec<(Option<u16>, TlsRule)>,
    pub(in crate::manifests) tcp: Vec<(Option<u16>, TcpRoute)>,
}

/// The namespaces whose clients it is for.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::manifests) enum ExportTo {
    All,
    These(BTreeSet<Arc<str>>),
}

/// Whose references these are.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) around: &'a dyn Surroundings,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl VirtualService {
    /// How well it fits a host, the best first; none where it is not about it.
    pub(in crate::manifests) fn fits(&self, hostname: &str) -> Option<std::cmp::Reverse<usize>> {
        let fits = |host: &HostMatch| match host {
            HostMatch::Exact(host) => (**host == *hostname).then_some(usize::MAX),
            HostMatch::Under(under) => hostname.ends_with(&**under).then_some(under.len()),
            HostMatch::Any => Some(0),
        };
        self.hosts.iter().filter_map(fits).max().map(std::cmp::Reverse)
    }
}

impl ExportTo {
    pub(in crate::manifests) fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// Reads one; none where it is not for clients of the mesh.
pub(in crate::manifests) fn virtual_service(
    object: &Custom,
    around: &dyn Surroundings,
    reader: &mut Reader<'_>,
) -> Option<VirtualService> {
    let reference = ObjectRef::new(Kind::VirtualService, &object.metadata);
    let whose = Whose {
        around,
        namespace: &reference.namespace,
        name: &reference.name,
    };
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    reader.fields(spec, &place)?;
    if !for_mesh(spec, &place, reader) {
        return None;
    }
    let hosts = hosts(spec, &place, whose, reader);
    if hosts.is_empty() {
        if names_no_host(spec) {
            // What is wrong with it is said here, not of those that delegate to it.
            http::rules(spec, &place, whose, reader);
        }
        let message =
            "spec.hosts: names no host, so that it counts only where another VirtualService delegates to it";
        reader.tell(Severity::Info, "NoHost", message);
        return None;
    }
    Some(VirtualService {
        since: since(&object.metadata),
        hosts,
        export_to: export_to(spec, &place, &reference.namespace, reader),
        http: http::rules(spec, &place, whose, reader),
        tls: passed::tls(spec, &place, whose, reader),
        tcp: passed::tcp(spec, &place, whose, reader),
        object: reference,
    })
}

/// Whether others can delegate to one that says this.
pub fn names_no_host(spec: &Value) -> bool {
    there(spec, "hosts").is_none_or(|it| it.as_array().is_some_and(Vec::is_empty))
}

/// Whether one of a namespace is there for the objects of another. What is wrong with it, its own namespace says.
pub(super) fn exports_to(spec: &Value, own: &str, other: &str) -> bool {
    let nobody = ObjectRef::new(Kind::VirtualService, &Default::default());
    let mut unheard = Vec::new();
    let mut reader = Reader::new(nobody, &mut unheard);
    export_to(spec, &Place::ROOT, own, &mut reader).contains(other)
}

/// Whether clients of the mesh are among those that it is for.
fn for_mesh(spec: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> bool {
    let gateways = reader.all(spec, "gateways", place, words::text);
    if gateways.is_empty() {
        // One that cannot be read is no reason to be for all.
        return there(spec, "gateways").is_none_or(|it| it.as_array().is_some_and(Vec::is_empty));
    }
    if gateways.iter().any(|it| **it == *MESH) {
        return true;
    }
    let message = format!(
        "spec.gateways: binds only the gateway {}, and says nothing to clients inside the mesh: add `mesh` to the \
         gateways where it is meant for them as well",
        gateways.join(", ")
    );
    reader.tell(Severity::Info, "OnlyGateway", message);
    false
}

fn hosts(spec: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Vec<HostMatch> {
    let domain = whose.around.cluster_domain();
    let hosts = reader.all(spec, "hosts", place, |text| {
        words::host(&full_hostname(text, whose.namespace, domain))
    });
    for host in &hosts {
        let HostMatch::Exact(host) = host else { continue };
        if whose.around.service_at(host, whose.namespace).is_none() {
            let message = format!(
                "spec.hosts: there is no service {host}: correct it, or write the whole name, \
                 <service>.<namespace>.svc.{domain}"
            );
            reader.tell(Severity::Warning, "UnknownHost", message);
        }
    }
    hosts
}

/// `*`, `.` for its own namespace, or names of namespaces. Without any: all.
fn export_to(spec: &Value, place: &Place<'_>, namespace: &str, reader: &mut Reader<'_>) -> ExportTo {
    let written = reader.all(spec, "exportTo", place, words::text);
    let nothing = there(spec, "exportTo").is_none_or(|it| it.as_array().is_some_and(Vec::is_empty));
    if nothing || written.iter().any(|it| **it == *"*") {
        return ExportTo::All;
    }
    let named = written.into_iter().filter(|it| **it != *"~");
    let named = named.map(|it| match &*it {
        "." => Arc::from(namespace),
        _ => it,
    });
    ExportTo::These(named.collect())
}

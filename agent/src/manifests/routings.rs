//! What one namespace says of routes.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Diagnostic, ObjectRef, Reader, Surroundings,
    gateway::{self, Route},
    istio::{self, VirtualService},
};
use crate::{
    cluster::objects::{Custom, Kind},
    mesh::http::HostMatch,
};

/// It, read, each kind in the order of names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routings {
    pub(super) routes: Vec<Route>,
    pub(super) virtual_services: Vec<VirtualService>,
}

/// The namespaces with services that something may be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// These.
    Namespaces(BTreeSet<Arc<str>>),
    /// Any.
    All,
}

/// Whether objects of a kind are read here.
pub fn is_routing(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute | Kind::VirtualService
    )
}

impl Default for Reach {
    fn default() -> Self {
        Self::Namespaces(BTreeSet::new())
    }
}

impl Reach {
    /// Whether it is among them.
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

impl Routings {
    /// Reads the objects of one namespace; what is no route is passed over.
    pub fn read<'o>(
        objects: impl IntoIterator<Item = (Kind, &'o Custom)>,
        around: &dyn Surroundings,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut all = Self::default();
        for (kind, object) in objects {
            let reference = ObjectRef::new(kind, &object.metadata);
            let mut reader = Reader::new(reference, diagnostics);
            if kind == Kind::VirtualService {
                let read = istio::virtual_service(object, around, &mut reader);
                all.virtual_services.extend(read);
            } else if is_routing(kind) {
                all.routes
                    .extend(gateway::route(kind, object, around, &mut reader));
            }
        }
        all
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.virtual_services.is_empty()
    }

    /// The namespaces with services that it may be about.
    pub fn reach(&self, cluster_domain: &str) -> Reach {
        let mut namespaces = BTreeSet::new();
        for parent in self.routes.iter().flat_map(|route| &route.parents) {
            namespaces.insert(parent.service.namespace.clone());
        }
        for host in self.virtual_services.iter().flat_map(|it| &it.hosts) {
            let HostMatch::Exact(host) = host else {
                return Reach::All;
            };
            match namespace_of(host, cluster_domain) {
                Some(namespace) => namespaces.insert(namespace.into()),
                None => return Reach::All,
            };
        }
        Reach::Namespaces(namespaces)
    }
}

/// The namespace of the service that has this hostname from Kubernetes.
pub fn namespace_of<'h>(hostname: &'h str, cluster_domain: &str) -> Option<&'h str> {
    let service = hostname.strip_suffix(cluster_domain)?.strip_suffix(".svc.")?;
    let (_, namespace) = service.split_once('.')?;
    Some(namespace).filter(|it| !it.contains('.'))
}

//! For which services of a mesh file an object with `targetRefs` is.

use super::{compile::Globals, policies::waypoint_service, workloads::Pod};
use crate::{
    cluster::labels,
    manifests::{Target, TargetKind, Targets},
    mesh::{Service, ServiceKey},
};

/// What is asked.
pub(super) struct Around<'a> {
    pub(super) globals: &'a Globals,
    pub(super) services: &'a [Service],
    /// The services in front of waypoints.
    waypoints: Vec<&'a ServiceKey>,
}

impl<'a> Around<'a> {
    pub(super) fn new(globals: &'a Globals, services: &'a [Service], pods: &[Pod<'_>]) -> Self {
        let of_pods = pods.iter().filter_map(|pod| pod.workload.waypoint.as_ref());
        let of_services = services.iter().filter_map(|service| service.waypoint.as_ref());
        let waypoints = of_pods.chain(of_services);
        let waypoints = waypoints.filter_map(|it| waypoint_service(it, services));
        Self {
            globals,
            services,
            waypoints: waypoints.map(|it| &it.key).collect(),
        }
    }

    /// Whether an object of a namespace is for a service: it names the service, its waypoint or that one's class. A waypoint's own
    /// service stands for what is sent to workloads themselves.
    pub(super) fn is_for(&self, namespace: &str, targets: &Targets, service: &Service) -> bool {
        let gateway = |waypoint: &Service| self.is_gateway(namespace, targets, waypoint);
        let Some(waypoint) = &service.waypoint else {
            return self.waypoints.contains(&&service.key) && gateway(service);
        };
        let own = namespace == &*service.key.namespace
            && [TargetKind::Service, TargetKind::ServiceEntry]
                .iter()
                .any(|kind| targets.contains(*kind, &service.name));
        own || waypoint_service(waypoint, self.services).is_some_and(gateway)
    }

    fn is_gateway(&self, namespace: &str, targets: &Targets, waypoint: &Service) -> bool {
        let own = namespace == &*waypoint.key.namespace;
        let is_root = namespace == &*self.globals.root_namespace;
        let classes = &labels::WAYPOINT_CLASSES;
        let of_class = || {
            classes
                .iter()
                .any(|it| targets.contains(TargetKind::GatewayClass, it))
        };
        (own && targets.contains(TargetKind::Gateway, &waypoint.name)) || (is_root && of_class())
    }

    /// What is wrong with a target of an object of a namespace, if anything.
    pub(super) fn wrong(&self, namespace: &str, target: &Target) -> Option<String> {
        let name = target.name.as_str();
        if target.kind == TargetKind::GatewayClass {
            let is_one =
                namespace == &*self.globals.root_namespace && labels::WAYPOINT_CLASSES.contains(&name);
            let message =
                format!("{name} is no class of waypoints, or this is not the root namespace: correct it");
            return (!is_one).then_some(message);
        }
        let own = |it: &&Service| *it.key.namespace == *namespace && *it.name == *name;
        match (self.services.iter().find(own), target.kind) {
            (None, _) => Some(format!(
                "there is no service {namespace}/{name}: correct the name"
            )),
            (Some(service), TargetKind::Gateway) if !self.waypoints.contains(&&service.key) => Some(format!(
                "service {namespace}/{name} is nobody's waypoint: correct the name"
            )),
            (Some(service), TargetKind::Service | TargetKind::ServiceEntry) if service.waypoint.is_none() => {
                Some(format!(
                    "service {namespace}/{name} has no waypoint, so that nobody can enforce this: give it one"
                ))
            }
            _ => None,
        }
    }
}

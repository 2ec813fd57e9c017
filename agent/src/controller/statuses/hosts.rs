//! VirtualServices and DestinationRules: whether waypoints do what they say of their hosts.

use serde_json::Value;

use super::{AT_WAYPOINTS, View, told};
use crate::{
    cluster::objects::{Custom, Kind},
    controller::{
        compile::{Diagnostic, ObjectRef, Severity},
        conditions::Condition,
    },
    manifests::{host_match, names_no_host},
    mesh::{Service, http::HostMatch},
};

/// What says that a part of a VirtualService or DestinationRule counts for nobody.
const COUNTS_FOR_NOBODY: [&str; 6] = [
    "NoWaypoint",
    "UnknownHost",
    "Elsewhere",
    "Shadowed",
    "ShadowedByRoute",
    "ConsumerIgnored",
];

/// What is said of a VirtualService or a DestinationRule: whether waypoints do all of it. One that is only for a gateway is
/// that gateway's business, and one that is about nothing in the mesh another mesh's.
pub(super) fn of_hosts(view: &View<'_>, object: &ObjectRef, it: &Custom) -> Vec<Condition> {
    let about = view.about(object, &it.spec);
    if view.reason(object, &["OnlyGateway"]).is_some() || !view.is_meshed(object, &about) {
        return Vec::new();
    }
    let wrong = view.error(object);
    if let Some(wrong) = wrong.or_else(|| view.reason(object, &COUNTS_FOR_NOBODY)) {
        let counts =
            |it: &Diagnostic| it.severity == Severity::Error || COUNTS_FOR_NOBODY.contains(&it.reason);
        let message = told(view, object, counts);
        return vec![Condition::new(AT_WAYPOINTS, false, wrong.reason, message)];
    }
    let bound = about.iter().any(|it| it.waypoint.is_some());
    let mut message = match names_no_host(&it.spec) && object.kind == Kind::VirtualService {
        true => "in force where others delegate to it".to_owned(),
        false if bound => "in force at the waypoints of its hosts".to_owned(),
        false => {
            let message = "no service that it is about has a waypoint, so that nobody does what it says";
            return vec![Condition::new(AT_WAYPOINTS, false, "NoWaypoint", message)];
        }
    };
    let more = told(view, object, |_| true);
    if !more.is_empty() {
        message = format!("{message}; {more}");
    }
    vec![Condition::new(AT_WAYPOINTS, true, "Accepted", message)]
}

impl<'a> View<'a> {
    /// The services that the hosts of a VirtualService or a DestinationRule mean. A DestinationRule counts for its own namespace's,
    /// and the root namespace's for all.
    fn about(&self, object: &ObjectRef, spec: &Value) -> Vec<&'a Service> {
        let settings = self.settings;
        let own = object.kind == Kind::DestinationRule && object.namespace != *settings.root_namespace;
        let hosts = spec.get("hosts").and_then(Value::as_array);
        let hosts = hosts.into_iter().flatten().chain(spec.get("host"));
        let hosts =
            hosts.filter_map(|host| host_match(host.as_str()?, &object.namespace, &settings.cluster_domain));
        let all = hosts.flat_map(|host| self.fitting(&host));
        all.filter(|it| !own || *it.key.namespace == *object.namespace)
            .collect()
    }

    fn fitting(&self, host: &HostMatch) -> Vec<&'a Service> {
        match host {
            HostMatch::Exact(name) => self.by_hostname.get(&**name).cloned().unwrap_or_default(),
            host => self
                .services
                .values()
                .copied()
                .filter(|it| host.matches(&it.key.hostname))
                .collect(),
        }
    }

    /// Whether an object is of the mesh: its namespace has pods there, or a service that it is about is.
    fn is_meshed(&self, object: &ObjectRef, about: &[&Service]) -> bool {
        let namespaces = about.iter().map(|it| &*it.key.namespace);
        let mut all = namespaces.chain([object.namespace.as_str()]);
        all.any(|namespace| self.meshed.contains(namespace)) || about.iter().any(|it| it.waypoint.is_some())
    }
}

//! What has arrived, and the mesh that it is.

use std::{collections::HashMap, fmt, sync::Arc};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    feed::{
        store::Kind,
        wds::{self, Addressed, Converted, Defaults, Http, Sees},
    },
    mesh::{
        Interned, Mesh, MeshParts, PeerAuthentication, PeerAuthentications, Policy, PolicyKey, SameNodes,
        TrustDomain, Workload, http,
    },
    rpc::discovery::{DeltaDiscoveryResponse, Resource},
};

/// What the resources do not say.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// What Kubernetes' hostnames end in.
    pub cluster_domain: Arc<str>,
    /// The namespace whose policies cover the whole mesh.
    pub root_namespace: Arc<str>,
    /// Where pods and services have their addresses.
    pub cluster_cidrs: Vec<IpNet>,
    /// How connections inside a node go, where a workload does not say it.
    pub same_nodes: SameNodes,
}

impl MeshSettings {
    fn defaults(&self, sees: Sees) -> Defaults {
        Defaults {
            sees,
            trust_domain: self.trust_domain.clone(),
            cluster: self.cluster.clone(),
        }
    }
}

/// The resources by name, each with its version.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    sees: Sees,
    addresses: ByName<Addressed>,
    policies: ByName<Policy>,
    /// None where it cannot be read. Its version is empty then, so that it is sent again to whoever asks again.
    http: ByName<Option<Http>>,
    /// What workloads have in common.
    interned: Interned,
    /// Of which kinds everything has arrived once.
    complete: [bool; Kind::ALL.len()],
}

type ByName<T> = FxHashMap<Arc<str>, (Version, T)>;

/// The version of a resource: any text; our own controller's, which are sixteen hexadecimal digits, as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Number(u64),
    Text(Box<str>),
}

impl Version {
    fn new(text: &str) -> Self {
        let number = u64::from_str_radix(text, 16).map(Self::Number);
        match number {
            Ok(number) if number.to_string() == text => number,
            Ok(_) | Err(_) => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number:016x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Received {
    /// Nothing yet, for whoever sees this much.
    pub(super) fn new(sees: Sees) -> Self {
        Self {
            sees,
            ..Self::default()
        }
    }

    /// The kinds that are asked for: agents have no use for what waypoints do.
    pub(super) fn kinds(&self) -> &'static [Kind] {
        match self.sees {
            Sees::Connections => &[Kind::Address, Kind::Authorization],
            Sees::Requests => &Kind::ALL,
        }
    }

    /// Whether a response says more than that there is nothing of some names.
    pub(super) fn would_change(&self, kind: Kind, response: &DeltaDiscoveryResponse) -> bool {
        let is_here = |name: &String| match kind {
            Kind::Address => self.addresses.contains_key(name.as_str()),
            Kind::Authorization => self.policies.contains_key(name.as_str()),
            Kind::Http => self.http.contains_key(name.as_str()),
        };
        !self.complete[kind as usize]
            || !response.resources.is_empty()
            || response.removed_resources.iter().any(is_here)
    }

    /// Takes a response in. The answer is what of it cannot be read; that is left as it was, but for what waypoints do.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        response: DeltaDiscoveryResponse,
        settings: &MeshSettings,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for name in &response.removed_resources {
            match kind {
                Kind::Address => drop(self.addresses.remove(name.as_str())),
                Kind::Authorization => drop(self.policies.remove(name.as_str())),
                Kind::Http => drop(self.http.remove(name.as_str())),
            }
        }
        let defaults = settings.defaults(self.sees);
        for resource in response.resources {
            let name = resource.name.clone();
            if let Err(error) = self.take_one(kind, resource, &defaults) {
                problems.push(format!("{name}: {error}"));
            }
        }
        self.complete[kind as usize] = true;
        problems
    }

    fn take_one(
        &mut self,
        kind: Kind,
        resource: Resource,
        defaults: &Defaults,
    ) -> Result<(), wds::Unreadable> {
        let Resource {
            version,
            resource,
            name,
            ..
        } = resource;
        let bytes = resource.map(|any| any.value).unwrap_or_default();
        let version = Version::new(&version);
        match kind {
            Kind::Address => {
                let address = wds::address(&bytes, defaults, &mut self.interned)?;
                let name = match &address {
                    Addressed::Workload(it) if *it.uid == *name => it.uid.clone(),
                    Addressed::Workload(_) | Addressed::Service(_) => name.into(),
                };
                self.addresses.insert(name, (version, address));
            }
            Kind::Authorization => {
                let policy = wds::policy(&bytes, self.sees)?;
                self.policies.insert(name.into(), (version, policy));
            }
            // What it was before may let through what it is to refuse now.
            Kind::Http => match wds::http(&name, &bytes) {
                Ok(read) => drop(self.http.insert(name.into(), (version, Some(read)))),
                Err(error) => {
                    self.http.insert(name.into(), (Version::new(""), None));
                    return Err(error);
                }
            },
        }
        Ok(())
    }

    /// Whether there is a mesh: a part of one would refuse too much, or too little.
    pub(super) fn is_complete(&self) -> bool {
        self.kinds().iter().all(|kind| self.complete[*kind as usize])
    }

    /// Whether a workload of this node names a policy that is not here. A waypoint is of no node.
    pub(super) fn lacks_a_policy(&self, node: &str) -> bool {
        if node.is_empty() {
            return false;
        }
        let ours = self.addresses.values().filter_map(|(_, it)| match it {
            Addressed::Workload(it) if *it.node == *node => Some(it),
            Addressed::Workload(_) | Addressed::Service(_) => None,
        });
        let mut named = ours.flat_map(|it| &it.policies).peekable();
        if named.peek().is_none() {
            return false;
        }
        let known: FxHashSet<_> = self.policies.values().map(|(_, policy)| &policy.key).collect();
        named.any(|key| !known.contains(key))
    }

    /// What is here already, for a server that is asked again.
    pub(super) fn versions(&self, kind: Kind) -> HashMap<String, String> {
        fn of<T>(all: &ByName<T>) -> HashMap<String, String> {
            let version =
                |(name, (version, _)): (&Arc<str>, &(Version, T))| (name.to_string(), version.to_string());
            all.iter().map(version).collect()
        }
        match kind {
            Kind::Address => of(&self.addresses),
            Kind::Authorization => of(&self.policies),
            Kind::Http => of(&self.http),
        }
    }

    /// The mesh.
    pub(super) fn mesh(&self, settings: &MeshSettings) -> Mesh {
        let mut modes = Modes::of(self.policies.values().map(|(_, policy)| policy));
        let (mut workloads, mut services) = (Vec::new(), Vec::new());
        for (_, address) in self.addresses.values() {
            match address {
                Addressed::Workload(workload) => workloads.push(modes.apply(workload)),
                Addressed::Service(service) => services.push(Arc::clone(service)),
            }
        }
        let policies = self.policies.values().map(|(_, policy)| policy);
        let policies = policies
            .filter(|policy| modes.is_a_policy(&policy.key))
            .cloned()
            .collect();
        let parts = MeshParts {
            trust_domain: settings.trust_domain.clone(),
            cluster: settings.cluster.clone(),
            cluster_domain: settings.cluster_domain.clone(),
            root_namespace: settings.root_namespace.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            workloads: Vec::new(),
            services: Vec::new(),
            policies,
            peer_authentications: PeerAuthentications {
                workloads: modes.of_workloads,
                ..PeerAuthentications::default()
            },
            same_nodes: settings.same_nodes.clone(),
            http: self.http(),
        };
        Mesh::sharing(parts, workloads, services)
    }

    /// What waypoints do. An authentication that cannot be read is none: whoever names it refuses.
    fn http(&self) -> http::Parts {
        let mut parts = http::Parts::default();
        for (name, (_, read)) in &self.http {
            match read {
                Some(Http::Routes(routes)) => parts.routes.push(Arc::clone(routes)),
                Some(Http::Authentication(it)) => parts.authentications.push(Arc::clone(it)),
                None => parts.unreadable.extend(wds::routes_of(name)),
            }
        }
        parts
    }
}

/// mTLS modes, which arrive as policies.
#[derive(Default)]
struct Modes {
    by_key: FxHashMap<PolicyKey, PeerAuthentication>,
    of_workloads: FxHashMap<Arc<str>, PeerAuthentication>,
    /// Those that some workload needs as the policies that they are.
    policies_too: FxHashSet<PolicyKey>,
}

impl Modes {
    fn of<'a>(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let converted = policies.filter_map(|policy| {
            let Converted(modes) = wds::converted(policy)?;
            Some((policy.key.clone(), modes))
        });
        Self {
            by_key: converted.collect(),
            ..Self::default()
        }
    }

    /// Takes the modes out of a workload's policies. A second one stays a policy: it refuses as well. A workload without any stays
    /// the value that it is.
    fn apply(&mut self, workload: &Arc<Workload>) -> Arc<Workload> {
        if !workload.policies.iter().any(|key| self.by_key.contains_key(key)) {
            return Arc::clone(workload);
        }
        let mut workload = Workload::clone(workload);
        let mut own = None;
        workload.policies.retain(|key| match self.by_key.get(key) {
            Some(modes) if own.is_none() => {
                own = Some(modes.clone());
                false
            }
            Some(_) => {
                self.policies_too.insert(key.clone());
                true
            }
            None => true,
        });
        if let Some(modes) = own {
            self.of_workloads.insert(workload.uid.clone(), modes);
        }
        Arc::new(workload)
    }

    fn is_a_policy(&self, key: &PolicyKey) -> bool {
        !self.by_key.contains_key(key) || self.policies_too.contains(key)
    }
}

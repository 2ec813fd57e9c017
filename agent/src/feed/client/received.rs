//! What has arrived, and the mesh that it is.

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    feed::{
        store::Kind,
        wds::{self, Addressed, Converted, Defaults},
    },
    mesh::{
        Mesh, MeshParts, PeerAuthentication, PeerAuthentications, Policy, PolicyKey, SameNodes, TrustDomain,
        Workload,
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
    fn defaults(&self) -> Defaults {
        Defaults {
            trust_domain: self.trust_domain.clone(),
            cluster: self.cluster.clone(),
        }
    }
}

/// The resources by name, each with its version.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    addresses: HashMap<String, (String, Addressed)>,
    policies: HashMap<String, (String, Policy)>,
    /// Of which kinds everything has arrived once.
    complete: [bool; Kind::ALL.len()],
}

impl Received {
    /// Whether a response says more than that there is nothing of some names.
    pub(super) fn would_change(&self, kind: Kind, response: &DeltaDiscoveryResponse) -> bool {
        let is_here = |name: &String| match kind {
            Kind::Address => self.addresses.contains_key(name),
            Kind::Authorization => self.policies.contains_key(name),
        };
        !self.complete[kind as usize]
            || !response.resources.is_empty()
            || response.removed_resources.iter().any(is_here)
    }

    /// Takes a response in. The answer is what of it cannot be read; that is left as it was.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        response: DeltaDiscoveryResponse,
        settings: &MeshSettings,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for name in &response.removed_resources {
            match kind {
                Kind::Address => drop(self.addresses.remove(name)),
                Kind::Authorization => drop(self.policies.remove(name)),
            }
        }
        let defaults = settings.defaults();
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
        match kind {
            Kind::Address => {
                let address = wds::address(&bytes, defaults)?;
                self.addresses.insert(name, (version, address));
            }
            Kind::Authorization => {
                let policy = wds::policy(&bytes)?;
                self.policies.insert(name, (version, policy));
            }
        }
        Ok(())
    }

    /// Whether there is a mesh: a part of one would refuse too much, or too little.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.iter().all(|complete| *complete)
    }

    /// What is here already, for a server that is asked again.
    pub(super) fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let of = |(name, version): (&String, &String)| (name.clone(), version.clone());
        match kind {
            Kind::Address => self
                .addresses
                .iter()
                .map(|(name, (version, _))| of((name, version)))
                .collect(),
            Kind::Authorization => self
                .policies
                .iter()
                .map(|(name, (version, _))| of((name, version)))
                .collect(),
        }
    }

    /// The mesh.
    pub(super) fn mesh(&self, settings: &MeshSettings) -> Mesh {
        let mut modes = Modes::of(self.policies.values().map(|(_, policy)| policy));
        let (mut workloads, mut services) = (Vec::new(), Vec::new());
        for (_, address) in self.addresses.values() {
            match address {
                Addressed::Workload(workload) => workloads.push(modes.apply((**workload).clone())),
                Addressed::Service(service) => services.push((**service).clone()),
            }
        }
        let policies = self.policies.values().map(|(_, policy)| policy);
        let policies = policies
            .filter(|policy| modes.is_a_policy(&policy.key))
            .cloned()
            .collect();
        Mesh::new(MeshParts {
            trust_domain: settings.trust_domain.clone(),
            cluster: settings.cluster.clone(),
            cluster_domain: settings.cluster_domain.clone(),
            root_namespace: settings.root_namespace.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            workloads,
            services,
            policies,
            peer_authentications: PeerAuthentications {
                workloads: modes.of_workloads,
                ..PeerAuthentications::default()
            },
            same_nodes: settings.same_nodes.clone(),
            http: Default::default(),
        })
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

    /// Takes the modes out of a workload's policies. A second one stays a policy: it refuses as well.
    fn apply(&mut self, mut workload: Workload) -> Workload {
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
        workload
    }

    fn is_a_policy(&self, key: &PolicyKey) -> bool {
        !self.by_key.contains_key(key) || self.policies_too.contains(key)
    }
}

//! From what the compiler says to what the feed serves: resources are encoded here, once.
//!
//! mTLS modes and settings of namespaces have no resources of their own; they are said with each workload that they
//! concern (`feed::wds::mtls`), so a change of them says its workloads again.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    compile::{Compiler, Delta},
    placement::Placement,
    waypoint_accounts::WaypointAccounts,
};
use crate::{
    feed::{
        server::node_group,
        store::{Encoded, Kind, Store, Update},
        wds,
    },
    mesh::{
        PeerAuthentications, PolicyKey, PortModes, SameNode, SameNodes, Service, Workload,
        http::{RequestAuthentication, ServiceRoutes},
    },
};

/// Keeps a store as the compiler says.
#[derive(Debug)]
pub(super) struct Publisher {
    store: Store,
    placement: Placement,
    waypoints: WaypointAccounts,
    root_namespace: Arc<str>,
    peer_authentications: PeerAuthentications,
    same_nodes: SameNodes,
    /// The mTLS policy of each workload that has one.
    modes: FxHashMap<Arc<str>, PolicyKey>,
    /// Each of them: what it says, and how many workloads have it.
    mode_policies: FxHashMap<PolicyKey, (PortModes, usize)>,
}

impl Publisher {
    /// Nothing is published yet.
    pub(super) fn new(
        store: Store,
        placement: Placement,
        waypoints: WaypointAccounts,
        root_namespace: Arc<str>,
    ) -> Self {
        Self {
            store,
            placement,
            waypoints,
            root_namespace,
            peer_authentications: PeerAuthentications::default(),
            same_nodes: SameNodes::default(),
            modes: FxHashMap::default(),
            mode_policies: FxHashMap::default(),
        }
    }

    /// Publishes what changed.
    pub(super) fn publish(&mut self, compiler: &Compiler, delta: Delta) {
        let changed = delta.workloads.iter().map(|it| &**it);
        self.placement.update(changed, &delta.removed_workloads);
        self.waypoints.update(delta.waypoints.as_deref());
        let mut updates = Vec::new();
        let for_all = delta.scopes_changed;
        if let Some(modes) = delta.peer_authentications {
            self.peer_authentications = modes;
        }
        if let Some(same_nodes) = delta.same_nodes {
            self.same_nodes = same_nodes;
        }
        for uid in delta.removed_workloads {
            self.forget_modes(&uid, &mut updates);
            updates.push(removed(Kind::Address, uid));
        }
        if for_all {
            for workload in compiler.workloads() {
                self.workload(workload, &mut updates);
            }
        } else {
            for workload in &delta.workloads {
                self.workload(workload, &mut updates);
            }
        }
        let gone = delta.removed_services.iter().map(wds::service_name);
        updates.extend(gone.map(|name| removed(Kind::Address, name.into())));
        updates.extend(delta.services.iter().map(|service| of_service(service)));
        let gone = delta.removed_policies.iter().map(PolicyKey::to_string);
        updates.extend(gone.map(|name| removed(Kind::Authorization, name.into())));
        updates.extend(delta.policies.iter().map(|policy| of_policy(policy)));
        let gone = delta.removed_routes.iter().map(wds::routes_name);
        let gone = gone.chain(delta.removed_authentications.iter().map(wds::authentication_name));
        updates.extend(gone.map(|name| removed(Kind::Http, name.into())));
        updates.extend(delta.routes.iter().map(|routes| of_routes(routes.values())));
        updates.extend(delta.authentications.iter().map(|it| of_authentication(it)));
        self.store.update(updates);
    }

    fn workload(&mut self, workload: &Workload, updates: &mut Vec<Update>) {
        let modes = self.peer_authentications.port_modes(workload);
        let decides = self.decides(workload);
        let key = wds::modes_policy(&modes, &decides, &workload.namespace, &self.root_namespace);
        if self.modes.get(&workload.uid) != key.as_ref() {
            self.forget_modes(&workload.uid, updates);
            if let Some(key) = &key {
                self.modes.insert(workload.uid.clone(), key.clone());
                self.mode_policies.entry(key.clone()).or_default().1 += 1;
            }
        }
        if let Some(key) = &key {
            self.say_modes(key, modes, updates);
        }
        let same_node = workload
            .same_node
            .or_else(|| self.same_nodes.namespaces.get(&workload.namespace).copied());
        let same_node =
            same_node.or((self.same_nodes.mesh != SameNode::default()).then_some(self.same_nodes.mesh));
        let bytes = if same_node == workload.same_node {
            wds::encode_workload(workload, key.as_slice())
        } else {
            let said = Workload {
                same_node,
                ..workload.clone()
            };
            wds::encode_workload(&said, key.as_slice())
        };
        let own = workload.addresses.iter().filter(|_| !workload.host_network);
        let resource = Encoded {
            bytes,
            aliases: own.map(|ip| format!("{}/{ip}", workload.network)).collect(),
            with: brought_by(workload),
        };
        updates.push(Update {
            kind: Kind::Address,
            name: workload.uid.clone(),
            resource: Some(resource),
        });
    }

    /// The name of the peer authentication that decides, for people.
    fn decides(&self, workload: &Workload) -> PolicyKey {
        let all = &self.peer_authentications;
        let narrow = all.workloads.get(&workload.uid);
        let narrow = narrow.or_else(|| all.namespaces.get(&workload.namespace));
        narrow.unwrap_or(&all.mesh).key.clone()
    }

    fn say_modes(&mut self, key: &PolicyKey, modes: PortModes, updates: &mut Vec<Update>) {
        let Some((said, count)) = self.mode_policies.get_mut(key) else {
            return;
        };
        if *count == 1 || *said != modes {
            updates.push(of_policy(&wds::encode_modes(key.clone(), &modes)));
            *said = modes;
        }
    }

    fn forget_modes(&mut self, uid: &Arc<str>, updates: &mut Vec<Update>) {
        let Some(key) = self.modes.remove(uid) else { return };
        if let Some((_, count)) = self.mode_policies.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.mode_policies.remove(&key);
                updates.push(removed(Kind::Authorization, key.to_string().into()));
            }
        }
    }
}

/// Who asks for a service needs what is behind it, and an agent what runs on its node.
fn brought_by(workload: &Workload) -> Vec<Arc<str>> {
    let services = workload.services.keys().map(|key| wds::service_name(key).into());
    let node = (!workload.node.is_empty()).then(|| node_group(&workload.node));
    services.chain(node).collect()
}

fn removed(kind: Kind, name: Arc<str>) -> Update {
    let resource = None;
    Update { kind, name, resource }
}

fn of_service(service: &Service) -> Update {
    Update {
        kind: Kind::Address,
        name: wds::service_name(&service.key).into(),
        resource: Some(Encoded {
            bytes: wds::encode_service(service),
            aliases: service.vips.iter().map(|ip| format!("/{ip}")).collect(),
            with: Vec::new(),
        }),
    }
}

fn of_policy(policy: &crate::mesh::Policy) -> Update {
    Update {
        kind: Kind::Authorization,
        name: policy.key.to_string().into(),
        resource: Some(Encoded {
            bytes: wds::encode_policy(policy),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    }
}

fn of_routes(routes: &ServiceRoutes) -> Update {
    Update {
        kind: Kind::Http,
        name: wds::routes_name(&routes.service).into(),
        resource: Some(Encoded {
            bytes: wds::encode_routes(routes),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    }
}

fn of_authentication(it: &RequestAuthentication) -> Update {
    Update {
        kind: Kind::Http,
        name: wds::authentication_name(&it.key).into(),
        resource: Some(Encoded {
            bytes: wds::encode_authentication(it),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    }
}

//! Pods: what a test asks for, and what it gets.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use serde_json::{Map, Value, json};

use crate::host::Host;

/// How the mesh file speaks of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// Captured by its node's agent and reached through tunnels.
    #[default]
    Mesh,
    /// Reached through tunnels that it takes by itself, as a waypoint does; captured by nobody.
    Native,
    /// Known, but not in the mesh: reached in plain TCP.
    Outside,
    /// Not mentioned at all.
    Unlisted,
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) membership: Membership,
    pub(crate) uid: u32,
    pub(crate) host_network: bool,
    pub(crate) address: Option<u8>,
    pub(crate) cgroup: Option<String>,
    pub(crate) fields: Map<String, Value>,
}

impl PodSpec {
    /// A pod of the mesh in namespace `demo`, with service account `default`, run by root.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "demo".to_owned(),
            service_account: "default".to_owned(),
            labels: BTreeMap::new(),
            membership: Membership::Mesh,
            uid: 0,
            host_network: false,
            address: None,
            cgroup: None,
            fields: Map::new(),
        }
    }

    /// Its namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Its service account.
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// One more label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Known to the mesh, but not in it.
    pub fn outside(mut self) -> Self {
        self.membership = Membership::Outside;
        self
    }

    /// It takes tunnels by itself, as a waypoint does.
    pub fn native(mut self) -> Self {
        self.membership = Membership::Native;
        self
    }

    /// Unknown to the mesh.
    pub fn unlisted(mut self) -> Self {
        self.membership = Membership::Unlisted;
        self
    }

    /// Its processes run as this user and group.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// It shares its node's network.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Its cgroup below that of the node's pods, as a kubelet would name it; its parents are made.
    pub fn cgroup(mut self, path: &str) -> Self {
        self.cgroup = Some(path.to_owned());
        self
    }

    /// It gets the addresses of a pod that was there before.
    pub fn address_of(mut self, gone: &Pod) -> Self {
        self.address = Some(gone.v4().octets()[3]);
        self
    }

    /// One more field of its entry in the mesh file, or another value for one that is generated.
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }
}

/// A running pod. It lives as long as its world; this is a handle, cheap to clone.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) host: Arc<Host>,
    pub(crate) spec: Arc<PodSpec>,
    pub(crate) node: Arc<str>,
}

impl Pod {
    /// `namespace/name`.
    pub fn namespaced_name(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    /// The identity that its certificate carries, in the default trust domain.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.spec.namespace, self.spec.service_account
        )
    }

    /// `namespace/name` of the Gateway, for a pod that is a waypoint's.
    pub fn gateway(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.service_account)
    }

    /// The node it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The object that Kubernetes would have of it, running and ready.
    pub fn as_kubernetes(&self) -> Value {
        let addresses: Vec<_> = self
            .host
            .addresses()
            .iter()
            .map(|ip| json!({"ip": ip.to_string()}))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.spec.name,
                "namespace": self.spec.namespace,
                "labels": self.spec.labels,
            },
            "spec": {
                "nodeName": &*self.node,
                "serviceAccountName": self.spec.service_account,
                "containers": [],
                "hostNetwork": self.spec.host_network,
            },
            "status": {
                "phase": "Running",
                "podIP": addresses.first().map(|it| it["ip"].clone()),
                "podIPs": addresses,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    /// Its entry in the mesh file; `None` where the mesh does not know it.
    pub(crate) fn entry(&self, membership: Membership) -> Option<Value> {
        let mut entry = json!({
            "name": self.spec.name,
            "namespace": self.spec.namespace,
            "serviceAccount": self.spec.service_account,
            "node": &*self.node,
            "addresses": self.host.addresses(),
            "labels": self.spec.labels,
        });
        let fields = entry.as_object_mut()?;
        match membership {
            Membership::Unlisted => return None,
            Membership::Outside => drop(fields.insert("tunnelProtocol".into(), json!("NONE"))),
            Membership::Native => {
                fields.insert("tunnelProtocol".into(), json!("HBONE"));
                fields.insert("nativeTunnel".into(), json!(true));
            }
            Membership::Mesh => {
                fields.insert("tunnelProtocol".into(), json!("HBONE"));
                fields.insert("netns".into(), json!(self.host.netns().path()));
            }
        }
        if self.spec.host_network {
            fields.insert("hostNetwork".into(), json!(true));
        }
        fields.extend(self.spec.fields.clone());
        Some(entry)
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

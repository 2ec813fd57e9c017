//! Objects of the Kubernetes API with the fields that weft reads, and no others: there may be tens of thousands.
//!
//! What everybody's cluster has is typed; Kubernetes checks it before we see it. Objects of the Gateway API and of Istio
//! keep their `spec` as it came, whatever version of whatever definition is installed: a field that cannot be read must
//! break neither a list nor a watch. `trim` drops what nobody reads and is called on receipt. Not here: what any of it means
//! (`controller::compile`, `enrolment`).

mod custom;
mod endpoint_slice;
mod kind;
mod manifest;
mod namespace;
mod node;
mod pod;
mod service;

pub use custom::Custom;
pub use endpoint_slice::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice, TargetRef};
pub use kind::Kind;
pub use kube::core::ObjectMeta;
pub use manifest::ManifestError;
pub use namespace::Namespace;
pub use node::Node;
pub use pod::{Condition, Container, ContainerPort, Pod, PodIp, PodSpec, PodStatus};
pub use service::{
    Ingress, LoadBalancerStatus, Service, ServicePort, ServiceSpec, ServiceStatus, TargetPort,
};

use serde::{Deserialize, Deserializer};

/// Any of them.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is its own type")]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    /// One of a kind that the Gateway API or Istio defines.
    Custom(Kind, Box<Custom>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Custom(kind, _) => *kind,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(it) => &it.metadata,
            Self::Node(it) => &it.metadata,
            Self::Pod(it) => &it.metadata,
            Self::Service(it) => &it.metadata,
            Self::EndpointSlice(it) => &it.metadata,
            Self::Custom(_, it) => &it.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Namespace(it) => &mut it.metadata,
            Self::Node(it) => &mut it.metadata,
            Self::Pod(it) => &mut it.metadata,
            Self::Service(it) => &mut it.metadata,
            Self::EndpointSlice(it) => &mut it.metadata,
            Self::Custom(_, it) => &mut it.metadata,
        }
    }

    /// Drops the list of who wrote which field, which may be longer than all the rest.
    pub fn forget_managers(&mut self) {
        self.metadata_mut().managed_fields = None;
    }

    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        match self {
            Self::Namespace(it) => it.trim(),
            Self::Node(it) => it.trim(),
            Self::Pod(it) => it.trim(),
            Self::Service(it) => it.trim(),
            Self::EndpointSlice(it) => it.trim(),
            Self::Custom(kind, it) => it.trim(*kind),
        }
    }
}

macro_rules! object {
    ($($type:ident),*) => {
        $(impl From<$type> for Object {
            fn from(object: $type) -> Self {
                Self::$type(Box::new(object))
            }
        })*
    };
}
object!(Namespace, Node, Pod, Service, EndpointSlice);

/// Names a type's kind, group, version and scope.
macro_rules! resource {
    ($type:ident, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = kube::core::$scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($type).into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &kube::core::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
use resource;

/// What is read of any object's metadata, and of its annotations those that are named.
fn trim_metadata(metadata: &mut ObjectMeta, annotations: &[&str]) {
    let whole = std::mem::take(metadata);
    let kept = |mut all: std::collections::BTreeMap<String, String>| {
        all.retain(|key, _| annotations.contains(&key.as_str()));
        Some(all).filter(|kept| !kept.is_empty())
    };
    *metadata = ObjectMeta {
        name: whole.name,
        namespace: whole.namespace,
        uid: whole.uid,
        labels: whole.labels.filter(|labels| !labels.is_empty()),
        annotations: whole.annotations.and_then(kept),
        generation: whole.generation,
        creation_timestamp: whole.creation_timestamp,
        deletion_timestamp: whole.deletion_timestamp,
        ..ObjectMeta::default()
    };
}

/// `null` is as if the field were not there: Go writes its empty lists like that.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests;

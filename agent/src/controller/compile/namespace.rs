//! What the objects of one namespace mean: each kind of object in a file of its own, put together here.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Settings, authentications, bound, bounded, destination_rules,
    drafts::Drafts,
    gateways, peer_authentications, pods,
    resources::InNamespace,
    service_entries, services,
    shared::Shared,
    unit::{Owned, Unit},
    waypoint_only, workload_entries,
};
use crate::{
    cluster::{
        labels,
        objects::{Kind, Node, ObjectMeta},
    },
    manifests::{Authentication, ObjectRef, Reader, policy},
    mesh::values,
};

/// What a namespace's objects are compiled with.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) shared: &'a Shared,
    pub(super) nodes: &'a BTreeMap<String, Node>,
}

/// What one kind of object after the other adds to.
pub(super) struct Pass<'a> {
    pub(super) cx: Context<'a>,
    pub(super) namespace: &'a Arc<str>,
    pub(super) objects: &'a InNamespace,
    pub(super) drafts: Drafts<'a>,
    /// The namespace's own policies, by name.
    pub(super) policies: Vec<policy::Read>,
    /// Its own RequestAuthentications.
    pub(super) authentications: Vec<Authentication>,
    pub(super) unit: Unit,
}

/// What the objects of one namespace mean.
pub(super) fn compile(cx: &Context<'_>, namespace: &Arc<str>, objects: &InNamespace) -> Unit {
    let mut pass = Pass {
        cx: *cx,
        namespace,
        objects,
        drafts: Drafts::default(),
        policies: Vec::new(),
        authentications: Vec::new(),
        unit: Unit::default(),
    };
    pass.itself();
    pods::pods(&mut pass);
    workload_entries::workload_entries(&mut pass);
    pass.drafts.index();
    services::services(&mut pass);
    service_entries::service_entries(&mut pass);
    pass.authorization_policies();
    pass.select();
    peer_authentications::peer_authentications(&mut pass);
    authentications::authentications(&mut pass);
    destination_rules::destination_rules(&mut pass);
    bound::bound(&mut pass);
    waypoint_only::waypoint_only(&mut pass);
    gateways::gateways(&mut pass);
    pass.finish()
}

impl<'a> Pass<'a> {
    /// The labels of the namespace itself.
    pub(super) fn labels(&self) -> Option<&'a BTreeMap<String, String>> {
        self.metadata()?.labels.as_ref()
    }

    /// An annotation of the namespace itself.
    pub(super) fn annotation(&self, key: &str) -> Option<&'a str> {
        annotation(self.metadata()?.annotations.as_ref(), key)
    }

    fn metadata(&self) -> Option<&'a ObjectMeta> {
        self.objects.itself.as_ref().map(|it| &it.metadata)
    }

    /// What is wrong with an object goes here.
    pub(super) fn reader(&mut self, kind: Kind, metadata: &ObjectMeta) -> Reader<'_> {
        self.reader_of(ObjectRef::new(kind, metadata))
    }

    /// The same, of an object that is named.
    pub(super) fn reader_of(&mut self, object: ObjectRef) -> Reader<'_> {
        Reader::new(object, &mut self.unit.diagnostics)
    }

    fn itself(&mut self) {
        let Some(metadata) = self.metadata() else { return };
        let mut reader = self.reader(Kind::Namespace, metadata);
        let same_node = annotation_value(
            metadata.annotations.as_ref(),
            labels::SAME_NODE,
            &mut reader,
            values::same_node,
        );
        self.unit.same_node = same_node;
    }

    fn authorization_policies(&mut self) {
        for (_, object) in self.objects.of_kind(Kind::AuthorizationPolicy) {
            let root = &self.cx.settings.root_namespace;
            let mut reader = self.reader(Kind::AuthorizationPolicy, &object.metadata);
            let read = policy::read(object, root, &mut reader);
            self.unit.policies.push(Arc::new(read.policy.clone()));
            self.policies.push(read);
        }
    }

    /// The policies that can cover workloads here: the root namespace's, and the namespace's own.
    pub(super) fn covering(&self) -> impl Iterator<Item = &policy::Read> {
        let own = self.policies.iter().filter(|_| !self.is_root());
        self.cx.shared.root().policies.iter().chain(own)
    }

    pub(super) fn is_root(&self) -> bool {
        *self.namespace == self.cx.settings.root_namespace
    }

    /// Notes at the workloads which selector policies select them.
    fn select(&mut self) {
        let mut selected = Vec::new();
        let mut nobody = Vec::new();
        for read in self.covering() {
            let Some(labels) = &read.selector else { continue };
            let policy = &read.policy;
            let before = selected.len();
            let drafts = self.drafts.select(labels);
            selected.extend(drafts.into_iter().map(|at| (at, policy.key.clone())));
            if selected.len() == before && policy.key.namespace == *self.namespace {
                nobody.push(read.object.clone());
            }
        }
        for (at, key) in selected {
            self.drafts.all[at].workload.policies.push(key);
        }
        // A selector of the root namespace selects in all.
        let nobody = if self.is_root() { Vec::new() } else { nobody };
        for object in nobody {
            selects_nothing(object, &mut self.unit);
        }
    }

    fn finish(self) -> Unit {
        let Self { drafts, mut unit, .. } = self;
        for mut draft in drafts.all {
            draft.workload.policies.sort();
            draft.workload.policies.dedup();
            draft.workload.subsets.sort();
            draft.workload.authentications.sort();
            draft.workload.authentications.dedup();
            let value = Arc::new(draft.workload);
            let owner = draft.owner;
            unit.workloads.push(Owned { owner, value });
        }
        unit.claims.sort();
        unit.claims.dedup();
        unit.diagnostics = bounded::of_namespace(unit.diagnostics);
        unit
    }
}

/// A selector may be a slip of the pen, or its pods have gone for the moment.
pub(super) fn selects_nothing(object: ObjectRef, unit: &mut Unit) {
    let message = "spec.selector: selects no workload: compare it with the pods' labels";
    let mut reader = Reader::new(object, &mut unit.diagnostics);
    reader.tell(super::Severity::Warning, "SelectsNothing", message);
}

/// An annotation of an object.
pub(super) fn annotation<'m>(
    annotations: Option<&'m BTreeMap<String, String>>,
    key: &str,
) -> Option<&'m str> {
    annotations?.get(key).map(String::as_str)
}

/// Reads the value of an annotation.
pub(super) fn annotation_value<T>(
    annotations: Option<&BTreeMap<String, String>>,
    key: &str,
    reader: &mut Reader<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let text = annotation(annotations, key)?;
    parse(text)
        .map_err(|message| {
            let message = format!("annotation {key}: {message}");
            reader.tell(super::Severity::Error, "InvalidAnnotation", message);
        })
        .ok()
}

/// A label of an object.
pub(super) fn label<'l>(labels: Option<&'l BTreeMap<String, String>>, key: &str) -> Option<&'l str> {
    labels?
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

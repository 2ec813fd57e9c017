//! The `peerAuthentications` section of a mesh file, and PeerAuthentications among its manifests.

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    compile::{Globals, selected},
    objects::Objects,
    problem::{Place, Problems},
    schema::{Document, PeerAuthenticationEntry, Text},
    values,
    workloads::Pod,
};
use crate::{
    cluster::objects::Kind,
    manifests::{Diagnostic, Reader, Selector, Severity, peer_authentication},
    mesh::{MtlsMode, PeerAuthentication, PeerAuthentications, PolicyKey},
};

/// What one is called that has no name.
const UNNAMED: &str = "default";

/// Reads the `peerAuthentications` section.
pub(super) fn peer_authentications(
    document: &Document,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    problems: &mut Problems,
) -> PeerAuthentications {
    let section = Place::ROOT.field("peerAuthentications");
    let mut read = PeerAuthentications::default();
    let mut mesh = None;
    for (i, entry) in document.peer_authentications.iter().flatten().enumerate() {
        let place = section.index(i);
        let (at, entry) = (entry.referenced, &entry.value);
        let modes = modes(entry, &place, problems);
        let Some(namespace) = problems.required(&entry.namespace, at, &place, "namespace", values::label)
        else {
            continue;
        };
        let name = problems.optional(&entry.name, &place, "name", values::name);
        let said = PeerAuthentication {
            key: PolicyKey {
                namespace: namespace.clone(),
                name: name.unwrap_or_else(|| UNNAMED.into()),
            },
            ..modes
        };
        let in_root = namespace == globals.root_namespace;
        let selector_place = place.field("selector");
        let covered_twice = match &entry.selector {
            Some(selector) if in_root => {
                let message = "is ignored in the root namespace: move this to the namespace of the workloads";
                problems.add(selector.referenced, &selector_place, message);
                None
            }
            Some(selector) => {
                let pods = selected(selector, Some(&namespace), pods, &selector_place, problems);
                cover(pods, &said, &mut read.workloads)
            }
            None if in_root => mesh.replace(said).map(|_| "the mesh".to_owned()),
            None => {
                let other = read.namespaces.insert(namespace.clone(), said);
                other.map(|_| format!("namespace {namespace}"))
            }
        };
        if let Some(covered) = covered_twice {
            problems.add(
                at,
                &place,
                format!("{covered} has two peerAuthentications: remove one"),
            );
        }
    }
    read.mesh = mesh.unwrap_or_default();
    read
}

/// The same, of the PeerAuthentications among the manifests. A file has no ages, so there may be only one for each.
pub(super) fn of_manifests(
    objects: &Objects,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    read: &mut PeerAuthentications,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for (reference, object) in objects.of(Kind::PeerAuthentication) {
        let mut reader = Reader::new(reference.clone(), diagnostics);
        let (said, selector) = peer_authentication(object, &mut reader);
        let namespace = said.key.namespace.clone();
        let covered_twice = match selector {
            Selector::Labels(labels) => {
                let pods = pods.iter_mut();
                let selects =
                    |pod: &&mut Pod<'_>| pod.workload.namespace == namespace && pod.has_labels(&labels);
                cover(pods.filter(selects).collect(), &said, &mut read.workloads)
            }
            _ if namespace == globals.root_namespace => {
                let before = std::mem::replace(&mut read.mesh, said);
                (before != PeerAuthentication::default()).then(|| "the mesh".to_owned())
            }
            _ => {
                let other = read.namespaces.insert(namespace.clone(), said);
                other.map(|_| format!("namespace {namespace}"))
            }
        };
        if let Some(covered) = covered_twice {
            let message = format!("{covered} has two peerAuthentications: remove one");
            reader.tell(Severity::Error, "Twice", message);
        }
    }
}

/// Notes the modes of the pods that a selector selected, and returns one that had some already. (Istio takes the older
/// of two; a file has no ages, so there may be only one.)
fn cover(
    pods: Vec<&mut Pod<'_>>,
    modes: &PeerAuthentication,
    workloads: &mut FxHashMap<Arc<str>, PeerAuthentication>,
) -> Option<String> {
    let mut twice = None;
    for pod in pods {
        if workloads
            .insert(pod.workload.uid.clone(), modes.clone())
            .is_some()
        {
            twice = Some(format!("workload {}", pod.workload.namespaced_name()));
        }
    }
    twice
}

/// Without a name.
fn modes(entry: &PeerAuthenticationEntry, place: &Place<'_>, problems: &mut Problems) -> PeerAuthentication {
    let mode = entry.mode.as_ref();
    PeerAuthentication {
        key: PolicyKey::default(),
        mode: mode.and_then(|mode| self::mode(mode, &place.field("mode"), problems)),
        ports: port_modes(entry, &place.field("portLevelMtls"), problems),
    }
}

fn port_modes(
    entry: &PeerAuthenticationEntry,
    place: &Place<'_>,
    problems: &mut Problems,
) -> BTreeMap<u16, MtlsMode> {
    let mut modes = BTreeMap::new();
    for (port, text) in entry.port_level_mtls.iter().flatten() {
        let place = place.field(port);
        let port = values::port(port).map_err(|message| problems.add(text.referenced, &place, message));
        let mode = mode(text, &place, problems);
        if let (Ok(port), Some(mode)) = (port, mode) {
            modes.insert(port, mode);
        }
    }
    modes
}

/// DISABLE is legal, but there is no such thing in a mesh without proxies in its pods.
fn mode(text: &Text, place: &Place<'_>, problems: &mut Problems) -> Option<MtlsMode> {
    if text.value == "DISABLE" {
        let message = "is ignored, as if it were UNSET: write PERMISSIVE to take plaintext as well";
        problems.warn(text.referenced, place, message);
    }
    problems.read(text, place, values::mtls_mode).flatten()
}

//! PeerAuthentications: whether plaintext is taken, by the mesh, by a namespace, by the workloads that one selects.

use super::{
    namespace::{Pass, selects_nothing},
    service_entries::since,
};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{ObjectRef, Selector, Severity, peer_authentication},
    mesh::PeerAuthentication,
};

/// Reads the namespace's, the oldest first: of two that cover the same it counts, as in Istio.
pub(super) fn peer_authentications(pass: &mut Pass<'_>) {
    let mut all: Vec<_> = pass.objects.of_kind(Kind::PeerAuthentication).collect();
    all.sort_by_key(|(name, object)| (since(&object.metadata), *name));
    for (_, object) in all {
        let mut reader = pass.reader(Kind::PeerAuthentication, &object.metadata);
        let (said, selector) = peer_authentication(object, &mut reader);
        match selector {
            Selector::Labels(labels) => {
                let selected = pass.drafts.select(&labels);
                if selected.is_empty() {
                    let object = ObjectRef::new(Kind::PeerAuthentication, &object.metadata);
                    selects_nothing(object, &mut pass.unit);
                }
                for at in selected {
                    let uid = pass.drafts.all[at].workload.uid.clone();
                    let modes = &mut pass.unit.workload_peer_authentications;
                    modes.entry(uid).or_insert_with(|| said.clone());
                }
            }
            Selector::Everything | Selector::Unreadable => whole_namespace(object, said, pass),
        }
    }
}

fn whole_namespace(object: &Custom, said: PeerAuthentication, pass: &mut Pass<'_>) {
    if let Some(older) = &pass.unit.peer_authentication {
        let message = format!(
            "{} covers the same and is older, so that it counts: remove one",
            older.key
        );
        let mut reader = pass.reader(Kind::PeerAuthentication, &object.metadata);
        reader.tell(Severity::Warning, "Ignored", message);
        return;
    }
    pass.unit.peer_authentication = Some(said);
}

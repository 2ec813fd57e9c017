//! RequestAuthentications of a namespace, the workloads that they are for, and policies that ask for tokens nobody believes.

use std::sync::Arc;

use super::{
    drafts::Draft,
    namespace::{Pass, selects_nothing},
};
use crate::{
    cluster::objects::Kind,
    manifests::{Authentication, Reader, Severity, authentication, needs_token, policy},
    mesh::{Action, PolicyKey},
};

/// Reads them, and notes at workloads behind a waypoint which are for them.
pub(super) fn authentications(pass: &mut Pass<'_>) {
    for (_, object) in pass.objects.of_kind(Kind::RequestAuthentication) {
        let mut reader = pass.reader(Kind::RequestAuthentication, &object.metadata);
        let read = authentication(object, &mut reader);
        pass.unit.authentications.push(read.value.clone());
        pass.authentications.push(read);
    }
    nobody_selected(pass);
    for at in 0..pass.drafts.all.len() {
        if pass.drafts.all[at].workload.waypoint.is_some() {
            let keys: Vec<_> = covering(pass, &pass.drafts.all[at]).cloned().collect();
            pass.drafts.all[at].workload.authentications = keys;
        }
    }
    tell_tokens(pass);
}

/// Those that are for a workload: that select it, its namespace's and the mesh's.
pub(super) fn covering<'p>(pass: &'p Pass<'_>, draft: &'p Draft<'_>) -> impl Iterator<Item = &'p PolicyKey> {
    let covers = |it: &&Authentication| {
        let labels = it.selector.as_ref();
        !it.targets.any && labels.is_none_or(|labels| draft.has_labels(labels))
    };
    all(pass).filter(covers).map(|it| &it.value.key)
}

/// Those that can be for workloads here: the namespace's own and the root namespace's.
pub(super) fn all<'p>(pass: &'p Pass<'_>) -> impl Iterator<Item = &'p Authentication> {
    let root = pass.cx.shared.root().authentications.iter();
    let root = root.filter(|_| !pass.is_root());
    pass.authentications.iter().chain(root)
}

fn nobody_selected(pass: &mut Pass<'_>) {
    if pass.is_root() {
        return;
    }
    let selects = |it: &&Authentication| {
        it.selector
            .as_ref()
            .is_some_and(|labels| pass.drafts.select(labels).is_empty())
    };
    let nobody: Vec<_> = pass
        .authentications
        .iter()
        .filter(selects)
        .map(|it| it.object.clone())
        .collect();
    for object in nobody {
        selects_nothing(object, &mut pass.unit);
    }
}

/// A policy that asks for tokens where nobody says whose are believed matches nothing.
fn tell_tokens(pass: &mut Pass<'_>) {
    let alone =
        |read: &&policy::Read| needs_token(&read.policy) && !all(pass).any(|it| helps(pass, it, read));
    let told: Vec<_> = pass
        .policies
        .iter()
        .filter(alone)
        .map(|read| (read.object.clone(), read.policy.action))
        .collect();
    for (object, action) in told {
        let effect = match action {
            Action::Allow => ", so that it allows nobody by them",
            Action::Deny | Action::Audit => ", so that it matches nobody by them",
        };
        let message = format!(
            "spec.rules: asks what a token says, and no RequestAuthentication says whose tokens are believed here{effect}: \
             add one"
        );
        Reader::new(object, &mut pass.unit.diagnostics).tell(
            Severity::Warning,
            "NoRequestAuthentication",
            message,
        );
    }
}

/// Whether both may be about the same requests.
fn helps(pass: &Pass<'_>, it: &Authentication, read: &policy::Read) -> bool {
    match (&it.selector, &read.selector) {
        (Some(a), Some(b)) if !it.targets.any => {
            let both = |at: &usize| pass.drafts.all[*at].has_labels(b);
            a == b || pass.drafts.select(a).iter().any(both)
        }
        _ => true,
    }
}

/// For keeping each once, in order.
pub(super) fn push_new(keys: &mut Vec<PolicyKey>, key: &PolicyKey) {
    if !keys.contains(key) {
        keys.push(PolicyKey {
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
        });
    }
}

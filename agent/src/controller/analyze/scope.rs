//! Says softly what some files cannot know: whether what they do not have is there all the same. And what is no trouble once
//! everything is looked at.

use super::{
    Scope,
    codes::{Missing, code},
    view::{View, selector},
};
use crate::{
    cluster::objects::Kind,
    controller::compile::{Diagnostic, Severity},
};

pub(super) fn soften(view: &View<'_>, scope: Scope, found: &mut [Diagnostic]) {
    for diagnostic in found {
        if diagnostic.reason == "NeedsWaypoint" && has_waypoint(view, diagnostic) {
            diagnostic.severity = Severity::Info;
        }
        if scope == Scope::Files
            && let Some(missing) = code(diagnostic.reason).and_then(|it| it.missing)
        {
            among_files(view, missing, diagnostic);
        }
    }
}

/// Whether all that a policy covers is behind a waypoint already.
fn has_waypoint(view: &View<'_>, diagnostic: &Diagnostic) -> bool {
    let object = &diagnostic.object;
    if object.kind != Kind::AuthorizationPolicy {
        return false;
    }
    let is_it = |name: &str, namespace: &str| *name == object.name && *namespace == object.namespace;
    let found = view
        .customs(object.kind)
        .find(|(it, _)| is_it(&it.name, &it.namespace));
    let Some((_, policy)) = found else { return false };
    let labels = selector(&policy.spec);
    let covered = view
        .within_reach(&object.namespace)
        .filter(|member| member.has(&labels));
    let mut covered = covered.peekable();
    covered.peek().is_some() && covered.all(|member| view.is_bound(member.workload))
}

/// With none of its kind among the files, they are not about such things at all.
fn among_files(view: &View<'_>, missing: Missing, diagnostic: &mut Diagnostic) {
    let object = &diagnostic.object;
    let namespace = match object.kind {
        Kind::Namespace => &object.name,
        _ => &object.namespace,
    };
    let kinds: &[Kind] = match missing {
        Missing::Workload => &[Kind::Pod, Kind::WorkloadEntry],
        Missing::Service => &[Kind::Service, Kind::ServiceEntry],
        Missing::Waypoint => &[Kind::Gateway],
        Missing::Status => &[],
        Missing::Label => &[Kind::Namespace],
        Missing::Subset => &[Kind::DestinationRule],
    };
    let softest = match view.has_any(namespace, kinds) {
        true => Severity::Warning,
        false => Severity::Info,
    };
    diagnostic.severity = diagnostic.severity.max(softest);
    if softest == Severity::Info {
        diagnostic.message.push_str(match missing {
            Missing::Status => "",
            Missing::Label => " (whether there is one, these files do not say)",
            _ => " (not among these files)",
        });
    }
}

//! Policies that ask for what nobody can tell them, or that reach further than their namespace.

use serde_json::Value;

use super::view::{Labels, View, labels_of, list, selector, tell, text};
use crate::{
    cluster::objects::{Custom, Kind},
    controller::compile::{Diagnostic, ObjectRef, Severity},
};

pub(super) fn check(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    for (object, policy) in view.customs(Kind::AuthorizationPolicy) {
        mesh_wide(view, &object, policy, found);
        without_tokens(view, &object, policy, found);
        selects_nobody(view, &object, policy, found);
    }
    for kind in [Kind::PeerAuthentication, Kind::RequestAuthentication] {
        for (object, it) in view.customs(kind) {
            mesh_wide(view, &object, it, found);
        }
    }
    for (object, it) in view.customs(Kind::RequestAuthentication) {
        optional_tokens(view, &object, it, found);
        for_a_waypoint(view, &object, it, found);
    }
}

fn is_targeted(spec: &Value) -> bool {
    ["targetRefs", "targetRef"]
        .iter()
        .any(|field| spec.get(field).is_some_and(|it| !it.is_null()))
}

/// What `targetRefs` name: kind and name.
fn targets(spec: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = list(spec, "targetRefs").iter().chain(spec.get("targetRef"));
    all.filter_map(|it| Some((text(it, "kind")?, text(it, "name")?)))
}

fn mesh_wide(view: &View<'_>, object: &ObjectRef, it: &Custom, found: &mut Vec<Diagnostic>) {
    let root = &view.settings.root_namespace;
    let (whole, targeted) = (selector(&it.spec).is_empty(), is_targeted(&it.spec));
    if *object.namespace != **root || targeted {
        return;
    }
    let whom = match whole {
        true => "everything in the mesh",
        false => "workloads of every namespace that its selector selects",
    };
    let message = format!("metadata.namespace: {root} is the root namespace: this is for {whom}");
    tell(found, object, Severity::Info, "MeshWide", message);
}

/// The root namespace's selectors look into every namespace, which `compile` sees one by one.
fn selects_nobody(view: &View<'_>, object: &ObjectRef, it: &Custom, found: &mut Vec<Diagnostic>) {
    let labels = selector(&it.spec);
    let is_root = *object.namespace == *view.settings.root_namespace;
    if !is_root || labels.is_empty() || is_targeted(&it.spec) {
        return;
    }
    if !view
        .within_reach(&object.namespace)
        .any(|member| member.has(&labels))
    {
        let message = "spec.selector: selects no workload of any namespace: compare it with the pods' labels";
        tell(found, object, Severity::Warning, "SelectsNothing", message);
    }
}

/// The first field of a policy that asks for a token.
fn asks_for_token(spec: &Value) -> Option<String> {
    const SOURCE: [&str; 2] = ["requestPrincipals", "notRequestPrincipals"];
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        for (j, from) in list(rule, "from").iter().enumerate() {
            let source = from.get("source");
            let named = |field: &&&str| source.is_some_and(|it| !list(it, field).is_empty());
            if let Some(field) = SOURCE.iter().find(named) {
                return Some(format!("spec.rules[{i}].from[{j}].source.{field}"));
            }
        }
        for (j, when) in list(rule, "when").iter().enumerate() {
            if text(when, "key").is_some_and(|key| key.starts_with("request.auth.")) {
                return Some(format!("spec.rules[{i}].when[{j}].key"));
            }
        }
    }
    None
}

fn without_tokens(view: &View<'_>, object: &ObjectRef, policy: &Custom, found: &mut Vec<Diagnostic>) {
    let Some(field) = asks_for_token(&policy.spec) else {
        return;
    };
    if has_tokens(view, object, &policy.spec) {
        return;
    }
    let effect = match text(&policy.spec, "action") {
        None | Some("ALLOW") => "no request satisfies this, so that it lets nobody in",
        Some("DENY") => "every request is without, also one that brings a token",
        Some(_) => "it never holds",
    };
    let message = format!(
        "{field}: asks for a token, and no RequestAuthentication covers the same workloads, so that nobody checks tokens and \
         {effect}: add one for the issuer"
    );
    tell(
        found,
        object,
        Severity::Warning,
        "NoRequestAuthentication",
        message,
    );
}

/// Whether somebody checks the tokens of what a policy covers; with workloads that are there, of each of them.
fn has_tokens(view: &View<'_>, object: &ObjectRef, spec: &Value) -> bool {
    let root = &view.settings.root_namespace;
    let authentications: Vec<_> = view
        .customs(Kind::RequestAuthentication)
        .filter(|(it, _)| it.namespace == object.namespace || *it.namespace == **root)
        .map(|(_, it)| &it.spec)
        .collect();
    let targeted = is_targeted(spec);
    let everybody = |it: &&Value| !is_targeted(it) && selector(it).is_empty();
    if authentications.iter().any(everybody) {
        return true;
    }
    if targeted {
        let wanted: Vec<_> = targets(spec).collect();
        let same = |it: &&&Value| targets(it).any(|target| wanted.contains(&target));
        // One that selects workloads may select those of the service: in doubt nothing is said.
        return authentications.iter().any(|it| same(&it) || !is_targeted(it));
    }
    let labels = selector(spec);
    let selectors: Vec<_> = authentications
        .iter()
        .filter(|it| !is_targeted(it))
        .map(|it| selector(it))
        .collect();
    let mut covered = view
        .within_reach(&object.namespace)
        .filter(|member| member.has(&labels))
        .peekable();
    if covered.peek().is_some() {
        return covered.all(|member| selectors.iter().any(|it| member.has(it)));
    }
    // Without workloads: a selector that asks for no more than the policy's.
    selectors.iter().any(|it| is_part_of(it, &labels))
}

fn is_part_of(part: &Labels, whole: &Labels) -> bool {
    part.iter().all(|(key, value)| whole.get(key) == Some(value))
}

/// A RequestAuthentication refuses bad tokens, not those who bring none.
fn optional_tokens(view: &View<'_>, object: &ObjectRef, it: &Custom, found: &mut Vec<Diagnostic>) {
    let is_root = *object.namespace == *view.settings.root_namespace;
    let asks = view
        .customs(Kind::AuthorizationPolicy)
        .filter(|(policy, _)| is_root || policy.namespace == object.namespace)
        .any(|(_, policy)| asks_for_token(&policy.spec).is_some());
    if asks || list(&it.spec, "jwtRules").is_empty() {
        return;
    }
    let message = "spec.jwtRules: a request without a token passes: to ask for one, add an AuthorizationPolicy with \
                   requestPrincipals";
    tell(found, object, Severity::Info, "TokensOptional", message);
}

/// Only waypoints read tokens.
fn for_a_waypoint(view: &View<'_>, object: &ObjectRef, it: &Custom, found: &mut Vec<Diagnostic>) {
    if is_targeted(&it.spec) {
        return;
    }
    let labels = labels_of(it.spec.get("selector").and_then(|it| it.get("matchLabels")));
    let mut covered = view
        .within_reach(&object.namespace)
        .filter(|member| member.has(&labels));
    if let Some(member) = covered.find(|member| !view.is_bound(member.workload)) {
        let workload = member.workload;
        let message = format!(
            "spec: only a waypoint reads tokens, and nothing that is sent to {}/{} comes through one: label its service, or \
             the namespace, istio.io/use-waypoint",
            workload.namespace, workload.name
        );
        tell(found, object, Severity::Warning, "NeedsWaypoint", message);
    }
}

//! PURE. What is wrong with a set of objects, or will not do what it seems to: everything that `compile` says of single objects,
//! and what only shows when they are looked at together. Called by `weft analyze`, with a whole cluster or with some files.
//!
//! Some files are not a cluster: what one of them names and no other has may well be there. [`Scope::Files`] says such things
//! more softly.

mod codes;
mod enrolment;
mod policies;
mod scope;
mod traffic;
mod view;

#[cfg(test)]
mod tests;

pub use codes::{CODES, Code, Missing, code};

use std::collections::BTreeSet;

use super::compile::{Diagnostic, ObjectRef, Resources, Settings, Severity, compile};
use crate::cluster::objects::Object;
use view::View;

/// What the objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that there are.
    Cluster,
    /// Some.
    Files,
}

/// What is wrong with these objects, in their order, the worst of each first.
pub fn analyze(objects: &[Object], settings: &Settings, scope: Scope) -> Vec<Diagnostic> {
    let resources = Resources::new(objects.iter().cloned());
    let compiled = compile(&resources, settings);
    let view = View::new(objects, &compiled.parts, settings);
    let mut found = Vec::new();
    for check in CHECKS {
        check(&view, &mut found);
    }
    let told: BTreeSet<_> = found.iter().map(|it| (it.object.clone(), it.reason)).collect();
    let more = compiled.diagnostics.into_iter();
    found.extend(more.filter(|it| !is_told(it, &told)));
    scope::soften(&view, scope, &mut found);
    found.sort();
    found.dedup();
    found
}

/// Whether a check has said it already, with more in view. Of a route that `compile` finds no waypoint for, a check says which
/// parent or host has none.
fn is_told(it: &Diagnostic, told: &BTreeSet<(ObjectRef, &str)>) -> bool {
    let as_told = match it.reason {
        // Each rule of a policy has its own.
        UNSEEN => return false,
        "NoWaypoint" if it.severity == Severity::Warning => UNSEEN,
        reason => reason,
    };
    told.contains(&(it.object.clone(), as_told))
}

/// What only a waypoint sees.
const UNSEEN: &str = "NeedsWaypoint";

type Check = fn(&View<'_>, &mut Vec<Diagnostic>);

const CHECKS: [Check; 3] = [enrolment::check, policies::check, traffic::check];

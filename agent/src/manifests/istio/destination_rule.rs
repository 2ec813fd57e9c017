//! DestinationRule: the subsets of a service, and how endpoints are chosen and used.

use std::{collections::BTreeMap, sync::Arc};

use super::traffic::{Partial, partial};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{Labels, ObjectRef, Reader, full_hostname, since, there, words},
    mesh::{
        Place,
        http::{HostMatch, Subset, Traffic},
    },
};

/// One, read.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// The object.
    pub object: ObjectRef,
    /// When it was made.
    pub since: i64,
    /// What it is about.
    pub host: HostMatch,
    policy: Option<Partial>,
    subsets: Vec<(SubsetOf, Partial)>,
}

/// Some of a service's endpoints: those that have these labels.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetOf {
    /// Its name.
    pub name: Arc<str>,
    /// Without any: all.
    pub labels: Labels,
    /// Whose it is.
    pub object: ObjectRef,
}

/// What is said of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfService {
    /// How its endpoints are chosen and used.
    pub traffic: Traffic,
    /// Which are of which subset.
    pub subsets: Vec<SubsetOf>,
    /// Whether its endpoints expect what is not done, so that nothing may be sent to them.
    pub refused: bool,
}

/// Reads one; none where nobody knows what it is about.
pub fn destination_rule(
    object: &Custom,
    cluster_domain: &str,
    reader: &mut Reader<'_>,
) -> Option<DestinationRule> {
    let reference = ObjectRef::new(Kind::DestinationRule, &object.metadata);
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    reader.fields(spec, &place)?;
    let host = reader.required(spec, "host", &place, |text| {
        words::host(&full_hostname(text, &reference.namespace, cluster_domain))
    })?;
    for field in ["exportTo", "workloadSelector"] {
        if there(spec, field).is_some_and(|it| *it != serde_json::json!(["*"])) {
            let message = "is not asked: every waypoint sees it";
            reader.warn(&place.field(field), "NotSupported", message);
        }
    }
    let policy = there(spec, "trafficPolicy").map(|_| partial(spec, &place, reader));
    let written = reader.list(spec, "subsets", &place);
    let place = place.field("subsets");
    let mut subsets = Vec::new();
    for (i, value) in written.iter().enumerate() {
        let place = place.index(i);
        let name = reader.required(value, "name", &place, words::text);
        let labels = match there(value, "labels") {
            None => Some(Labels::new()),
            Some(labels) => reader.labels(labels, &place.field("labels")),
        };
        let policy = partial(value, &place, reader);
        if let Some((name, labels)) = name.zip(labels) {
            let object = reference.clone();
            subsets.push((SubsetOf { name, labels, object }, policy));
        }
    }
    Some(DestinationRule {
        since: since(&object.metadata),
        object: reference,
        host,
        policy,
        subsets,
    })
}

impl DestinationRule {
    /// How well it fits a host; none where it is not about it.
    fn fits(&self, hostname: &str) -> Option<usize> {
        match &self.host {
            HostMatch::Exact(host) => (**host == *hostname).then_some(usize::MAX),
            HostMatch::Under(under) => hostname.ends_with(&**under).then_some(under.len()),
            HostMatch::Any => Some(0),
        }
    }
}

/// What the rules of one namespace say of a service: those whose host fits best, and of them the oldest for what only one can say.
/// None where none is about it.
pub fn merged_traffic<'r>(
    hostname: &str,
    rules: impl IntoIterator<Item = &'r DestinationRule>,
) -> Option<OfService> {
    let fits = rules
        .into_iter()
        .filter_map(|rule| Some((rule.fits(hostname)?, rule)));
    let fits: Vec<_> = fits.collect();
    let best = fits.iter().map(|(fit, _)| *fit).max()?;
    let mut fits: Vec<_> = fits.into_iter().filter(|(fit, _)| *fit == best).collect();
    fits.sort_by_key(|(_, rule)| (rule.since, &rule.object.name));
    let rules = || fits.iter().map(|(_, rule)| *rule);
    let policy = rules().find_map(|rule| rule.policy.clone()).unwrap_or_default();
    let mut of_service = OfService {
        refused: policy.wants_tls,
        ..OfService::default()
    };
    let mut subsets = BTreeMap::new();
    for (subset, of_subset) in rules().flat_map(|rule| &rule.subsets) {
        if subsets.contains_key(&subset.name) {
            continue;
        }
        let merged = of_subset.over(&policy);
        of_service.refused |= merged.wants_tls;
        let read = Subset {
            policy: merged.whole(),
            ports: merged.whole_ports(),
        };
        subsets.insert(subset.name.clone(), read);
        of_service.subsets.push(subset.clone());
    }
    of_service.traffic = Traffic {
        policy: policy.whole(),
        ports: policy.whole_ports(),
        subsets,
    };
    Some(of_service)
}

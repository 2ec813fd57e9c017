//! The label set of a connection's series: the fields of a [`Flow`] that Istio's labels are made of.
//!
//! A label set holds references, not texts: to make one and to look it up costs a few reference counts and a hash. The
//! labels are written out when Prometheus asks. Labels name the Deployment, never the pod, so that series do not grow
//! with every rollout.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::mesh::{Direction, Flow, Security, Service, SpiffeId, Workload};

/// What a label says where nothing is known.
pub(super) const UNKNOWN: &str = "unknown";
/// `response_flags` of a connection with which nothing is wrong.
pub(super) const NO_FLAGS: &str = "-";
/// Istio's `reporter` of what counts between two agents.
pub(super) const AT_WAYPOINT: &str = "waypoint";

/// The labels of one series. Two are equal when their texts are.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    direction: Direction,
    reporter: &'static str,
    source: Option<Arc<Workload>>,
    source_identity: Option<SpiffeId>,
    destination: Option<Arc<Workload>>,
    destination_identity: Option<SpiffeId>,
    service: Option<Arc<Service>>,
    security: Security,
    response_flags: &'static str,
}

/// The texts that tell one workload's series from another's.
pub(super) type WorkloadLabels<'a> = [&'a str; 5];

/// The labels of a workload: name, namespace, canonical name and revision, cluster.
pub(super) fn workload_labels(workload: &Workload) -> WorkloadLabels<'_> {
    [
        &workload.workload_name,
        &workload.namespace,
        &workload.canonical_name,
        &workload.canonical_revision,
        &workload.cluster,
    ]
    .map(|text| or_unknown(text))
}

impl Labels {
    /// The labels of `flow`, with nothing wrong so far.
    pub(super) fn of(flow: &Flow, reporter: &'static str) -> Self {
        Self {
            direction: flow.direction,
            reporter,
            source: flow.source.workload.clone(),
            source_identity: flow
                .source
                .identity
                .clone()
                .filter(|_| flow.security.has_identities()),
            destination: flow.destination.workload.clone(),
            destination_identity: flow
                .destination
                .identity
                .clone()
                .filter(|_| flow.security.has_identities()),
            service: flow.service.clone(),
            security: flow.security,
            response_flags: NO_FLAGS,
        }
    }

    /// The same with `response_flags`.
    pub(super) fn with_flags(self, response_flags: &'static str) -> Self {
        Self {
            response_flags,
            ..self
        }
    }

    /// What remains when there are too many series to tell them apart.
    pub(super) fn anonymous(self) -> Self {
        Self {
            source: None,
            source_identity: None,
            destination: None,
            destination_identity: None,
            service: None,
            ..self
        }
    }

    /// Which side reports.
    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// `-`, or what was wrong.
    pub(super) fn response_flags(&self) -> &'static str {
        self.response_flags
    }

    /// Whether `live` holds for both ends, as far as they are known.
    pub(super) fn both_ends(&self, live: impl Fn(&WorkloadLabels<'_>) -> bool) -> bool {
        let ends = [&self.source, &self.destination];
        ends.into_iter()
            .flatten()
            .all(|workload| live(&workload_labels(workload)))
    }

    /// Everything that the labels' texts are made of; one process reports as one for each direction.
    fn texts(&self) -> impl Hash + PartialEq {
        ((self.direction, self.security, self.response_flags), self.ends())
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            source: end(self.source.as_deref()),
            source_principal: principal(self.source_identity.as_ref()),
            destination: end(self.destination.as_deref()),
            destination_principal: principal(self.destination_identity.as_ref()),
            service: service(self.service.as_deref()),
        }
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        self.texts() == other.texts()
    }
}

impl Eq for Labels {}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.texts().hash(state);
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        label("reporter", self.reporter)?;
        self.ends().encode(&mut label)?;
        label("request_protocol", "tcp")?;
        label("response_flags", self.response_flags)?;
        label("connection_security_policy", self.security.label())
    }
}

/// The labels that say who the ends are, as texts: the same for connections and for requests.
#[derive(Clone, Copy, PartialEq, Hash)]
pub(super) struct Ends<'a> {
    pub(super) source: WorkloadLabels<'a>,
    pub(super) source_principal: &'a str,
    pub(super) destination: WorkloadLabels<'a>,
    pub(super) destination_principal: &'a str,
    pub(super) service: [&'a str; 3],
}

impl Ends<'_> {
    pub(super) fn encode(&self, label: &mut impl FnMut(&str, &str) -> fmt::Result) -> fmt::Result {
        let [workload, namespace, name, revision, cluster] = self.source;
        label("source_workload", workload)?;
        label("source_canonical_service", name)?;
        label("source_canonical_revision", revision)?;
        label("source_workload_namespace", namespace)?;
        label("source_principal", self.source_principal)?;
        label("source_app", name)?;
        label("source_version", revision)?;
        label("source_cluster", cluster)?;
        let [hostname, service_namespace, service_name] = self.service;
        label("destination_service", hostname)?;
        label("destination_service_namespace", service_namespace)?;
        label("destination_service_name", service_name)?;
        let [workload, namespace, name, revision, cluster] = self.destination;
        label("destination_workload", workload)?;
        label("destination_canonical_service", name)?;
        label("destination_canonical_revision", revision)?;
        label("destination_workload_namespace", namespace)?;
        label("destination_principal", self.destination_principal)?;
        label("destination_app", name)?;
        label("destination_version", revision)?;
        label("destination_cluster", cluster)
    }
}

pub(super) fn end(workload: Option<&Workload>) -> WorkloadLabels<'_> {
    workload.map_or([UNKNOWN; 5], workload_labels)
}

pub(super) fn principal(identity: Option<&SpiffeId>) -> &str {
    identity.map_or(UNKNOWN, SpiffeId::as_str)
}

pub(super) fn service(service: Option<&Service>) -> [&str; 3] {
    service.map_or([UNKNOWN; 3], |service| {
        [&service.key.hostname, &service.key.namespace, &service.name].map(|text| or_unknown(text))
    })
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}

//! What may be written in a mesh file: the shape, and nothing of the meaning (`compile`, `policies`, `rules`).
//!
//! Every value is kept as the text that was written, with its position: so `compile` can say what is wrong with all of
//! them, and where. Names follow Istio's and Kubernetes' where those have one.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Spanned, localizer::Localizer};

use super::{LARGEST_FILE, Problem, position};

/// How many nodes all aliases of a file may stand for.
const LARGEST_ALIASES: usize = 100_000;

/// A value as it was written, and where.
pub(super) type Text = Spanned<String>;
/// A list of them.
pub(super) type Texts = Spanned<Vec<Text>>;
/// Labels, or a selector for labels.
pub(super) type Labels = BTreeMap<String, Text>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    pub(super) trust_domain: Option<Text>,
    pub(super) cluster: Option<Text>,
    pub(super) cluster_domain: Option<Text>,
    pub(super) root_namespace: Option<Text>,
    pub(super) cluster_cidrs: Option<Vec<Text>>,
    pub(super) same_node: Option<Text>,
    pub(super) namespaces: Option<Vec<Spanned<NamespaceEntry>>>,
    pub(super) workloads: Option<Vec<Spanned<WorkloadEntry>>>,
    pub(super) services: Option<Vec<Spanned<ServiceEntry>>>,
    pub(super) policies: Option<Vec<Spanned<PolicyEntry>>>,
    pub(super) peer_authentications: Option<Vec<Spanned<PeerAuthenticationEntry>>>,
    /// Files and folders with objects of Istio and the Gateway API, from the mesh file's own folder.
    pub(super) manifests: Option<Vec<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamespaceEntry {
    pub(super) name: Option<Text>,
    pub(super) same_node: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WorkloadEntry {
    pub(super) name: Option<Text>,
    pub(super) namespace: Option<Text>,
    pub(super) service_account: Option<Text>,
    pub(super) node: Option<Text>,
    pub(super) addresses: Option<Vec<Text>>,
    pub(super) tunnel_protocol: Option<Text>,
    pub(super) netns: Option<Text>,
    pub(super) dns_capture: Option<bool>,
    pub(super) labels: Option<Labels>,
    pub(super) workload_name: Option<Text>,
    pub(super) workload_type: Option<Text>,
    pub(super) canonical_name: Option<Text>,
    pub(super) canonical_revision: Option<Text>,
    pub(super) region: Option<Text>,
    pub(super) zone: Option<Text>,
    pub(super) subzone: Option<Text>,
    pub(super) healthy: Option<bool>,
    pub(super) network: Option<Text>,
    pub(super) capacity: Option<Text>,
    pub(super) host_network: Option<bool>,
    pub(super) native_tunnel: Option<bool>,
    pub(super) same_node: Option<Text>,
    pub(super) waypoint: Option<Spanned<WaypointEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServiceEntry {
    pub(super) name: Option<Text>,
    pub(super) namespace: Option<Text>,
    pub(super) hostname: Option<Text>,
    pub(super) vips: Option<Vec<Text>>,
    pub(super) ports: Option<Vec<Spanned<PortEntry>>>,
    pub(super) selector: Option<Spanned<Labels>>,
    pub(super) endpoints: Option<Vec<Text>>,
    pub(super) subject_alt_names: Option<Vec<Text>>,
    pub(super) waypoint: Option<Spanned<WaypointEntry>>,
    pub(super) load_balancing: Option<Spanned<LoadBalancingEntry>>,
    pub(super) traffic_distribution: Option<Text>,
    pub(super) internal_traffic_policy: Option<Text>,
    pub(super) publish_not_ready_addresses: Option<bool>,
    pub(super) ip_families: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancingEntry {
    pub(super) routing_preference: Option<Vec<Text>>,
    pub(super) mode: Option<Text>,
    pub(super) health_policy: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PortEntry {
    pub(super) port: Option<Text>,
    pub(super) target_port: Option<Text>,
    pub(super) app_protocol: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WaypointEntry {
    pub(super) service: Option<Text>,
    pub(super) address: Option<Text>,
    pub(super) port: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PolicyEntry {
    pub(super) name: Option<Text>,
    pub(super) namespace: Option<Text>,
    pub(super) action: Option<Text>,
    pub(super) selector: Option<Spanned<Labels>>,
    pub(super) target_refs: Option<Spanned<Vec<Spanned<TargetEntry>>>>,
    pub(super) dry_run: Option<bool>,
    pub(super) rules: Option<Vec<RuleEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TargetEntry {
    /// As in a manifest; its kinds have different names, so that nothing depends on it.
    #[serde(rename = "group")]
    pub(super) _group: Option<Text>,
    pub(super) kind: Option<Text>,
    pub(super) name: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuleEntry {
    pub(super) from: Option<Spanned<Vec<Spanned<SourceEntry>>>>,
    pub(super) to: Option<Spanned<Vec<Spanned<OperationEntry>>>>,
    pub(super) when: Option<Spanned<Vec<Spanned<ConditionEntry>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SourceEntry {
    pub(super) principals: Option<Texts>,
    pub(super) not_principals: Option<Texts>,
    pub(super) namespaces: Option<Texts>,
    pub(super) not_namespaces: Option<Texts>,
    pub(super) service_accounts: Option<Texts>,
    pub(super) not_service_accounts: Option<Texts>,
    pub(super) trust_domains: Option<Texts>,
    pub(super) not_trust_domains: Option<Texts>,
    pub(super) ip_blocks: Option<Texts>,
    pub(super) not_ip_blocks: Option<Texts>,
    pub(super) request_principals: Option<Texts>,
    pub(super) not_request_principals: Option<Texts>,
    pub(super) remote_ip_blocks: Option<Texts>,
    pub(super) not_remote_ip_blocks: Option<Texts>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OperationEntry {
    pub(super) ports: Option<Texts>,
    pub(super) not_ports: Option<Texts>,
    pub(super) hosts: Option<Texts>,
    pub(super) not_hosts: Option<Texts>,
    pub(super) methods: Option<Texts>,
    pub(super) not_methods: Option<Texts>,
    pub(super) paths: Option<Texts>,
    pub(super) not_paths: Option<Texts>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConditionEntry {
    pub(super) key: Option<Text>,
    pub(super) values: Option<Texts>,
    pub(super) not_values: Option<Texts>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerAuthenticationEntry {
    /// For people: log lines and `weft explain` say it.
    pub(super) name: Option<Text>,
    pub(super) namespace: Option<Text>,
    pub(super) selector: Option<Spanned<Labels>>,
    pub(super) mode: Option<Text>,
    pub(super) port_level_mtls: Option<BTreeMap<String, Text>>,
}

/// Reads the shape of a mesh file.
///
/// # Errors
/// The first place where the text is not YAML, or not of the shape: the parser cannot go on after it.
pub(super) fn read(text: &str) -> Result<Document, Problem> {
    if text.len() > LARGEST_FILE {
        return Err(whole_file(format!(
            "is larger than {} MiB, which is the limit",
            LARGEST_FILE >> 20
        )));
    }
    // A file that somebody is just about to write must not be taken for an empty mesh.
    if text.trim().is_empty() {
        return Err(whole_file(
            "is empty: for a mesh without workloads write `workloads: []`".into(),
        ));
    }
    serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error))
        .map_err(|err| problem(&err, text))
}

/// The file's size is the limit that counts: what fits into it may have as many nodes as it likes. But aliases make a
/// small file large, so they have a limit of their own; depth keeps the parser's.
pub(super) fn options(duplicate_keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    let budget = serde_saphyr::budget! { max_events: LARGEST_FILE, max_nodes: LARGEST_FILE };
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: LARGEST_ALIASES };
    serde_saphyr::options! { budget: budget, alias_limits: aliases, duplicate_keys: duplicate_keys, with_snippet: false }
}

fn whole_file(message: String) -> Problem {
    Problem {
        file: None,
        line: 0,
        column: 0,
        field: String::new(),
        message,
    }
}

fn problem(err: &Error, text: &str) -> Problem {
    let at = err.location().unwrap_or(Location::UNKNOWN);
    let formatter = serde_saphyr::DefaultMessageFormatter.with_localizer(&WithoutLocation);
    let message = match err {
        Error::Unexpected {
            expected: "sequence start",
            ..
        } => "must be a list".to_owned(),
        Error::Unexpected {
            expected: "mapping start",
            ..
        } => "must be a list of fields, `name: value`".to_owned(),
        Error::Unexpected {
            expected: "string scalar",
            ..
        } => "must be a single value".to_owned(),
        Error::DuplicateMappingKey { .. } => "is written twice: remove one of them".to_owned(),
        Error::MultipleDocuments { .. } => "a second document begins here (`---`): write one".to_owned(),
        _ => err.render_with_formatter(&formatter),
    };
    Problem {
        file: None,
        line: at.line(),
        column: at.column(),
        field: position::field_at(text, at),
        message,
    }
}

/// The parser's messages without their "at line 3, column 5", which a [`Problem`] prints in its own place.
struct WithoutLocation;

impl Localizer for WithoutLocation {
    fn attach_location<'a>(&self, base: Cow<'a, str>, _: Location) -> Cow<'a, str> {
        base
    }
}

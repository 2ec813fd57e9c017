//! What only a request has, in a policy's match (Istio's AuthorizationPolicy): the values.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mesh::StringMatch;

/// The fields of a [`crate::mesh::Match`] that an agent cannot see, for whoever can. Every field that is not empty must hold:
/// one of its values, and none of its `not_` twin's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "the names are Istio's; each pair is the values that match and those that must not"
)]
pub struct RequestMatch {
    /// Of the host without its port, whatever the case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<StringMatch>,
    /// Of the normalised path without its query.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<PathPattern>,
    /// `iss/sub` of the token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<StringMatch>,
    /// The client's address as X-Forwarded-For and trusted proxies say it; in the mesh, the client's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ips: Vec<IpNet>,
    /// `when`, as far as only a request has it. All must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// A path as policies name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathPattern {
    /// The whole, its beginning, its end, or anything.
    Text(StringMatch),
    /// With `{*}` for one element and `{**}` for any number of them.
    Template(Arc<str>),
}

/// An entry of `when`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// What is looked at.
    pub key: ConditionKey,
    /// One of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<StringMatch>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<StringMatch>,
}

/// What a condition looks at. What is not there is no value: `values` do not hold, `not_values` do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConditionKey {
    /// `request.headers[name]`, in lower case.
    Header(Arc<str>),
    /// `request.auth.principal`.
    Principal,
    /// `request.auth.audiences`: each of them is looked at.
    Audiences,
    /// `request.auth.presenter`: the token's `azp`.
    Presenter,
    /// `request.auth.claims[a][b]`: the way to it. Each element of a list is looked at, and each word of a claim that is a list
    /// in one text.
    Claim(Vec<Arc<str>>),
    /// `connection.sni`.
    Sni,
}

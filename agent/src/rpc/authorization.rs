//! L4 policies (`istio.security.Authorization`).

use bytes::Bytes;

/// One policy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Authorization {
    #[allow(missing_docs)]
    #[prost(string, tag = "1")]
    pub name: String,
    #[allow(missing_docs)]
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Which workloads it covers.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// What a match does.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// Any of them must match.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// Evaluated, not enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// What only some agents understand; see `feed::wds`.
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<super::workload::Extension>,
}

#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Scope {
    Global = 0,
    Namespace = 1,
    WorkloadSelector = 2,
}

#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Action {
    Allow = 0,
    Deny = 1,
}

/// All clauses must match.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rule {
    #[allow(missing_docs)]
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// Any match must match.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Clause {
    #[allow(missing_docs)]
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Every field that is not empty must match.
#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct Match {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Network>,
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Network>,
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Network>,
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Network>,
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// What only some agents understand; see `feed::wds`.
    #[prost(message, repeated, tag = "13")]
    pub extensions: Vec<super::workload::Extension>,
}

/// A network (`istio.security.Address`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Network {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// Bits of the prefix.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServiceAccountMatch {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// How a name is compared.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringMatch {
    #[allow(missing_docs)]
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum MatchType {
    #[prost(string, tag = "1")]
    Exact(String),
    #[prost(string, tag = "2")]
    Prefix(String),
    #[prost(string, tag = "3")]
    Suffix(String),
    #[prost(message, tag = "4")]
    Presence(()),
}

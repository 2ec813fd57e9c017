//! What the installation says of every waypoint.

use std::net::IpAddr;

use serde_json::{Map, Value};

/// The fields of a pod that an installation may set.
const POD_FIELDS: [&str; 5] = [
    "affinity",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "tolerations",
];

/// How waypoints are deployed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The image: the controller's own.
    pub image: String,
    /// `IfNotPresent`, `Always` or `Never`.
    pub pull_policy: String,
    /// host:port of the controller; none for the address of its Service.
    pub controller: Option<String>,
    /// The controller's namespace.
    pub namespace: String,
    /// The controller's Service.
    pub service: String,
    /// What the token is for with which a waypoint says who it is.
    pub audience: String,
    /// Pods of a waypoint whose Gateway says nothing.
    pub replicas: u32,
    /// `requests` and `limits` of a pod whose Gateway says nothing.
    pub resources: Value,
    /// Fields of pods: those of [`pod_fields`].
    pub pod: Map<String, Value>,
    /// Seconds that requests may go on after a pod was told to end.
    pub drain_timeout: u64,
    /// Where pods listen for scrapes and probes.
    pub listen_address: IpAddr,
    /// Arguments of `weft waypoint`: what the mesh is called.
    pub mesh: Vec<String>,
    /// Arguments of `weft waypoint`: what it logs.
    pub log: Vec<String>,
}

/// Reads fields of pods from JSON.
///
/// # Errors
/// When it is none, or has a field that is not the installation's to set.
pub fn pod_fields(text: &str) -> Result<Map<String, Value>, String> {
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match fields.keys().find(|field| !POD_FIELDS.contains(&field.as_str())) {
        Some(field) => Err(format!(
            "has a field {field}, and may have {}",
            POD_FIELDS.join(", ")
        )),
        None => Ok(fields),
    }
}

/// Reads a container's resources from JSON.
///
/// # Errors
/// When it is none, or has anything but `requests` and `limits`.
pub fn resources(text: &str) -> Result<Value, String> {
    let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for field in ["requests", "limits"] {
        let value = fields.entry(field).or_insert_with(|| Value::Object(Map::new()));
        if !value.is_object() {
            return Err(format!("{field} must be a list of fields"));
        }
    }
    match fields.len() {
        2 => Ok(Value::Object(fields)),
        _ => Err("may have requests and limits".to_owned()),
    }
}

//! The status: what one agent says about itself, as `weft status -o json` and the admin port's `/status` print it.
//!
//! Plain values with stable names, written by the agent and read by the command line, which may be of another version:
//! a field that is missing reads as empty, and one that is not known is ignored. Times are RFC 3339 in UTC, ages are
//! whole seconds, sizes are bytes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The most connections that a status lists; all are counted.
pub const MOST_CONNECTIONS_LISTED: usize = 1000;

/// Everything that `weft status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// weft's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// The node's name.
    pub node: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Whether new pods may count on the agent (`/healthz/ready`).
    pub ready: bool,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Threads that carry connections.
    pub workers: usize,
    /// The running mesh.
    pub mesh: MeshStatus,
    /// The eBPF programs.
    pub programs: Vec<ProgramStatus>,
    /// How many pods of this node should be captured.
    pub expected_pods: usize,
    /// How many are.
    pub captured_pods: usize,
    /// The pods of this node that should be captured.
    pub pods: Vec<PodStatus>,
    /// The certificates that the agent holds for its pods.
    pub certificates: Vec<CertificateStatus>,
    /// Whom certificates are believed from.
    pub trust: TrustStatus,
    /// The open connections.
    pub connections: ConnectionsStatus,
    /// The pairs of pods of this node that have talked.
    pub same_node: SameNodeStatus,
    /// Whether the container runtime tells of pods that start.
    pub nri: NriStatus,
    /// Whether pods that start are held until their capture.
    pub starting: StartingStatus,
}

impl Status {
    /// Whether all is as it should be: ready, every expected pod captured, none failed, and the newest mesh taken.
    pub fn healthy(&self) -> bool {
        let failed = |pod: &PodStatus| pod.state == PodState::Failed;
        self.ready
            && self.captured_pods >= self.expected_pods
            && !self.pods.iter().any(failed)
            && self.mesh.last_error.is_none()
    }
}

/// Whether the container runtime tells of pods that start, and waits until they are captured (NRI).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NriStatus {
    /// How things stand.
    pub state: NriState,
    /// The runtime's socket, as a path; empty where none is asked.
    pub socket: String,
    /// The runtime's name and version, while it is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How things stand with the container runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NriState {
    /// Nobody offers it on this node.
    Absent,
    /// It is there, and does not take us.
    Refused,
    /// It tells of every pod that starts.
    Connected,
    /// It is not asked.
    #[default]
    #[serde(other)]
    Off,
}

/// Whether the kernel refuses what pods dial while they start, until they are captured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StartingStatus {
    /// How things stand.
    pub state: StartingState,
    /// Why not all of them are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// From when on they are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StartingState {
    /// From their first instruction, for as long as the agent looks at the node's pods.
    Unseen,
    /// Once the agent has seen them: an app may be faster.
    Seen,
    /// They are not, or not all.
    Failed,
    /// Nobody asks for it: the pods are named by a file.
    #[default]
    #[serde(other)]
    Off,
}

/// Whom certificates are believed from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrustStatus {
    /// Roots; more than one while one is being replaced.
    pub roots: usize,
    /// Revocation lists.
    pub revocation_lists: usize,
    /// Tunnels that are open, either way.
    pub sessions: usize,
}

/// The mesh that is in force, and the last one that could not be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshStatus {
    /// Where it comes from: a file's path, or a controller's address.
    pub source: String,
    /// How many meshes this agent has taken; 0 before the first, and one more with every change.
    pub revision: u64,
    /// When it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_at: Option<String>,
    /// Seconds since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Workloads in it.
    pub workloads: usize,
    /// Services in it.
    pub services: usize,
    /// Policies in it.
    pub policies: usize,
    /// Why the newest mesh was not taken, until one is taken again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One eBPF program in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProgramStatus {
    /// Its name, for example `connect4`.
    pub name: String,
    /// The kernel's type, for example `cgroup_sock_addr`.
    pub kind: String,
    /// The cgroup or network namespace it is attached to; empty when it is not attached.
    pub attached_to: String,
    /// The kernel's id of it (`bpftool prog show id N`).
    pub id: u32,
}

/// One pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// The pod's name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, as a path.
    pub netns: String,
    /// Its SPIFFE identity.
    pub identity: String,
    /// How far its capture is.
    pub state: PodState,
    /// Why it is not captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far a pod's capture is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// Its connections are ours.
    Captured,
    /// Not yet. Until it is captured its traffic is not the mesh's: it goes as it would without weft.
    Pending,
    /// It could not be captured; the message says why.
    Failed,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Captured => "captured",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

/// One certificate. The key is never shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateStatus {
    /// Its SPIFFE identity.
    pub identity: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it was issued.
    pub issued_at: String,
    /// When it expires.
    pub expires_at: String,
    /// Seconds since it was issued.
    pub age_seconds: u64,
    /// Seconds until it expires; negative once it has.
    pub expires_in_seconds: i64,
}

impl CertificateStatus {
    /// The status of a certificate at `now`.
    pub fn new(
        identity: &str,
        serial: &str,
        issued_at: SystemTime,
        expires_at: SystemTime,
        now: SystemTime,
    ) -> Self {
        Self {
            identity: identity.to_owned(),
            serial: serial.to_owned(),
            issued_at: rfc3339(issued_at),
            expires_at: rfc3339(expires_at),
            age_seconds: seconds_from(issued_at, now).try_into().unwrap_or(0),
            expires_in_seconds: seconds_from(now, expires_at),
        }
    }
}

/// The open connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionsStatus {
    /// How many are open.
    pub open: usize,
    /// Some of them, at most [`MOST_CONNECTIONS_LISTED`].
    pub list: Vec<ConnectionStatus>,
}

/// The pairs of pods of this node that have talked: whether they go from app to app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SameNodeStatus {
    /// How many pairs there are.
    pub pairs: usize,
    /// How many of them go from app to app, all of them or to some of a service's endpoints.
    pub direct: usize,
    /// Some of them, at most [`MOST_PAIRS_LISTED`].
    pub list: Vec<PairStatus>,
}

/// A pod and what it has dialled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PairStatus {
    /// The uid of the workload that dials.
    pub source: String,
    /// The address that it dials: of a pod, or of a service.
    pub destination: String,
    /// The apps that it reaches directly.
    pub directly: Vec<String>,
    /// Why the others are reached through the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through_agent: Option<String>,
}

/// Pairs that a status lists.
pub const MOST_PAIRS_LISTED: usize = 1_000;

/// One open connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionStatus {
    /// `outbound` or `inbound`, seen from the pod of this node.
    pub direction: String,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// The address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// The service's hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The identity that the other side proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Seconds since it opened.
    pub open_seconds: u64,
    /// Bytes so far from client to server.
    pub request_bytes: u64,
    /// Bytes so far from server to client.
    pub response_bytes: u64,
}

/// `2026-08-20T11:05:09Z`. Outside of 1970 to 9999, which is what can be written, the nearest of these.
pub fn rfc3339(at: SystemTime) -> String {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let written = at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST);
    humantime::format_rfc3339_seconds(written).to_string()
}

/// Whole seconds from `start` to `end`; negative when `end` is before `start`.
fn seconds_from(start: SystemTime, end: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match end.duration_since(start) {
        Ok(after) => seconds(after),
        Err(before) => -seconds(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        let check = |seconds: u64, expect: &str| {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        };
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(1_787_223_909, "2026-08-20T11:05:09Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(253_402_300_799, "9999-12-31T23:59:59Z");
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00Z"
        );
    }

    #[test]
    fn a_certificate_from_the_future_and_an_expired_one() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = CertificateStatus::new("spiffe://x", "0a", at(100), at(200), at(50));
        assert_eq!(
            (certificate.age_seconds, certificate.expires_in_seconds),
            (0, 150)
        );
        let certificate = CertificateStatus::new("spiffe://x", "0a", at(100), at(200), at(250));
        assert_eq!(
            (certificate.age_seconds, certificate.expires_in_seconds),
            (150, -50)
        );
    }

    #[test]
    fn healthy_means_ready_all_captured_and_the_newest_mesh_taken() {
        let check = |ready, expected_pods, captured_pods, state, expect| {
            let pods = vec![PodStatus {
                state,
                ..PodStatus::default()
            }];
            let status = Status {
                ready,
                expected_pods,
                captured_pods,
                pods,
                ..Status::default()
            };
            assert_eq!(status.healthy(), expect, "{status:?}");
        };
        check(true, 1, 1, PodState::Captured, true);
        check(false, 1, 1, PodState::Captured, false);
        check(true, 2, 1, PodState::Captured, false);
        check(true, 0, 0, PodState::Failed, false);
        check(true, 1, 1, PodState::Unknown, true);
        let mesh = MeshStatus {
            last_error: Some("line 3".to_owned()),
            ..MeshStatus::default()
        };
        let stale = Status {
            ready: true,
            mesh,
            ..Status::default()
        };
        assert!(!stale.healthy());
    }

    #[test]
    fn another_versions_status_is_read() {
        let text = r#"{"node":"a","newField":1,"pods":[{"workload":"w","state":"frozen"}]}"#;
        let status: Status = serde_json::from_str(text).expect("unknown fields and states are taken");
        assert_eq!(status.pods[0].state, PodState::Unknown);
        assert_eq!(status.mesh, MeshStatus::default());
    }

    #[test]
    fn field_names_are_stable() {
        let status = Status {
            pods: vec![PodStatus::default()],
            ..Status::default()
        };
        let json = serde_json::to_value(&status).expect("serialises");
        assert_eq!(
            json,
            serde_json::json!({
                "version": "", "pid": 0, "node": "", "uptimeSeconds": 0, "ready": false, "workers": 0,
                "mesh": {"source": "", "revision": 0, "workloads": 0, "services": 0, "policies": 0},
                "programs": [], "expectedPods": 0, "capturedPods": 0,
                "pods": [{"workload": "", "namespace": "", "addresses": [], "netns": "", "identity": "",
                    "state": "unknown"}],
                "certificates": [], "connections": {"open": 0, "list": []},
                "trust": {"roots": 0, "revocationLists": 0, "sessions": 0},
                "sameNode": {"pairs": 0, "direct": 0, "list": []},
                "nri": {"state": "off", "socket": ""}, "starting": {"state": "off"},
            })
        );
    }
}

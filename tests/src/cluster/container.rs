//! One container of a pod: where it stands, when it is started again, and what its probes say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{
    messages::ContainerStatus,
    node::Node,
    spec::{items, text},
    worker::Restart,
};

/// How long a container that ends at once waits for its next start; twice as long each time, up to the second.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(300)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Running,
    Ended,
}

pub(super) struct Container {
    pub(super) spec: Value,
    pub(super) phase: Phase,
    pub(super) id: String,
    pub(super) attempt: u32,
    /// Why it is not started.
    pub(super) waits: String,
    not_before: Option<Instant>,
    since: Instant,
    /// What the runtime said of it last, and of the one before.
    pub(super) seen: ContainerStatus,
    pub(super) before: Option<ContainerStatus>,
    probes: Vec<Probe>,
}

struct Probe {
    kind: &'static str,
    next: Option<Instant>,
    passes: u64,
    failures: u64,
    good: bool,
}

impl Container {
    pub(super) fn new(spec: Value) -> Self {
        let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
        let probes = probes.into_iter().filter(|kind| spec[*kind].is_object());
        let probes = probes.map(Probe::new).collect();
        Self {
            spec,
            phase: Phase::Waiting,
            id: String::new(),
            attempt: 0,
            waits: "ContainerCreating".into(),
            not_before: None,
            since: Instant::now(),
            seen: ContainerStatus::default(),
            before: None,
            probes,
        }
    }

    pub(super) fn due(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    pub(super) fn started(&mut self, id: String) {
        self.id = id;
        self.phase = Phase::Running;
        self.since = Instant::now();
        self.not_before = None;
        self.waits.clear();
        for probe in &mut self.probes {
            *probe = Probe::new(probe.kind);
        }
    }

    /// It could not be started; it is tried again after `pause`.
    pub(super) fn failed(&mut self, why: String, pause: Duration) {
        self.waits = format!("CreateContainerError: {why}");
        self.phase = Phase::Waiting;
        self.not_before = Some(Instant::now() + pause);
        self.attempt += 1;
    }

    /// What the runtime says of it.
    pub(super) fn saw(&mut self, status: &ContainerStatus) {
        self.seen = status.clone();
        if status.state == 2 {
            self.phase = Phase::Ended;
            let [least, most] = BACK_OFF;
            let wait = least.saturating_mul(1 << self.attempt.min(8)).min(most);
            // The first restart is at once.
            let wait = if self.attempt == 0 { Duration::ZERO } else { wait };
            self.not_before = Some(Instant::now() + wait);
        }
    }

    pub(super) fn succeeded(&self) -> bool {
        self.phase == Phase::Ended && self.seen.exit_code == 0
    }

    /// Whether it has ended for good.
    pub(super) fn is_over(&self, again: Restart) -> bool {
        self.phase == Phase::Ended && !self.wants_again(again)
    }

    fn wants_again(&self, again: Restart) -> bool {
        match again {
            Restart::Always => true,
            Restart::OnFailure => self.seen.exit_code != 0,
            Restart::Never => false,
        }
    }

    /// Whether it is to be started again now; then it is counted.
    pub(super) fn may_start_again(&mut self, again: Restart) -> bool {
        if !self.wants_again(again) {
            return false;
        }
        if !self.due() {
            self.waits = "CrashLoopBackOff".into();
            return false;
        }
        self.before = Some(std::mem::take(&mut self.seen));
        self.attempt += 1;
        true
    }

    fn good(&self, kind: &str) -> bool {
        let mut probes = self.probes.iter();
        probes
            .find(|probe| probe.kind == kind)
            .is_none_or(|probe| probe.good)
    }

    pub(super) fn is_started(&self) -> bool {
        self.phase == Phase::Running && self.good("startupProbe")
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_started() && self.good("readinessProbe")
    }

    /// Does the probes that are due. Whether the container must be ended for them.
    pub(super) async fn probe(&mut self, node: &Arc<Node>, address: &str) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        let started = self.is_started();
        let mut dead = false;
        for probe in &mut self.probes {
            if probe.kind != "startupProbe" && !started || probe.kind == "startupProbe" && started {
                continue;
            }
            let spec = &self.spec[probe.kind];
            let number = |field: &str, usual: u64| spec[field].as_u64().unwrap_or(usual);
            let first = self.since + Duration::from_secs(number("initialDelaySeconds", 0));
            if Instant::now() < probe.next.unwrap_or(first) {
                continue;
            }
            probe.next = Some(Instant::now() + Duration::from_secs(number("periodSeconds", 10)));
            let limit = Duration::from_secs(number("timeoutSeconds", 1));
            let passed = ask(node.clone(), address, &self.spec, spec, limit).await;
            (probe.passes, probe.failures) = match passed {
                true => (probe.passes + 1, 0),
                false => (0, probe.failures + 1),
            };
            if probe.passes >= number("successThreshold", 1) {
                probe.good = true;
            }
            if probe.failures >= number("failureThreshold", 3) {
                probe.good = false;
                dead |= probe.kind != "readinessProbe";
            }
        }
        dead
    }
}

impl Probe {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            next: None,
            passes: 0,
            failures: 0,
            good: kind == "livenessProbe",
        }
    }
}

/// One probe, from the node itself.
async fn ask(node: Arc<Node>, address: &str, container: &Value, probe: &Value, limit: Duration) -> bool {
    let (http, tcp) = (&probe["httpGet"], &probe["tcpSocket"]);
    let port = if http.is_object() {
        &http["port"]
    } else {
        &tcp["port"]
    };
    let number = port.as_u64().or_else(|| {
        let mut ports = items(&container["ports"]);
        ports.find(|of| of["name"] == *port)?["containerPort"].as_u64()
    });
    let number = number.and_then(|number| u16::try_from(number).ok());
    let (Some(port), Ok(address)) = (number, address.parse()) else {
        return false;
    };
    let target = SocketAddr::new(address, port);
    let path = http.is_object().then(|| match text(&http["path"]) {
        "" => "/".to_owned(),
        path => path.to_owned(),
    });
    let asked = tokio::task::spawn_blocking(move || match path {
        Some(path) => node
            .get(target, &path, limit)
            .is_ok_and(|status| (200..400).contains(&status)),
        None => node.host.connect_within(target, limit).is_ok(),
    });
    asked.await.unwrap_or(false)
}

//! The status as people like to read it: sections, aligned columns, a tick or a cross before each line. Pure.

use std::net::SocketAddr;

use crate::{
    cli::page::{Mark, Page, good_if},
    telemetry::status::{
        CertificateStatus, ConnectionStatus, NriState, PodState, PodStatus, ProgramStatus, StartingState,
        Status,
    },
};

/// Connections that the table shows; `-o json` has more.
const MOST_CONNECTIONS: usize = 20;

/// The whole table, with a line feed at its end.
pub(super) fn render(status: &Status, colour: bool) -> String {
    let mut page = Page::new(colour);
    summary(&mut page, status);
    mesh(&mut page, status);
    pods(&mut page, status);
    programs(&mut page, &status.programs);
    certificates(&mut page, &status.certificates);
    connections(&mut page, status);
    same_node(&mut page, status);
    page.text
}

/// Only where there are some: on most nodes most pairs are on two.
fn same_node(page: &mut Page, status: &Status) {
    let same_node = &status.same_node;
    if same_node.pairs == 0 {
        return;
    }
    let heading = format!("{} of {} from app to app", same_node.direct, same_node.pairs);
    page.heading("PAIRS INSIDE THE NODE", &heading);
    for pair in same_node.list.iter().take(MOST_CONNECTIONS) {
        let (source, destination) = (&pair.source, &pair.destination);
        let way = match (&pair.through_agent, pair.directly.is_empty()) {
            (None, _) => "from app to app".to_owned(),
            (Some(why), true) => format!("through the agent: {why}"),
            (Some(why), false) => format!("from app to app, in part through the agent: {why}"),
        };
        page.line(Mark::Good, &format!("{source} to {destination}: {way}"));
    }
}

fn summary(page: &mut Page, status: &Status) {
    let state = match (status.ready, &status.reason) {
        (true, _) => "ready".to_owned(),
        (false, Some(reason)) => format!("not ready: {reason}"),
        (false, None) => "not ready".to_owned(),
    };
    let (version, node, pid) = (&status.version, &status.node, status.pid);
    let up = age(status.uptime_seconds);
    let workers = count(status.workers, "worker", "workers");
    page.line(
        good_if(status.ready),
        &format!("weft {version} on node {node}, pid {pid}, up {up}, {workers}: {state}"),
    );
}

fn mesh(page: &mut Page, status: &Status) {
    let mesh = &status.mesh;
    page.heading("MESH", "");
    let contents = format!(
        "{}, {}, {}",
        count(mesh.workloads, "workload", "workloads"),
        count(mesh.services, "service", "services"),
        count(mesh.policies, "policy", "policies"),
    );
    match mesh.age_seconds {
        Some(seconds) => {
            let loaded = format!("{}, loaded {} ago: {contents}", mesh.source, age(seconds));
            page.line(Mark::Good, &loaded);
        }
        None => page.line(Mark::Bad, &format!("{}: nothing loaded yet", mesh.source)),
    }
    if let Some(error) = &mesh.last_error {
        page.line(Mark::Bad, &format!("the newest was not taken: {error}"));
    }
}

fn pods(page: &mut Page, status: &Status) {
    page.heading(
        "PODS",
        &format!("{} of {} captured", status.captured_pods, status.expected_pods),
    );
    let mut pods: Vec<&PodStatus> = status.pods.iter().collect();
    pods.sort_by_key(|pod| (&pod.namespace, &pod.workload));
    let rows = pods.into_iter().map(|pod| {
        let state = match &pod.message {
            Some(message) => format!("{}: {message}", pod.state),
            None => pod.state.to_string(),
        };
        let addresses = pod
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let mark = match pod.state {
            PodState::Captured => Mark::Good,
            PodState::Pending | PodState::Unknown => Mark::Waiting,
            PodState::Failed => Mark::Bad,
        };
        (
            mark,
            [
                pod.namespace.clone(),
                pod.workload.clone(),
                addresses,
                pod.identity.clone(),
                state,
            ],
        )
    });
    page.table(
        ["NAMESPACE", "WORKLOAD", "ADDRESSES", "IDENTITY", "STATE"],
        rows.collect(),
    );
    starting(page, status);
    nri(page, status);
}

/// From when on pods that start are held. Not where a file names the pods.
fn starting(page: &mut Page, status: &Status) {
    let why = status.starting.message.as_deref().unwrap_or("no reason is known");
    match status.starting.state {
        StartingState::Off => {}
        StartingState::Unseen => page.line(Mark::Good, "pods that start are held until their capture"),
        StartingState::Seen => page.line(
            Mark::Waiting,
            &format!("pods that start are held once they are seen, and an app may be faster: {why}"),
        ),
        StartingState::Failed => page.line(Mark::Bad, &format!("pods that start are not all held: {why}")),
    }
}

/// When pods that start are captured. Not where an agent was told not to ask.
fn nri(page: &mut Page, status: &Status) {
    let nri = &status.nri;
    let why = nri.message.as_deref().unwrap_or("no reason is known");
    match nri.state {
        NriState::Off => {}
        NriState::Connected => {
            let runtime = nri.runtime.as_deref().unwrap_or("the container runtime");
            let line = format!("{runtime} waits for the capture of pods that start (NRI)");
            page.line(Mark::Good, &line);
        }
        NriState::Absent => page.line(
            Mark::Good,
            &format!(
                "no NRI at {}: what pods dial while they start is refused until their capture",
                nri.socket
            ),
        ),
        NriState::Refused => page.line(Mark::Waiting, &format!("no NRI at {}: {why}", nri.socket)),
    }
}

fn programs(page: &mut Page, programs: &[ProgramStatus]) {
    page.heading("PROGRAMS", "");
    let rows = programs.iter().map(|program| {
        let attached = !program.attached_to.is_empty();
        let place = if attached {
            program.attached_to.clone()
        } else {
            "not attached".to_owned()
        };
        (
            good_if(attached),
            [
                program.name.clone(),
                program.kind.clone(),
                place,
                program.id.to_string(),
            ],
        )
    });
    page.table(["NAME", "KIND", "ATTACHED TO", "ID"], rows.collect());
}

fn certificates(page: &mut Page, certificates: &[CertificateStatus]) {
    page.heading("CERTIFICATES", "");
    let rows = certificates.iter().map(|certificate| {
        let left = match u64::try_from(certificate.expires_in_seconds) {
            Ok(seconds) if seconds > 0 => age(seconds),
            _ => "expired".to_owned(),
        };
        let (identity, serial) = (certificate.identity.clone(), certificate.serial.clone());
        let mark = good_if(certificate.expires_in_seconds > 0);
        (mark, [identity, age(certificate.age_seconds), left, serial])
    });
    page.table(["IDENTITY", "AGE", "EXPIRES IN", "SERIAL"], rows.collect());
}

fn connections(page: &mut Page, status: &Status) {
    page.heading("CONNECTIONS", &format!("{} open", status.connections.open));
    let listed = status.connections.list.iter().take(MOST_CONNECTIONS);
    let rows: Vec<_> = listed
        .map(|connection| (Mark::Good, connection_row(connection)))
        .collect();
    let shown = rows.len();
    let header = [
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "PEER",
        "OPEN",
        "REQUEST",
        "RESPONSE",
    ];
    page.table(header, rows);
    if shown > 0 && shown < status.connections.open {
        page.text.push_str(&format!(
            "  and {} more (-o json)\n",
            status.connections.open - shown
        ));
    }
}

fn connection_row(connection: &ConnectionStatus) -> [String; 8] {
    let addr = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string()).unwrap_or_default();
    [
        connection.direction.clone(),
        addr(connection.source),
        addr(connection.destination),
        connection.service.clone().unwrap_or_default(),
        connection.identity.clone().unwrap_or_default(),
        age(connection.open_seconds),
        size(connection.request_bytes),
        size(connection.response_bytes),
    ]
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// The two largest units: `45s`, `12m05s`, `3h12m`, `2d04h`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `999 B`, `1.0 KiB`, `3.4 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    format!("{size:.1} {unit}")
}

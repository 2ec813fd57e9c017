//! The status as people like to read it: sections, aligned columns, a tick or a cross before each line. Pure.

use std::{fmt::Display, net::SocketAddr};

use crate::telemetry::status::{
    CertificateStatus, ConnectionStatus, PodState, PodStatus, ProgramStatus, Status,
};

/// Connections that the table shows; `-o json` has more.
const MOST_CONNECTIONS: usize = 20;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// How a line is marked.
#[derive(Clone, Copy)]
enum Mark {
    Good,
    Waiting,
    Bad,
}

/// The whole table, with a line feed at its end.
pub(super) fn render(status: &Status, colour: bool) -> String {
    let mut page = Page {
        text: String::new(),
        colour,
    };
    summary(&mut page, status);
    mesh(&mut page, status);
    pods(&mut page, status);
    programs(&mut page, &status.programs);
    certificates(&mut page, &status.certificates);
    connections(&mut page, status);
    page.text
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

/// The text so far.
struct Page {
    text: String,
    colour: bool,
}

impl Page {
    fn heading(&mut self, title: &str, note: &str) {
        let title = self.paint(BOLD, title);
        let gap = if note.is_empty() { "" } else { "  " };
        self.text.push_str(&format!("\n{title}{gap}{note}\n"));
    }

    fn line(&mut self, mark: Mark, text: &str) {
        let mark = self.mark(mark);
        self.text.push_str(&format!("{mark} {}\n", printable(text)));
    }

    /// Columns as wide as their widest cell; the last is not padded. An empty cell is a dash.
    fn table<const N: usize>(&mut self, header: [&str; N], rows: Vec<(Mark, [String; N])>) {
        if rows.is_empty() {
            self.text.push_str("  none\n");
            return;
        }
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(mark, cells)| (mark, cells.map(cell)))
            .collect();
        let mut widths = header.map(|title| title.chars().count());
        for (_, cells) in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        self.text.push_str(&format!("  {}\n", row(&header, &widths)));
        for (mark, cells) in &rows {
            let mark = self.mark(*mark);
            self.text.push_str(&format!("{mark} {}\n", row(cells, &widths)));
        }
    }

    fn mark(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => self.paint(GREEN, "✓"),
            Mark::Waiting => self.paint(YELLOW, "…"),
            Mark::Bad => self.paint(RED, "✗"),
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }
}

fn row(cells: &[impl Display], widths: &[usize]) -> String {
    let padded = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{:width$}", cell.to_string()));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn cell(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        printable(&text)
    }
}

/// What an agent says may hold names from anywhere: none of it may steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn good_if(good: bool) -> Mark {
    if good { Mark::Good } else { Mark::Bad }
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

//! What `weft get waypoints` prints for people. Pure.

use super::read::Waypoint;

/// A line for each.
pub(super) fn render(waypoints: &[Waypoint], namespace: Option<&str>) -> String {
    if waypoints.is_empty() {
        let place = namespace.map_or_else(String::new, |it| format!(" in namespace {it}"));
        return format!("there is no waypoint{place}: `weft apply waypoint` makes one\n");
    }
    let titles = [
        "NAMESPACE",
        "NAME",
        "CLASS",
        "FOR",
        "PROGRAMMED",
        "REPLICAS",
        "ADDRESS",
        "SERVICES",
    ];
    let titles = titles.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(titles).chain(waypoints.iter().map(row)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let width = rows
                .iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or_default();
            format!("{cell:width$}")
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    for waypoint in waypoints.iter().filter(|it| !it.programmed) {
        text += &format!("{}/{}: {}\n", waypoint.namespace, waypoint.name, waypoint.message);
    }
    text
}

fn row(it: &Waypoint) -> [String; 8] {
    let replicas = match it.replicas {
        Some(it) => format!("{}/{}", it.ready, it.wanted),
        None => "-".to_owned(),
    };
    let programmed = match it.programmed {
        true => "yes".to_owned(),
        false => format!("no ({})", it.reason),
    };
    let address = match it.addresses.is_empty() {
        true => "-".to_owned(),
        false => it.addresses.join(","),
    };
    [
        it.namespace.clone(),
        it.name.clone(),
        it.class.clone(),
        it.waypoint_for.clone(),
        programmed,
        replicas,
        address,
        it.services.len().to_string(),
    ]
}

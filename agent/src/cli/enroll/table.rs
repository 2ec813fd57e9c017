//! What `weft enroll` prints for people. Pure.

use super::{Outcome, Row, State};

/// One line while it waits.
pub(super) fn progress(rows: &[Row]) -> String {
    let selected = rows.iter().filter(|row| row.state != State::Outside).count();
    let waiting = rows.iter().filter(|row| !row.state.is_settled()).count();
    format!("{} of {} pods, {waiting} to go", selected - waiting, selected)
}

/// A line for each pod, and what it all comes to.
pub(super) fn render(outcome: &Outcome) -> String {
    let width = |title: &str, of: fn(&Row) -> &str| {
        let longest = outcome.pods.iter().map(|row| of(row).len()).max();
        longest.unwrap_or_default().max(title.len())
    };
    let (name, node) = (width("POD", |row| &row.name), width("NODE", |row| &row.node));
    let mut text = String::new();
    if !outcome.pods.is_empty() {
        text += &format!("{:name$}  {:node$}  STATE\n", "POD", "NODE");
    }
    for row in &outcome.pods {
        let state = match row.state {
            State::Captured => "captured",
            State::Waiting => "waiting",
            State::Outside => "outside",
            State::Leaving => "leaving",
        };
        let reason = row.reason.as_ref().map(|reason| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        text += &format!("{:name$}  {:node$}  {state}{reason}\n", row.name, row.node);
    }
    text + &summary(outcome)
}

fn summary(outcome: &Outcome) -> String {
    let namespace = &outcome.namespace;
    let count = |wanted: State| outcome.pods.iter().filter(|row| row.state == wanted).count();
    let (captured, waiting, leaving) = (
        count(State::Captured),
        count(State::Waiting),
        count(State::Leaving),
    );
    match (outcome.enrolled, outcome.complete) {
        (true, true) if captured == 0 => {
            format!("namespace {namespace} is in the mesh; no pod of it runs yet that belongs there\n")
        }
        (true, true) => format!("namespace {namespace} is in the mesh: {captured} pods captured\n"),
        (true, false) => format!(
            "namespace {namespace} has the label, and {waiting} pods are not captured yet: wait longer with --wait, or look at \
             the agents of their nodes\n"
        ),
        (false, true) => format!("namespace {namespace} is out of the mesh\n"),
        (false, false) => {
            format!(
                "namespace {namespace} has the label no more, and {} pods are still captured\n",
                waiting + leaving
            )
        }
    }
}

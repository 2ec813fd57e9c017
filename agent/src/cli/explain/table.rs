//! The explanation as people like to read it: the answer, the source, and each way hop by hop. Pure.

use crate::{
    cli::page::{Mark, Page, good_if},
    telemetry::explain::{End, Explanation, Hop, HopKind, Judgement, Security},
};

/// The whole page, with a line feed at its end.
pub(super) fn render(explanation: &Explanation, colour: bool) -> String {
    let mut page = Page::new(colour);
    summary(&mut page, explanation);
    source(&mut page, &explanation.source);
    endpoints(&mut page, explanation);
    ways(&mut page, explanation);
    page.text
}

fn summary(page: &mut Page, explanation: &Explanation) {
    let (from, to) = (name(&explanation.source), &explanation.asked);
    let all = explanation.ways.len() + explanation.more_ways;
    let refused = explanation.ways.iter().filter(|way| !way.allowed).count();
    let text = match refused {
        _ if explanation.allowed => format!("{from} may reach {to}"),
        refused if refused == all => format!("{from} is refused at {to}"),
        refused => format!("{from} is refused on {refused} of {all} ways to {to}"),
    };
    page.line(good_if(explanation.allowed), &text);
}

fn source(page: &mut Page, source: &End) {
    page.heading("SOURCE", "");
    page.field("workload", &placed(source));
    page.field(
        "address",
        &source.address.map(|it| it.to_string()).unwrap_or_default(),
    );
    let none = "none: it is not in the mesh, so it can prove nothing";
    page.field(
        "identity",
        if source.identity.is_empty() {
            none
        } else {
            &source.identity
        },
    );
}

/// Where there is a choice.
fn endpoints(page: &mut Page, explanation: &Explanation) {
    let all = explanation.endpoints.len() + explanation.more_endpoints;
    if all < 2 {
        return;
    }
    page.heading("ENDPOINTS", "");
    let rows = explanation.endpoints.iter().map(|endpoint| {
        let address = endpoint.address.map(|addr| addr.to_string()).unwrap_or_default();
        let mark = if endpoint.chosen {
            Mark::Good
        } else {
            Mark::Waiting
        };
        (
            mark,
            [endpoint.workload.clone(), address, endpoint.standing.clone()],
        )
    });
    page.table(["WORKLOAD", "ADDRESS", "STANDING"], rows.collect());
    if explanation.more_endpoints > 0 {
        let more = format!("and {} more", explanation.more_endpoints);
        page.line(Mark::Waiting, &more);
    }
}

fn ways(page: &mut Page, explanation: &Explanation) {
    let dialled: Vec<_> = explanation.dialled.iter().map(ToString::to_string).collect();
    let service = match &explanation.service {
        Some(service) => format!("service {service}"),
        None => "no service".to_owned(),
    };
    page.heading("ROUTE", &format!("{}: {service}", dialled.join(", ")));
    for way in &explanation.ways {
        for hop in &way.hops {
            self::hop(page, hop);
        }
    }
    if explanation.more_ways > 0 {
        let more = format!("and {} more ways", explanation.more_ways);
        page.line(Mark::Waiting, &more);
    }
}

fn hop(page: &mut Page, hop: &Hop) {
    let judged = hop.verdict.as_ref();
    let passes = hop.kind != HopKind::Refused && judged.is_none_or(|verdict| verdict.allowed);
    let at = hop.destination.map(|addr| addr.to_string()).unwrap_or_default();
    let title = match (&hop.to, hop.kind) {
        (_, HopKind::Refused) => "refused before it leaves the source".to_owned(),
        (Some(to), HopKind::Waypoint) => format!("waypoint {}, for {at}", name(to)),
        (Some(to), _) => format!("{} at {at}", name(to)),
        (None, _) => at,
    };
    page.line(good_if(passes), &title);
    page.field("route", &route(hop));
    if !hop.identities.is_empty() {
        page.field("must prove", &hop.identities.join(" or "));
    }
    if let Some(path) = &hop.same_node {
        page.field("same node", path);
    } else if let Some(to) = hop.to.as_ref().filter(|to| !to.node.is_empty()) {
        page.field("node", &to.node);
    }
    if let Some(needed) = &hop.network_policy {
        page.field("network", &format!("a NetworkPolicy {needed}"));
    }
    if let Some(verdict) = judged {
        self::verdict(page, verdict);
    }
}

/// How it gets there, in clear or not, and why.
fn route(hop: &Hop) -> String {
    let gateway = hop.gateway.map(|addr| addr.to_string()).unwrap_or_default();
    let security = match hop.security {
        Security::MutualTls => "mutual TLS",
        Security::Plaintext => "plain TCP",
        Security::InsidePod => "inside the pod",
        Security::Nothing | Security::Unknown => "",
    };
    let how = match hop.kind {
        HopKind::Tunnel | HopKind::Waypoint => format!("tunnel to {gateway}, {security}: "),
        HopKind::Direct => format!("{security}: "),
        HopKind::Refused | HopKind::Unknown => String::new(),
    };
    format!("{how}{}", hop.reason)
}

fn verdict(page: &mut Page, verdict: &Judgement) {
    page.field("verdict", &verdict.reason);
    for unseen in &verdict.unseen {
        page.field(
            "unseen",
            &format!("{unseen} (only a waypoint sees what these look at)"),
        );
    }
    for matched in &verdict.dry_run_matches {
        page.field(
            "dry run",
            &format!("{} policy {} matches", matched.action, matched.policy),
        );
    }
    if let Some(verdict) = &verdict.if_enforced {
        page.field("dry run", &format!("if it were enforced: {verdict}"));
    }
}

/// The workload, or else the address.
fn name(end: &End) -> String {
    let address = || end.address.map(|address| address.to_string());
    end.workload.clone().or_else(address).unwrap_or_default()
}

fn placed(end: &End) -> String {
    match (&end.workload, end.node.as_str()) {
        (None, _) => "none that the mesh knows".to_owned(),
        (Some(workload), "") => workload.clone(),
        (Some(workload), node) => format!("{workload} on node {node}"),
    }
}

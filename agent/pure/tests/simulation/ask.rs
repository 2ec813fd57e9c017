//! The questions: what the product answers, compared with what the oracle does, and with what must never be.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use weft_pure::mesh::{
    Inbound, Mesh, NextHop, Outbound, Refusal, Route, SameNode, TunnelProtocol, Verdict, Workload, authorize,
    choices, direct, dry_run_matches, question, rehearse, route,
};

use crate::{
    draw::Draw,
    oracle::{
        authorize::{self as who, Answer},
        route::{Hop, answers},
    },
    world::{ACCOUNTS, ADDRESSES, NAMESPACES, PORTS, STRANGERS, VIPS, World, identity},
};

/// A workload of the world, as the mesh has it.
pub(crate) fn workload<'a>(world: &World, mesh: &'a Mesh, draw: &mut Draw) -> Option<&'a Arc<Workload>> {
    let uids: Vec<_> = world.workloads().map(|workload| &workload.uid).collect();
    let count = uids.len();
    (count > 0).then(|| mesh.workload(uids[draw.of(0..count)]))?
}

fn address(draw: &mut Draw) -> SocketAddr {
    let all = [
        ADDRESSES.as_slice(),
        VIPS.as_slice(),
        STRANGERS.as_slice(),
        VIPS.as_slice(),
    ]
    .concat();
    let ip = draw.pick(&all).parse().expect("an address");
    let mapped = match ip {
        std::net::IpAddr::V4(v4) if draw.percent(10) => v4.to_ipv6_mapped().into(),
        _ => ip,
    };
    SocketAddr::new(mapped, *draw.pick(&PORTS))
}

/// Where a connection goes: with every draw that tells, and some that do not.
///
/// # Errors
/// What is wrong.
pub(crate) fn where_to(world: &World, mesh: &Mesh, draw: &mut Draw) -> Result<(), String> {
    let Some(source) = workload(world, mesh, draw).cloned() else {
        return Ok(());
    };
    let conn = Outbound {
        destination: address(draw),
        source,
    };
    let (service, expect) = answers(world, &conn.source, conn.destination);
    let count = choices(mesh, &conn);
    let mut found = BTreeSet::new();
    for draw in (0..count).chain([draw.any()]) {
        let answer = route(mesh, &conn, draw);
        let hop = hop(&answer);
        let fault = |what: String| {
            format!(
                "{} dials {} (draw {draw}): {what}\nbut it is {hop:?}",
                conn.source.uid, conn.destination
            )
        };
        never(world, &conn, &answer)
            .and_then(|()| past_the_agent(world, mesh, (&conn, draw), &answer))
            .map_err(|what| fault(format!("UNSAFE: {what}")))?;
        if answer.service.as_ref().map(|service| &service.key) != service.as_ref() {
            return Err(fault(format!("it is meant for {service:?}")));
        }
        if !expect.contains(&hop) {
            return Err(fault(format!("it should be one of {expect:?}")));
        }
        found.insert(hop);
    }
    if found != expect {
        return Err(format!(
            "{} dials {}: of {expect:?}\nonly {found:?} are chosen",
            conn.source.uid, conn.destination
        ));
    }
    Ok(())
}

fn hop(route: &Route) -> Hop {
    match &route.next {
        NextHop::Refuse(why) => Hop::Refuse(match why {
            Refusal::UnknownDestination(_) => "unknown",
            Refusal::NoSuchPort(..) => "no such port",
            Refusal::NoHealthyEndpoint(_) => "no endpoint",
            Refusal::NoEndpointInScope(_) => "none near",
            Refusal::WaypointUnavailable(_) => "no waypoint",
            Refusal::OwnPort(_) => "own port",
            _ => "something else",
        }),
        NextHop::Direct { addr, workload } => {
            Hop::Direct(*addr, workload.as_ref().map(|workload| workload.uid.clone()))
        }
        NextHop::Tunnel(tunnel) => Hop::Tunnel {
            addr: tunnel.addr,
            authority: tunnel.authority,
            identities: tunnel.identities.iter().cloned().collect(),
            uid: tunnel.workload.uid.clone(),
            via_waypoint: tunnel.via_waypoint,
        },
    }
}

/// What no answer may be, whatever the oracle thinks.
fn never(world: &World, conn: &Outbound, route: &Route) -> Result<(), String> {
    match &route.next {
        NextHop::Refuse(_) => Ok(()),
        NextHop::Direct { addr, .. } => {
            let there = world.workload_at(addr.ip());
            let in_mesh =
                there.filter(|it| it.tunnel_protocol == TunnelProtocol::Hbone && it.uid != conn.source.uid);
            match in_mesh {
                Some(workload) => Err(format!("in clear to {}, which is in the mesh", workload.uid)),
                None if there.is_none() && route.service.is_none() && world.in_cluster(addr.ip()) => {
                    Err("out to an unknown address of the cluster".into())
                }
                None => Ok(()),
            }
        }
        NextHop::Tunnel(tunnel) => {
            let given = world
                .workloads()
                .find(|workload| workload.uid == tunnel.workload.uid);
            let given = given.filter(|workload| workload.addresses.contains(&tunnel.addr.ip()));
            let given = given.ok_or("to a workload or an address that the mesh does not give")?;
            if !tunnel.identities.contains(&given.identity) {
                return Err("its identity is not asked for".into());
            }
            let others = world.services().flat_map(|service| &service.subject_alt_names);
            let known: BTreeSet<_> = others.chain([&given.identity]).collect();
            match tunnel
                .identities
                .iter()
                .find(|identity| !known.contains(identity))
            {
                Some(identity) => Err(format!("{identity} is accepted, which the mesh does not give")),
                None => Ok(()),
            }
        }
    }
}

/// What goes from app to app is what the agent would have carried, to the same app: nothing that it would have refused, sent
/// through a waypoint, or been told to tunnel.
fn past_the_agent(
    world: &World,
    mesh: &Mesh,
    (conn, draw): (&Outbound, u64),
    route: &Route,
) -> Result<(), String> {
    let Ok((workload, app)) = direct(mesh, conn, draw) else {
        return Ok(());
    };
    let NextHop::Tunnel(tunnel) = &route.next else {
        return Err("from app to app, where there is no tunnel".into());
    };
    if tunnel.via_waypoint || tunnel.workload.uid != workload.uid || tunnel.authority != app {
        return Err(format!("from app to app, to {} at {app}", workload.uid));
    }
    let tunnels = |workload: &Workload| workload.same_node == Some(SameNode::Tunnel);
    if tunnels(&conn.source) || tunnels(&workload) {
        return Err("from app to app, where a tunnel is asked for".into());
    }
    let answer = who::answer(world, &workload, &question(&conn.source, app), false);
    answer
        .allows()
        .then_some(())
        .ok_or_else(|| format!("from app to app, although {answer:?}"))
}

/// Whether a connection may reach a workload.
///
/// # Errors
/// What is wrong.
pub(crate) fn whether(world: &World, mesh: &Mesh, draw: &mut Draw) -> Result<(), String> {
    let Some(workload) = workload(world, mesh, draw) else {
        return Ok(());
    };
    let conn = inbound(world, mesh, draw);
    let fault = |what: String| format!("{conn:?}\nreaches for {}: {what}", workload.uid);
    let verdict = authorize(mesh, workload, &conn);
    let expect = who::answer(world, workload, &conn, false);
    compare(&verdict, &expect).map_err(&fault)?;
    let rehearsed = rehearse(mesh, workload, &conn);
    let any_dry_run = who::covering(world, workload).iter().any(|policy| policy.dry_run);
    match &rehearsed {
        Some(verdict) if any_dry_run => {
            compare(verdict, &who::answer(world, workload, &conn, true)).map_err(&fault)?;
        }
        None if !any_dry_run => {}
        _ => return Err(fault(format!("rehearsed: {rehearsed:?}"))),
    }
    let matched: BTreeSet<_> = dry_run_matches(mesh, workload, &conn)
        .map(|policy| policy.key.clone())
        .collect();
    if matched != who::dry_run(world, workload, &conn) {
        return Err(fault(format!("in dry-run these match: {matched:?}")));
    }
    Ok(())
}

/// From a workload with its own name, from one with another's, from one without a name, or from nowhere.
pub(crate) fn inbound(world: &World, mesh: &Mesh, draw: &mut Draw) -> Inbound {
    let own = workload(world, mesh, draw).filter(|_| draw.percent(60));
    let own = own.and_then(|workload| Some((Some(workload.identity.clone()), *workload.addresses.first()?)));
    let (peer, source_ip) = own.unwrap_or_else(|| {
        let peer = draw
            .percent(60)
            .then(|| identity(draw.pick::<&str>(&NAMESPACES), draw.pick::<&str>(&ACCOUNTS)));
        (peer, address(draw).ip())
    });
    Inbound {
        peer,
        source_ip,
        destination: address(draw),
    }
}

pub(crate) fn compare(verdict: &Verdict, expect: &Answer) -> Result<(), String> {
    let same = match (verdict, expect) {
        (Verdict::Allow { policy: None }, Answer::AllowedByNone) => true,
        (Verdict::Allow { policy: Some(key) }, Answer::AllowedBy(keys))
        | (Verdict::Deny(Refusal::DeniedBy(key)), Answer::DeniedBy(keys))
        | (Verdict::Deny(Refusal::PolicyMissing(key)), Answer::Missing(keys)) => keys.contains(key),
        (Verdict::Deny(Refusal::NotAllowed(in_scope)), Answer::NotAllowed(keys)) => {
            in_scope.named.len() + in_scope.more == keys.len()
                && in_scope.named.iter().all(|key| keys.contains(key))
        }
        (Verdict::Deny(Refusal::PlaintextToStrict(..)), Answer::Strict) => true,
        _ => false,
    };
    let unsafe_ = matches!(verdict, Verdict::Allow { .. }) && !expect.allows();
    match same {
        true => Ok(()),
        false if unsafe_ => Err(format!("UNSAFE: {verdict:?}, but it is {expect:?}")),
        false => Err(format!("{verdict:?}, but it is {expect:?}")),
    }
}

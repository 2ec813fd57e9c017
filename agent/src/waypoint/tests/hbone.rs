//! Endpoints in the mesh: reached over tunnels, with the waypoint's own identity, and nobody else's.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};

use super::world::{App, Plan, World, get, id, soon, text, whole};
use crate::{
    hbone::{self, AppSide, Authority, Drain, Request, Settings, copy},
    mesh::{HBONE_PORT, SpiffeId, TunnelProtocol},
    net::{copy::Counters, tls},
};

/// An agent in front of an app, who proves to be `account`.
async fn agent(
    world: &World,
    addr: std::net::IpAddr,
    account: SpiffeId,
) -> Arc<std::sync::Mutex<Vec<SpiffeId>>> {
    let wanted: HashSet<_> = ["curl", "waypoint"]
        .map(id)
        .into_iter()
        .chain([account.clone()])
        .collect();
    world.shared.svids.desire(wanted);
    let svid = world
        .shared
        .svids
        .ready(&account, Duration::from_secs(10))
        .await
        .unwrap();
    let domains = ["cluster.local".parse().unwrap()];
    let side = tls::server(world.shared.svids.sessions(), Arc::clone(&svid.cert), &domains).unwrap();
    let listener = TcpListener::bind((addr, HBONE_PORT)).await.unwrap();
    let peers = Arc::<std::sync::Mutex<Vec<_>>>::default();
    let seen = Arc::clone(&peers);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (side, seen) = (side.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let Ok((stream, session)) = tls::accept(tcp, side, Duration::from_secs(5)).await else {
                    return;
                };
                seen.lock().unwrap().push(session.peer.clone());
                let pair = (addr, addr);
                let _ = hbone::serve(stream, &Settings::default(), pair, Drain::default(), relay).await;
            });
        }
    });
    peers
}

fn relay(request: Request) {
    tokio::spawn(async move {
        let Ok(Authority::Addr(target)) = request.target else {
            return request.respond.refuse(400);
        };
        let Ok(app) = TcpStream::connect(target).await else {
            return request.respond.refuse(503);
        };
        if let Ok(stream) = request.respond.accept(None) {
            let _ = copy(
                app,
                (stream, Bytes::new()),
                AppSide::Answered,
                &Counters::default(),
            )
            .await;
        }
    });
}

async fn world(app: &App) -> World {
    let mut plan = Plan::new();
    plan.web(&[app]);
    let pod = plan.parts.workloads.last_mut().unwrap();
    pod.tunnel_protocol = TunnelProtocol::Hbone;
    plan.start().await
}

#[tokio::test]
async fn an_endpoint_in_the_mesh_is_reached_over_one_tunnel() {
    let app = App::named("web").await;
    let world = world(&app).await;
    let peers = agent(&world, app.addr.ip(), id("web-0")).await;
    let mut sender = world.http1().await;
    for _ in 0..3 {
        soon(sender.ready()).await.unwrap();
        let response = whole(soon(sender.send_request(get("/"))).await.unwrap()).await;
        assert_eq!(text(&response), "web");
    }
    assert_eq!(*peers.lock().unwrap(), [id("waypoint")]);
}

#[tokio::test]
async fn whoever_is_not_the_endpoint_is_sent_nothing() {
    let app = App::named("web").await;
    let world = world(&app).await;
    let _peers = agent(&world, app.addr.ip(), id("mallory")).await;
    let response = world.get("/").await;
    assert_eq!(response.status(), 503);
    assert_eq!(app.count(), 0);
}

//! Tunnels: who shares one, when there is another, and how each kind of failure is named.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use super::world::{CLIENT, World, dial, echo, listen, relay, request, soon, until};
use crate::{
    hbone::{
        Authority, Baggage, ConnectError, Forwarded, Pool, Request, ServeError, Settings, Stream, TraceParent,
    },
    mesh::{FailureKind, Refusal},
    net::{lanes::Lanes, tls},
};

/// Accepts every CONNECT and holds it open.
fn hold() -> (impl Fn(Request) + Clone + Send + 'static, Arc<Mutex<Vec<Stream>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let streams = held.clone();
    let accept = move |request: Request| {
        streams
            .lock()
            .unwrap()
            .push(request.respond.accept(None).unwrap());
    };
    (accept, held)
}

fn nowhere() -> SocketAddr {
    ([10, 0, 0, 1], 80).into()
}

#[tokio::test]
async fn a_request_carries_its_headers() {
    let seen = Arc::new(Mutex::new(None));
    let world = World::with(Settings::default(), {
        let seen = seen.clone();
        move |request: Request| {
            let Request {
                target,
                baggage,
                forwarded,
                traceparent,
                respond,
            } = request;
            *seen.lock().unwrap() = Some((target, baggage, forwarded, traceparent));
            respond
                .accept(Some(&super::world::baggage("stock").header()))
                .unwrap();
        }
    })
    .await;
    let mut connect = request(nowhere());
    let forwarded = Forwarded {
        client: ([10, 0, 0, 9], 4711).into(),
        host: Some("stock.shop".into()),
    };
    connect.forwarded = Some(forwarded.clone());
    connect.traceparent = Some(TraceParent::new([7; 24], true));
    let gateway = world.server.addr;
    let config = || Ok(world.client());
    let stream = soon(
        world
            .pool
            .connect(world.key(), config, move || dial(gateway), connect),
    )
    .await
    .unwrap();
    assert_eq!(stream.session().unwrap().peer.as_str(), super::world::SERVER);
    let (target, baggage, got, trace) = seen.lock().unwrap().take().unwrap();
    assert_eq!(target, Ok(Authority::Addr(nowhere())));
    let baggage: Baggage = baggage.unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!(baggage.workload_name, "cart");
    assert_eq!(
        (got, trace),
        (Some(forwarded), Some(TraceParent::new([7; 24], true)))
    );
}

#[tokio::test]
async fn connections_at_once_share_one_handshake() {
    let (accept, held) = hold();
    let world = World::with(Settings::default(), accept).await;
    let connects = (0..50).map(|_| world.connect(nowhere()));
    let mut open = Vec::new();
    for connect in connects.map(Box::pin) {
        open.push(connect);
    }
    let streams = soon(join_all(open)).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!((world.tunnels(), world.dials.load(SeqCst)), (1, 1));
    until(|| held.lock().unwrap().len() == 50).await;
    assert_eq!(world.pool.counts(), (1, 50));
}

/// Polls all of them in one task, in turn.
async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    let mut futures = futures;
    std::future::poll_fn(|cx| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(cx)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn the_first_caller_may_give_up_without_harm_to_the_others() {
    let (accept, _held) = hold();
    let world = World::with(Settings::default(), accept).await;
    let (go, gateway) = (Arc::new(Notify::new()), world.server.addr);
    let dialling = Arc::new(Notify::new());
    let first = {
        let (pool, key, config) = (world.pool.clone(), world.key(), world.client());
        let (go, dialling) = (go.clone(), dialling.clone());
        tokio::spawn(async move {
            let slow = move || async move {
                dialling.notify_one();
                go.notified().await;
                dial(gateway).await
            };
            pool.connect(key, move || Ok(config), slow, request(nowhere()))
                .await
        })
    };
    soon(dialling.notified()).await;
    let second = world.connect(nowhere());
    tokio::pin!(second);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), second.as_mut())
            .await
            .is_err()
    );
    first.abort();
    go.notify_one();
    second.await.unwrap();
    assert_eq!(
        world.dials.load(SeqCst),
        0,
        "the second caller waited for the first one's tunnel"
    );
    assert_eq!(world.pool.counts(), (1, 0));
}

#[tokio::test]
async fn the_hundred_and_first_stream_opens_another_tunnel_and_room_is_used_again() {
    let (accept, _held) = hold();
    let world = World::with(Settings::default(), accept).await;
    let mut streams = Vec::new();
    for _ in 0..101 {
        streams.push(world.connect(nowhere()).await.unwrap());
    }
    assert_eq!((world.tunnels(), world.pool.counts()), (2, (2, 101)));
    streams.drain(..50);
    for _ in 0..49 {
        streams.push(world.connect(nowhere()).await.unwrap());
    }
    assert_eq!((world.tunnels(), world.pool.counts()), (2, (2, 100)));
}

#[tokio::test]
async fn new_streams_keep_off_the_tunnel_of_a_bulk_stream() {
    let world = World::new().await;
    let echo = echo().await;
    let (bulk, _copy) = world.app(echo).await;
    let (mut read, mut write) = bulk.into_split();
    let writer = tokio::spawn(async move {
        let chunk = vec![7; 1 << 20];
        while write.write_all(&chunk).await.is_ok() {}
    });
    let reader = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    // Small ones share its tunnel until it has shown what it is.
    let small = loop {
        let (mut small, copy) = world.app(echo).await;
        small.write_all(b"x").await.unwrap();
        assert_eq!(soon(small.read_u8()).await.unwrap(), b'x');
        if world.tunnels() == 2 {
            break (small, copy);
        }
    };
    let _other = world.app(echo).await;
    // The small ones of before take a moment to end.
    until(|| world.pool.counts().1 == 3).await;
    assert_eq!((world.tunnels(), world.pool.counts()), (2, (2, 3)));
    drop(small);
    writer.abort();
    soon(reader).await.unwrap().unwrap();
}

#[tokio::test]
async fn another_certificate_or_another_source_is_another_tunnel() {
    let (accept, _held) = hold();
    let world = World::with(Settings::default(), accept).await;
    let (base, gateway) = (world.key(), world.server.addr);
    let mut renewed = base.clone();
    renewed.generation = 2;
    let mut elsewhere = base.clone();
    elsewhere.source_ip = [127, 0, 0, 2].into();
    let mut streams = Vec::new();
    for key in [base.clone(), renewed, elsewhere, base] {
        let config = || Ok(world.client());
        streams.push(
            soon(
                world
                    .pool
                    .connect(key, config, move || dial(gateway), request(nowhere())),
            )
            .await
            .unwrap(),
        );
    }
    assert_eq!(world.tunnels(), 3);
}

#[tokio::test]
async fn a_tunnel_that_is_told_to_go_away_keeps_its_streams_and_gets_no_more() {
    let world = World::new().await;
    let echo = echo().await;
    let (mut old, _old) = world.app(echo).await;
    old.write_all(b"a").await.unwrap();
    assert_eq!(soon(old.read_u8()).await.unwrap(), b'a');
    world.server.tunnels.lock().unwrap()[0].drain.cancel();
    // New streams may still be taken until the GOAWAY is here; then there is a second tunnel.
    while world.tunnels() == 1 {
        let (mut new, _new) = world.app(echo).await;
        new.write_all(b"b").await.unwrap();
        assert_eq!(soon(new.read_u8()).await.unwrap(), b'b');
    }
    old.write_all(b"c").await.unwrap();
    assert_eq!(soon(old.read_u8()).await.unwrap(), b'c');
}

#[tokio::test]
async fn a_tunnel_that_died_is_not_picked_again() {
    let (accept, _held) = hold();
    let world = World::with(Settings::default(), accept).await;
    let _stream = world.connect(nowhere()).await.unwrap();
    world.server.tunnels.lock().unwrap()[0].kill.cancel();
    until(|| world.pool.counts().0 == 0).await;
    world.connect(nowhere()).await.unwrap();
    assert_eq!(world.tunnels(), 2);
}

#[tokio::test]
async fn an_idle_tunnel_is_closed_cleanly() {
    let settings = Settings {
        idle_timeout: Duration::from_millis(40),
        ..Settings::default()
    };
    let (accept, held) = hold();
    let mut world = World::with(settings, accept).await;
    let stream = world.connect(nowhere()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(world.pool.counts(), (1, 1), "a tunnel with a stream is not idle");
    drop(stream);
    held.lock().unwrap().clear();
    assert!(soon(world.server.ended.recv()).await.unwrap().is_ok());
    assert_eq!(world.pool.counts(), (0, 0));
}

#[tokio::test]
async fn what_a_burst_leaves_is_closed_but_for_one() {
    let settings = Settings {
        max_streams: 1,
        spare_timeout: Duration::from_millis(40),
        ..Settings::default()
    };
    let (accept, held) = hold();
    let mut world = World::with(settings, accept).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(world.connect(nowhere()).await.unwrap());
    }
    // The last one is used: none that is before it has room.
    let last = streams.pop();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(world.pool.counts(), (3, 3));
    streams.clear();
    held.lock().unwrap().drain(..2);
    assert!(soon(world.server.ended.recv()).await.unwrap().is_ok());
    assert_eq!(
        world.pool.counts(),
        (2, 1),
        "the first stays for whoever comes next"
    );
    drop(last);
    held.lock().unwrap().clear();
    assert!(soon(world.server.ended.recv()).await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(world.pool.counts(), (1, 0));
}

#[tokio::test]
async fn a_drained_pool_lets_go_of_its_tunnels() {
    let (accept, held) = hold();
    let mut world = World::with(Settings::default(), accept).await;
    let stream = world.connect(nowhere()).await.unwrap();
    world.pool.drain();
    assert!(world.server.ended.try_recv().is_err());
    drop(stream);
    held.lock().unwrap().clear();
    soon(world.server.ended.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_is_drained_cuts_what_does_not_end() {
    let settings = Settings {
        drain_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let mut world = World::with(settings, relay).await;
    let (mut app, _copy) = world.app(echo().await).await;
    world.server.tunnels.lock().unwrap()[0].drain.cancel();
    let ended = soon(world.server.ended.recv()).await.unwrap();
    assert!(matches!(ended, Err(ServeError::DrainTimedOut(_))), "{ended:?}");
    assert_eq!(
        soon(app.read_u8()).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_given_up() {
    let settings = Settings {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let world = World::with(settings.clone(), relay).await;
    // A server that finishes TLS and then does nothing.
    let (listener, addr) = listen().await;
    let side = tls::server(
        &world.sessions,
        world.ca.svid(super::world::SERVER),
        &["cluster.local".parse().unwrap()],
    )
    .unwrap();
    let silent = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let held = tls::accept(tcp, side, Duration::from_secs(5)).await;
        std::future::pending::<()>().await;
        drop(held);
    });
    let mut key = world.key();
    key.gateway = addr;
    let config = || Ok(world.client());
    let err = soon(
        world
            .pool
            .connect(key, config, move || dial(addr), request(nowhere())),
    )
    .await
    .unwrap_err();
    assert!(err.may_retry(), "{err:?}");
    assert_eq!(world.pool.counts().0, 0);
    silent.abort();

    // And the other way round: a client that finishes TLS and the preface.
    let mut world = World::with(settings, relay).await;
    let mut raw = world.raw().await;
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let ended = soon(world.server.ended.recv()).await.unwrap();
    assert!(matches!(ended, Err(ServeError::Gone(_))), "{ended:?}");
}

/// A pod's network goes before its tunnels can say good-bye: an agent that ends meanwhile must not wait for their answer.
#[tokio::test]
async fn a_drain_does_not_wait_for_a_peer_that_is_gone() {
    let settings = Settings {
        goaway_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let (accept, held) = hold();
    let mut world = World::with(settings, accept).await;
    // One that takes no part in the end, and has nothing open.
    let mut gone = world.raw().await;
    gone.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // One that has.
    let stream = world.connect(nowhere()).await.unwrap();
    for tunnel in world.server.tunnels.lock().unwrap().iter() {
        tunnel.drain.cancel();
    }
    soon(world.server.ended.recv()).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        world.server.ended.try_recv().is_err(),
        "what is open goes on for the drain's time"
    );
    drop(stream);
    held.lock().unwrap().clear();
    soon(world.server.ended.recv()).await.unwrap().unwrap();
}

/// Where the answer to the GOAWAY is late, as on a busy node: streams that end meanwhile come to their whole end.
#[tokio::test]
async fn what_the_last_stream_of_a_drain_sent_arrives() {
    let settings = Settings {
        goaway_timeout: Duration::from_millis(1),
        ..Settings::default()
    };
    let (world, echo) = (World::with(settings, relay).await, echo().await);
    for turn in 0..200 {
        let (mut app, copied) = world.app(echo).await;
        app.write_all(b"a").await.unwrap();
        assert_eq!(soon(app.read_u8()).await.unwrap(), b'a');
        world
            .server
            .tunnels
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .drain
            .cancel();
        // By then it is looked after the end of streams, at any moment.
        tokio::time::sleep(Duration::from_micros(3000 + 10 * turn)).await;
        app.write_all(b"bc").await.unwrap();
        app.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(app.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"bc", "turn {turn}");
        soon(copied.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn each_failure_has_its_kind() {
    let world = World::with(Settings::default(), |request: Request| match request.target {
        Ok(Authority::Addr(addr)) => request.respond.refuse(addr.port()),
        _ => request.respond.refuse(400),
    })
    .await;
    for (status, kind, retry) in [
        (401, FailureKind::Denied, false),
        (400, FailureKind::Connect, true),
        (503, FailureKind::Connect, true),
    ] {
        let err = world.connect(([10, 0, 0, 1], status).into()).await.unwrap_err();
        assert!(
            matches!(err, ConnectError::Refused { status: got, .. } if got == status),
            "{err:?}"
        );
        assert_eq!((err.kind(), err.may_retry()), (kind, retry));
    }
    assert_eq!(world.pool.counts(), (1, 0), "a refusal gives its place back");

    let (listener, dead) = listen().await;
    drop(listener);
    let err = attempt(&world, dead, || Ok(world.client())).await;
    assert!(matches!(err, ConnectError::Dial { .. }), "{err:?}");
    assert_eq!((err.kind(), err.may_retry()), (FailureKind::Connect, true));

    let other = ["spiffe://cluster.local/ns/shop/sa/pay".parse().unwrap()];
    let config = || tls::client(&world.sessions, world.ca.svid(CLIENT), other.clone().into());
    let err = attempt(&world, world.server.addr, config).await;
    assert!(matches!(err, ConnectError::Tls { .. }), "{err:?}");
    assert_eq!(err.kind(), FailureKind::Identity);

    let foreign = tls::sample::Ca::new();
    let accept = || [super::world::SERVER.parse().unwrap()].into();
    let config = || tls::client(&world.sessions, foreign.svid(CLIENT), accept());
    let err = attempt(&world, world.server.addr, config).await;
    assert_eq!(err.kind(), FailureKind::Tls, "{err:?}");

    let config = || Err(tls::TlsError::Random);
    let err = attempt(&world, world.server.addr, config).await;
    assert_eq!((err.kind(), err.may_retry()), (FailureKind::Identity, false));
}

/// One connect in a pool of its own.
async fn attempt(
    world: &World,
    gateway: SocketAddr,
    config: impl FnOnce() -> Result<tls::Client, tls::TlsError>,
) -> ConnectError {
    let mut key = world.key();
    key.gateway = gateway;
    let pool = Pool::new(Settings::default(), Lanes::default());
    soon(pool.connect(key, config, move || dial(gateway), request(nowhere())))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn deadlines_end_what_hangs() {
    let short = Duration::from_millis(30);
    let settings = Settings {
        dial_timeout: short,
        handshake_timeout: short,
        answer_timeout: short,
        ..Settings::default()
    };
    let held = Arc::new(Mutex::new(Vec::new()));
    let world = World::with(settings, move |request| held.lock().unwrap().push(request)).await;
    let config = || Ok(world.client());

    let never = || std::future::pending::<std::io::Result<tokio::net::TcpStream>>();
    let err = soon(world.pool.connect(world.key(), config, never, request(nowhere())))
        .await
        .unwrap_err();
    assert!(
        matches!(&err, ConnectError::Dial { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
    );

    let (listener, silent) = listen().await;
    let mut key = world.key();
    key.gateway = silent;
    let err = soon(
        world
            .pool
            .connect(key, config, move || dial(silent), request(nowhere())),
    )
    .await
    .unwrap_err();
    assert!(matches!(&err, ConnectError::Tls { .. }), "{err:?}");
    drop(listener);

    let err = world.connect(nowhere()).await.unwrap_err();
    assert!(matches!(&err, ConnectError::Unanswered { .. }), "{err:?}");
    assert_eq!(world.pool.counts(), (1, 0));
}

#[tokio::test]
async fn other_methods_and_other_targets_are_told_apart() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let world = World::with(Settings::default(), {
        let seen = seen.clone();
        move |request: Request| {
            let refusal = request.target.unwrap_err();
            request.respond.refuse(refusal.http_status());
            seen.lock().unwrap().push(refusal);
        }
    })
    .await;
    let (mut sender, connection) = h2::client::handshake(world.raw().await).await.unwrap();
    tokio::spawn(connection);
    let get = http::Request::get("https://10.0.0.1/").body(()).unwrap();
    let (answer, _) = sender.send_request(get, true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 400);
    let mut connect = http::Request::new(());
    *connect.method_mut() = http::Method::CONNECT;
    *connect.uri_mut() = "stock.shop".parse().unwrap();
    let (answer, _) = sender.send_request(connect, true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 400);
    assert_eq!(
        *seen.lock().unwrap(),
        [Refusal::NotConnect, Refusal::BadAuthority("stock.shop".into())]
    );
}

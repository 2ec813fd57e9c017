//! An app's first bytes, which go out with the CONNECT where the other end takes them.

use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use h2::server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::world::{World, dial, listen, pair, relay, request, soon};
use crate::{
    hbone::{AppSide, ConnectError, ConnectRequest, Request, Settings, Stream, copy},
    mesh::FailureKind,
    net::{
        copy::{CopyError, Counters},
        tls,
    },
};

const FIRST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// For how long what must not come is waited for.
const NEVER: Duration = Duration::from_millis(300);

impl World {
    /// A stream for an app that has sent [`FIRST`] already.
    async fn connect_early(&self, target: std::net::SocketAddr) -> Result<Stream, ConnectError> {
        let gateway = self.server.addr;
        let request = ConnectRequest {
            first: Bytes::from_static(FIRST),
            ..request(target)
        };
        let connecting = self
            .pool
            .connect(self.key(), || Ok(self.client()), move || dial(gateway), request);
        soon(connecting).await
    }
}

type Copying = JoinHandle<Result<(), CopyError>>;

/// The app of a stream, after what it has sent already.
async fn app_of(stream: Stream) -> (TcpStream, Arc<Counters>, Copying) {
    let (app, agent) = pair().await;
    let counters = Arc::new(Counters::default());
    let counted = Arc::clone(&counters);
    let copying = tokio::spawn(async move {
        copy(
            agent,
            (stream, Bytes::from_static(FIRST)),
            AppSide::Dialled,
            &*counted,
        )
        .await
    });
    (app, counters, copying)
}

/// Notes for each request whether bytes had come with it, when they had the time to.
fn noting() -> (impl Fn(Request) + Clone + Send + 'static, Arc<Mutex<Vec<bool>>>) {
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let on_request = move |mut request: Request| {
        let noted = Arc::clone(&noted);
        tokio::spawn(async move {
            sleep(Duration::from_millis(50)).await;
            noted.lock().unwrap().push(request.respond.has_first_bytes());
            relay(request);
        });
    };
    (on_request, seen)
}

#[tokio::test]
async fn they_wait_for_the_first_answer_of_a_tunnel_and_come_with_every_connect_after_it() {
    let (on_request, seen) = noting();
    let world = World::with(Settings::default(), on_request).await;
    let (listener, target) = listen().await;
    for _ in 0..3 {
        let stream = world.connect_early(target).await.unwrap();
        let (mut served, _) = soon(listener.accept()).await.unwrap();
        let (mut app, counters, copying) = app_of(stream).await;
        app.write_all(b"and more").await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon(served.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, [FIRST, b"and more"].concat());
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let mut answer = Vec::new();
        soon(app.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"answer");
        soon(copying).await.unwrap().unwrap();
        assert_eq!(counters.read(), (got.len() as u64, 6));
    }
    assert_eq!(*seen.lock().unwrap(), [false, true, true]);
    assert_eq!(world.tunnels(), 1);
}

#[tokio::test]
async fn an_app_that_sends_no_more_than_them_comes_to_its_end() {
    let world = World::new().await;
    let (listener, target) = listen().await;
    for _ in 0..2 {
        let stream = world.connect_early(target).await.unwrap();
        let (mut served, _) = soon(listener.accept()).await.unwrap();
        let (mut app, _, copying) = app_of(stream).await;
        app.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon(served.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, FIRST);
        drop(served);
        soon(copying).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_agent_of_another_kind_gets_them_after_its_answer_only() {
    let world = World::new().await;
    let (listener, addr) = listen().await;
    let domains = ["cluster.local".parse().unwrap()];
    let side = tls::server(&world.sessions, world.server_cert.clone(), &domains).unwrap();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let (stream, _) = tls::accept(tcp, side, NEVER * 10).await.unwrap();
        let mut connection = server::handshake(stream).await.unwrap();
        for _ in 0..2 {
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut body = request.into_body();
            let driven = async { while connection.accept().await.is_some() {} };
            let early = async {
                let early = timeout(NEVER, body.data()).await;
                assert!(early.is_err(), "{early:?} came before the answer");
                let answer = respond.send_response(http::Response::new(()), false);
                drop(answer.unwrap());
                body.data().await.unwrap().unwrap()
            };
            let first = tokio::select! {
                () = driven => panic!("the tunnel ended"),
                first = early => first,
            };
            assert_eq!(first, FIRST);
        }
    });
    for _ in 0..2 {
        let key = crate::hbone::TunnelKey {
            gateway: addr,
            ..world.key()
        };
        let request = ConnectRequest {
            first: Bytes::from_static(FIRST),
            ..request(addr)
        };
        let connecting = world
            .pool
            .connect(key, || Ok(world.client()), move || dial(addr), request);
        let (_app, _, copying) = app_of(soon(connecting).await.unwrap()).await;
        // The other agent drops the stream, which ends it.
        let _ = soon(copying).await.unwrap();
    }
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_refusal_leaves_them_to_the_next_attempt() {
    let refuse = Arc::new(Mutex::new(false));
    let refusing = Arc::clone(&refuse);
    let world = World::with(Settings::default(), move |request: Request| {
        match *refusing.lock().unwrap() {
            true => request.respond.refuse(503),
            false => relay(request),
        }
    })
    .await;
    let (listener, target) = listen().await;
    drop(world.connect_early(target).await.unwrap());
    drop(soon(listener.accept()).await.unwrap());
    *refuse.lock().unwrap() = true;
    for _ in 0..20 {
        let error = world.connect_early(target).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Refused { status: 503, .. }),
            "{error}"
        );
        assert!(error.may_retry());
    }
    *refuse.lock().unwrap() = false;
    let stream = world.connect_early(target).await.unwrap();
    let (mut served, _) = soon(listener.accept()).await.unwrap();
    let (mut app, _, _copying) = app_of(stream).await;
    app.shutdown().await.unwrap();
    let mut got = Vec::new();
    soon(served.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, FIRST);
    assert_eq!(world.tunnels(), 1, "refusals broke the tunnel");
}

#[tokio::test]
async fn where_the_tunnel_breaks_before_the_answer_nothing_is_sent_twice() {
    let arrived = Arc::new(Notify::new());
    let hold = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (arriving, holding) = (Arc::clone(&arrived), Arc::clone(&hold));
    let world = World::with(Settings::default(), move |request: Request| {
        if !holding.load(SeqCst) {
            return relay(request);
        }
        let arriving = Arc::clone(&arriving);
        tokio::spawn(async move {
            arriving.notify_one();
            let _held = request;
            std::future::pending::<()>().await;
        });
    })
    .await;
    let (listener, target) = listen().await;
    drop(world.connect_early(target).await.unwrap());
    drop(soon(listener.accept()).await.unwrap());
    hold.store(true, SeqCst);
    let (error, ()) = tokio::join!(world.connect_early(target), async {
        arrived.notified().await;
        world.server.tunnels.lock().unwrap()[0].kill.cancel();
    });
    let error = error.unwrap_err();
    assert!(matches!(error, ConnectError::InDoubt { .. }), "{error}");
    assert!(!error.may_retry());
    assert_eq!(error.kind(), FailureKind::H2Handshake);
}

#[tokio::test]
async fn a_window_that_is_too_small_for_them_takes_them_bit_by_bit() {
    let settings = Settings {
        stream_window: 5,
        ..Settings::default()
    };
    let world = World::with(settings, relay).await;
    let (listener, target) = listen().await;
    for _ in 0..2 {
        let stream = world.connect_early(target).await.unwrap();
        let (mut served, _) = soon(listener.accept()).await.unwrap();
        let (mut app, _, _copying) = app_of(stream).await;
        app.write_all(b"and more").await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = Vec::new();
        soon(served.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, [FIRST, b"and more"].concat());
    }
}

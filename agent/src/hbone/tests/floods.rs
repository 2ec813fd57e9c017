//! Peers that mean harm, with frames written by hand: each loses its own tunnel and nobody else notices.

use std::{sync::Arc, sync::Mutex, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};

use super::world::{World, echo, listen, soon, until};
use crate::{
    hbone::{Authority, Request, ServeError, Settings, Stream},
    net::tls::ClientStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// RFC 9113 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A CONNECT with END_HEADERS; its two fields are literals without indexing (RFC 7541 6.2.2).
fn connect(stream: u32, authority: &str) -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, authority.len() as u8]);
    block.extend(authority.as_bytes());
    frame(HEADERS, 0x4, stream, &block)
}

fn preface() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Holds streams without reading them; relays those that lead to a real app.
async fn world() -> (World, Arc<Mutex<Vec<Stream>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let streams = held.clone();
    let on_request = move |request: Request| match &request.target {
        Ok(Authority::Addr(addr)) if addr.ip().is_loopback() => super::world::relay(request),
        _ => streams.lock().unwrap().extend(request.respond.accept(None).ok()),
    };
    (World::with(Settings::default(), on_request).await, held)
}

/// Sends `frames` on a tunnel of its own. The server must end it for breaking the rules, while another goes on.
async fn check(frames: &[u8]) {
    let (mut world, _held) = world().await;
    let (mut app, _copy) = world.app(echo().await).await;
    let (read, mut write) = tokio::io::split(world.raw().await);
    let reader = tokio::spawn(drain(read));
    // The server may close while this is still writing.
    let _ = write.write_all(frames).await;
    let _ = write.flush().await;
    let ended = soon(world.server.ended.recv()).await.unwrap();
    assert!(matches!(ended, Err(ServeError::Protocol(_))), "{ended:?}");
    app.write_all(b"x").await.unwrap();
    assert_eq!(soon(app.read_u8()).await.unwrap(), b'x');
    soon(reader).await.unwrap();
}

/// Reads frames until one answers a PING.
async fn pong(read: &mut ReadHalf<ClientStream>) {
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        read.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3..5] == [PING, 1] {
            return;
        }
    }
}

async fn drain(mut read: ReadHalf<ClientStream>) {
    let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once() {
    let mut frames = preface();
    for i in 0..400 {
        frames.extend(connect(2 * i + 1, "10.0.0.1:80"));
        frames.extend(frame(RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes()));
    }
    check(&frames).await;
}

#[tokio::test]
async fn more_streams_than_are_allowed() {
    let mut frames = preface();
    for i in 0..2000 {
        frames.extend(connect(2 * i + 1, "10.0.0.1:80"));
    }
    check(&frames).await;
}

#[tokio::test]
async fn bytes_one_by_one_on_streams_that_nobody_reads() {
    let mut frames = [preface(), connect(1, "10.0.0.1:80")].concat();
    for _ in 0..240_000 {
        frames.extend(frame(DATA, 0, 1, b"x"));
    }
    check(&frames).await;
}

/// As many as one turn of the event loop may take in before anybody reads: h2's own limit would end the tunnel.
#[tokio::test]
async fn a_burst_of_single_bytes_is_no_flood() {
    let (mut world, held) = world().await;
    let mut frames = [preface(), connect(1, "10.0.0.1:80")].concat();
    for _ in 0..50_000 {
        frames.extend(frame(DATA, 0, 1, b"x"));
    }
    frames.extend(frame(DATA, 1, 1, b""));
    frames.extend(frame(PING, 0, 0, &[7; 8]));
    let (mut read, mut write) = tokio::io::split(world.raw().await);
    write.write_all(&frames).await.unwrap();
    write.flush().await.unwrap();
    // Everything has been taken in when the PING behind it is answered.
    soon(pong(&mut read)).await;
    let mut stream = held.lock().unwrap().pop().unwrap();
    let mut got = 0;
    while let Some(chunk) = soon(stream.recv.data()).await {
        got += chunk.unwrap().len();
    }
    assert_eq!(got, 50_000);
    assert!(world.server.ended.try_recv().is_err());
}

#[tokio::test]
async fn data_frames_without_data() {
    let mut frames = [preface(), connect(1, "10.0.0.1:80")].concat();
    for _ in 0..200 {
        frames.extend(frame(DATA, 0, 1, b""));
    }
    check(&frames).await;
}

#[tokio::test]
async fn more_data_than_the_window() {
    let mut frames = [preface(), connect(1, "10.0.0.1:80")].concat();
    for _ in 0..5 {
        frames.extend(frame(DATA, 0, 1, &vec![0; 1 << 20]));
    }
    // A stream's window is a stream's error: a reset, of which the peer may have a thousand.
    let (world, held) = world().await;
    let (read, mut write) = tokio::io::split(world.raw().await);
    tokio::spawn(drain(read));
    write.write_all(&frames).await.unwrap();
    write.flush().await.unwrap();
    until(|| held.lock().unwrap().len() == 1).await;
    let reset = async {
        let mut stream = held.lock().unwrap().pop().unwrap();
        loop {
            match stream.recv.data().await {
                Some(Ok(_)) => {}
                other => return other.is_some(),
            }
        }
    };
    assert!(soon(reset).await);
}

#[tokio::test]
async fn something_that_is_not_http2() {
    check(b"GET / HTTP/1.1\r\nhost: stock\r\n\r\n").await;
    check(&[preface(), vec![0xff; 64]].concat()).await;
}

#[tokio::test]
async fn nothing_at_all() {
    let settings = Settings {
        handshake_timeout: Duration::from_millis(30),
        ..Settings::default()
    };
    let mut world = World::with(settings, super::world::relay).await;
    let _raw = world.raw().await;
    let ended = soon(world.server.ended.recv()).await.unwrap();
    assert!(matches!(ended, Err(ServeError::TimedOut(_))), "{ended:?}");
}

#[tokio::test]
async fn a_head_that_is_begun_and_never_ended() {
    let settings = Settings {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let mut world = World::with(settings, super::world::relay).await;
    let (read, mut write) = tokio::io::split(world.raw().await);
    tokio::spawn(drain(read));
    // Without END_HEADERS nothing but its continuation may follow, not even the answer to a PING (RFC 9113 6.2).
    let begun = [preface(), frame(HEADERS, 0, 1, &[0x02, 7])].concat();
    write.write_all(&begun).await.unwrap();
    write.flush().await.unwrap();
    let ended = soon(world.server.ended.recv()).await.unwrap();
    assert!(matches!(ended, Err(ServeError::Gone(_))), "{ended:?}");
}

#[tokio::test]
async fn a_tunnel_that_nobody_uses_is_told_to_go() {
    let settings = Settings {
        idle_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let world = World::with(settings, super::world::relay).await;
    let (mut read, mut write) = tokio::io::split(world.raw().await);
    write.write_all(&preface()).await.unwrap();
    write.flush().await.unwrap();
    let told = async {
        loop {
            let mut head = [0; 9];
            read.read_exact(&mut head).await.unwrap();
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            read.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == GOAWAY {
                return;
            }
        }
    };
    soon(told).await;
}

#[tokio::test]
async fn a_slow_reader_of_single_bytes_costs_no_tunnel() {
    let (mut world, _held) = world().await;
    let (listener, addr) = listen().await;
    // With the acknowledgement it may use the window that the server announced (RFC 9113 6.5.3).
    let acknowledged = frame(SETTINGS, 1, 0, &[]);
    let mut frames = [preface(), acknowledged, connect(1, &addr.to_string())].concat();
    let (read, mut write) = tokio::io::split(world.raw().await);
    tokio::spawn(drain(read));
    write.write_all(&frames).await.unwrap();
    write.flush().await.unwrap();
    let (mut app, _) = soon(listener.accept()).await.unwrap();
    // Twice what the budget of unread small frames allows, to an app that does not read yet.
    frames.clear();
    for _ in 0..1000 {
        frames.extend(frame(DATA, 0, 1, b"x"));
    }
    for _ in 0..400 {
        write.write_all(&frames).await.unwrap();
    }
    write.write_all(&frame(DATA, 1, 1, b"")).await.unwrap();
    write.flush().await.unwrap();
    let mut got = Vec::new();
    soon(app.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 400_000);
    assert!(world.server.ended.try_recv().is_err());
}

//! What two apps see of each other through a tunnel: bytes, ends and resets.

use std::{io::ErrorKind, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::world::{World, echo, listen, pair, relay, soon};
use crate::{
    hbone::Settings,
    net::copy::{CopyError, Counters, copy_tcp},
};

/// The app's side of a connection through the tunnel: the client's socket, and the one that the server's app accepted.
async fn connected(world: &World) -> (TcpStream, TcpStream, super::world::Copy) {
    let (listener, addr) = listen().await;
    let (client, copy) = world.app(addr).await;
    (client, accept(&listener).await, copy)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    soon(listener.accept()).await.unwrap().0
}

async fn read_all(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    soon(socket.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

#[tokio::test]
async fn bytes_come_back_and_are_counted() {
    let world = World::new().await;
    let (mut client, copy) = world.app(echo().await).await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"hello");
    soon(copy.task).await.unwrap().unwrap();
    assert_eq!(copy.counters.read(), (5, 5));
}

#[tokio::test]
async fn the_server_may_speak_first() {
    let world = World::new().await;
    let (mut client, mut app, _copy) = connected(&world).await;
    app.write_all(b"220 ready").await.unwrap();
    let mut greeting = [0; 9];
    soon(client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test]
async fn megabytes_arrive_unchanged_both_ways_at_once() {
    let world = World::new().await;
    let (client, copy) = world.app(echo().await).await;
    let sent: Vec<u8> = (0..24u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let expect = sent.clone();
    let (mut read, mut write) = client.into_split();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    soon(read.read_to_end(&mut got)).await.unwrap();
    assert!(got == expect);
    writer.await.unwrap();
    soon(copy.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_the_answer() {
    let world = World::new().await;
    let (mut client, mut app, copy) = connected(&world).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut app).await.unwrap(), b"question");
    app.write_all(b"answer").await.unwrap();
    drop(app);
    assert_eq!(read_all(&mut client).await.unwrap(), b"answer");
    soon(copy.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_has_said_all_still_gets_the_rest() {
    let world = World::new().await;
    let (mut client, mut app, copy) = connected(&world).await;
    app.write_all(b"answer").await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"answer");
    client.write_all(b"more").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut app).await.unwrap(), b"more");
    soon(copy.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_client() {
    let world = World::new().await;
    let (mut client, app, copy) = connected(&world).await;
    app.set_zero_linger().unwrap();
    drop(app);
    assert_eq!(
        read_all(&mut client).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(matches!(
        soon(copy.task).await.unwrap(),
        Err(CopyError::Stream(_))
    ));
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_server() {
    let world = World::new().await;
    let (client, mut app, copy) = connected(&world).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(
        read_all(&mut app).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(matches!(soon(copy.task).await.unwrap(), Err(CopyError::App(_))));
}

#[tokio::test]
async fn a_reset_is_seen_while_the_other_side_does_not_read() {
    let world = World::new().await;
    let (client, _app, copy) = connected(&world).await;
    // Until nothing moves any more, so that the copy waits for room and not for the client.
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(100), client.writable()).await {
        let _ = client.try_write(&[7; 65536]);
    }
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(matches!(soon(copy.task).await.unwrap(), Err(CopyError::App(_))));
}

#[tokio::test]
async fn a_tunnel_that_dies_resets_both_apps() {
    let world = World::new().await;
    let (mut client, mut app, _copy) = connected(&world).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon(app.read_u8()).await.unwrap(), b'x');
    world.server.tunnels.lock().unwrap()[0].kill.cancel();
    assert_eq!(
        read_all(&mut client).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        read_all(&mut app).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_copy_that_is_cut_short_resets_both_apps() {
    let world = World::new().await;
    let (mut client, mut app, copy) = connected(&world).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon(app.read_u8()).await.unwrap(), b'x');
    copy.task.abort();
    assert_eq!(
        read_all(&mut client).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        read_all(&mut app).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_reader_that_stops_bounds_what_is_held_for_it_and_stops_nobody_else() {
    let settings = Settings {
        heavy_tunnels: 0,
        ..Settings::default()
    };
    let (window, read) = (u64::from(settings.stream_window), 256 * 1024);
    let world = World::with(settings, relay).await;
    let (mut client, mut app, copy) = connected(&world).await;
    let total = 64u64 << 20;
    let writer = tokio::spawn(async move {
        let chunk = vec![7; 1 << 20];
        for _ in 0..64 {
            client.write_all(&chunk).await.unwrap();
        }
        client.shutdown().await.unwrap();
    });
    let mut before = u64::MAX;
    while before != copy.counters.read().0 {
        before = copy.counters.read().0;
        sleep(Duration::from_millis(100)).await;
    }
    // The stream's window, one read of each agent, and the socket buffers in between; the kernel's grow to 6 MiB.
    assert!(
        before < window + 2 * read + (12 << 20),
        "{before} bytes were taken in"
    );
    let (mut other, _other) = world.app(echo().await).await;
    other.write_all(b"hello").await.unwrap();
    other.shutdown().await.unwrap();
    assert_eq!(read_all(&mut other).await.unwrap(), b"hello");
    assert_eq!(world.tunnels(), 1);
    let got = read_all(&mut app).await.unwrap();
    assert!(got.len() as u64 == total && got.iter().all(|&byte| byte == 7));
    writer.await.unwrap();
}

#[tokio::test]
async fn plain_tcp_follows_the_same_rules() {
    let (mut client, near) = pair().await;
    let (far, mut app) = pair().await;
    let copied = tokio::spawn(async move {
        let counters = Counters::default();
        copy_tcp(near, far, Bytes::new(), &counters)
            .await
            .map(|()| counters.read())
    });
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut app).await.unwrap(), b"question");
    app.write_all(b"the answer").await.unwrap();
    drop(app);
    assert_eq!(read_all(&mut client).await.unwrap(), b"the answer");
    assert_eq!(soon(copied).await.unwrap().unwrap(), (8, 10));
}

#[tokio::test]
async fn plain_tcp_passes_resets_on() {
    for client_resets in [true, false] {
        let (client, near) = pair().await;
        let (far, app) = pair().await;
        let copied =
            tokio::spawn(async move { copy_tcp(near, far, Bytes::new(), &Counters::default()).await });
        let (resets, mut sees) = if client_resets {
            (client, app)
        } else {
            (app, client)
        };
        resets.set_zero_linger().unwrap();
        drop(resets);
        assert_eq!(
            read_all(&mut sees).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        match soon(copied).await.unwrap() {
            Err(CopyError::App(_)) => assert!(client_resets),
            Err(CopyError::Upstream(_)) => assert!(!client_resets),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn eight_readers_that_stop_do_not_stop_the_ninth() {
    let settings = Settings {
        heavy_tunnels: 0,
        ..Settings::default()
    };
    let window = u64::from(settings.connection_window);
    let world = World::with(settings, relay).await;
    let mut stopped = Vec::new();
    for _ in 0..8 {
        let (mut client, app, copy) = connected(&world).await;
        let writer = tokio::spawn(async move {
            let chunk = vec![7; 1 << 20];
            while client.write_all(&chunk).await.is_ok() {}
        });
        stopped.push((writer, app, copy));
    }
    let moved = || {
        stopped
            .iter()
            .map(|(.., copy)| copy.counters.read().0)
            .sum::<u64>()
    };
    let mut before = u64::MAX;
    while before != moved() {
        before = moved();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(before > window, "{before} bytes in flight do not fill the tunnel");
    let (mut client, copy) = world.app(echo().await).await;
    assert_eq!(world.tunnels(), 1);
    let sent = vec![5; 3 << 20];
    let (mut read, mut write) = client.split();
    let (written, got) = tokio::join!(soon(write.write_all(&sent)), async {
        let mut got = vec![0; sent.len()];
        soon(read.read_exact(&mut got)).await.map(|_| got)
    });
    written.unwrap();
    assert!(got.unwrap() == sent);
    drop((client, copy));
    for (writer, ..) in &stopped {
        writer.abort();
    }
}

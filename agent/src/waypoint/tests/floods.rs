//! Clients that mean harm, with frames written by hand: each loses its own connection, and nobody else notices.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{App, Plan, World, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// RFC 9113 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A GET of `/` on `web`, as fields of the static table and one literal (RFC 7541 A, 6.2.2).
fn get(stream: u32, flags: u8) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, 3];
    block.extend(b"web");
    frame(HEADERS, flags, stream, &block)
}

async fn world() -> (App, World) {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    (app, plan.start().await)
}

/// Sends frames on a connection of their own, which must end, while another goes on.
async fn check(name: &str, frames: &[u8]) {
    let (_app, world) = world().await;
    let mut other = world.http1().await;
    let ask = super::world::get;
    assert_eq!(soon(other.send_request(ask("/"))).await.unwrap().status(), 200);
    let io = world.connect(world.web).await.unwrap();
    let (mut read, mut write) = tokio::io::split(io);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = read.read_to_end(&mut all).await;
    });
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let _ = write.write_all(&begun).await;
    for piece in frames.chunks(32 * 1024) {
        if write.write_all(piece).await.is_err() {
            break;
        }
    }
    tokio::time::timeout(std::time::Duration::from_secs(20), reading)
        .await
        .unwrap_or_else(|_| panic!("{name} goes on"))
        .unwrap();
    soon(other.ready()).await.unwrap();
    assert_eq!(
        soon(other.send_request(ask("/"))).await.unwrap().status(),
        200,
        "{name}"
    );
    assert_eq!(world.get("/").await.status(), 200, "{name}");
}

#[tokio::test]
async fn rapid_resets_cost_the_client_its_connection() {
    let reset = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let frames: Vec<u8> = (0..20_000)
        .flat_map(|nth| [get(2 * nth + 1, 5), reset(2 * nth + 1)].concat())
        .collect();
    check("rapid reset", &frames).await;
}

#[tokio::test]
async fn a_head_without_an_end_costs_the_client_its_connection() {
    let mut frames = get(1, 1);
    for _ in 0..20_000 {
        frames.extend(frame(CONTINUATION, 0, 1, &[0x00, 1, b'a', 1, b'b'].repeat(20)));
    }
    check("CONTINUATION", &frames).await;
}

#[tokio::test]
async fn broken_frames_cost_the_client_its_connection() {
    check("HEADERS on stream 0", &get(0, 5)).await;
    check("a window of zero", &frame(8, 0, 0, &0_u32.to_be_bytes())).await;
    check("a frame that is too long", &frame(0, 0, 1, &vec![0; 200_000])).await;
}

#[tokio::test]
async fn floods_of_what_must_be_answered_harm_nobody_else() {
    let (_app, world) = world().await;
    for flood in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let io = world.connect(world.web).await.unwrap();
        // Nothing is read: what must be answered stays unsent.
        let (_read, mut write) = tokio::io::split(io);
        let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        let _ = write.write_all(&begun).await;
        let flood = flood.repeat(1000);
        for _ in 0..50 {
            let wrote =
                tokio::time::timeout(std::time::Duration::from_millis(200), write.write_all(&flood)).await;
            if !matches!(wrote, Ok(Ok(()))) {
                break;
            }
        }
        assert_eq!(world.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_holds_up_nobody_else() {
    let (_app, world) = world().await;
    let io = world.connect(world.web).await.unwrap();
    let (_read, mut write) = tokio::io::split(io);
    // SETTINGS_INITIAL_WINDOW_SIZE of 0.
    let closed = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let gets: Vec<u8> = (0..100).flat_map(|nth| get(2 * nth + 1, 5)).collect();
    write
        .write_all(&[PREFACE, &closed, &gets].concat())
        .await
        .unwrap();
    for _ in 0..10 {
        assert_eq!(world.get("/").await.status(), 200);
    }
}

//! A bulk stream and its tunnel go on on threads of their own, and come back when it is over.

use std::{fs, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    time::sleep,
};

use super::world::{World, echo, relay_among, soon};
use crate::{hbone::Settings, net::lanes::Lanes};

/// Long enough without bulk for a tunnel to count as light again.
const OVER: Duration = Duration::from_millis(1300);
const CHUNK: usize = 1 << 20;

/// How often a thread of this process has gone to sleep; `None` if there is none of this name.
fn sleeps(thread: &str) -> Option<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let field = |status: &str, name: &str| {
        let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
        lines
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let found = status
        .into_iter()
        .find(|status| field(status, "Name").is_some_and(|name| name == thread));
    found.map(|status| {
        field(&status, "voluntary_ctxt_switches")
            .unwrap()
            .parse()
            .unwrap()
    })
}

/// Sends so many MiB, no two of them the same, and gets them back.
async fn echoed(app: &mut TcpStream, mib: u8) {
    let (mut read, mut write) = app.split();
    let sent = async {
        for n in 0..mib {
            write.write_all(&vec![n; CHUNK]).await.unwrap();
        }
    };
    let received = async {
        let mut chunk = vec![0; CHUNK];
        for n in 0..mib {
            read.read_exact(&mut chunk).await.unwrap();
            assert!(chunk.iter().all(|byte| *byte == n), "MiB {n}");
        }
    };
    soon(async { tokio::join!(sent, received) }).await;
}

async fn talks(app: &mut TcpStream) {
    app.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    soon(app.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn bulk_goes_on_on_threads_of_its_own_and_comes_back() {
    let lanes = |name: &str| Lanes::new(Handle::current(), name.to_owned());
    let [near, far] = [lanes("bulk-near"), lanes("bulk-far")];
    let apps = far.clone();
    let relay = move |request| relay_among(&apps, request);
    let world = World::among([near.clone(), far.clone()], Settings::default(), relay).await;
    let target = echo().await;
    let (mut small, mut bulk) = (world.roaming_app(target).await, world.roaming_app(target).await);
    talks(&mut small).await;
    talks(&mut bulk).await;
    let both = || ["bulk-near", "bulk-far"].map(sleeps);
    assert_eq!(both(), [None, None], "nothing has carried bulk");
    for _ in 0..2 {
        echoed(&mut bulk, 64).await;
        assert!(both().iter().all(Option::is_some), "no thread for bulk");
        // One that was in the tunnel before goes on in it, wherever it is.
        talks(&mut small).await;
        sleep(OVER).await;
        talks(&mut bulk).await;
        talks(&mut small).await;
        let back = both().map(Option::unwrap);
        for _ in 0..100 {
            talks(&mut bulk).await;
            talks(&mut small).await;
        }
        // Each of those would have been some, had anything stayed there.
        let after = both().map(Option::unwrap);
        assert!(
            after.iter().zip(back).all(|(after, back)| after - back < 50),
            "{back:?} to {after:?}"
        );
    }
    assert_eq!(world.tunnels(), 1);
}

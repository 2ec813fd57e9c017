//! What the programs and the agent share of the kernel path: connections between two pods of one node that go from app
//! to app, after the agent has decided that they may.

use crate::{Address, Tuple};

/// Key of `VERDICTS` and `SERVICES`: who dials, and what.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The netns cookie of the pod that dials.
    pub source: u64,
    /// What is dialled: a pod's address for `VERDICTS`, a service's for `SERVICES`.
    pub addr: Address,
    /// The port, host order.
    pub port: u32,
    /// Nothing.
    pub reserved: u32,
}

/// Key of `CHOICES`: one of the endpoints that a service has for the pod that dials.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChoiceKey {
    /// As in [`Pair`].
    pub source: u64,
    /// The service's address.
    pub addr: Address,
    /// Its port, host order.
    pub port: u32,
    /// From 0 to the number that `SERVICES` gives.
    pub number: u32,
}

/// Value of `CHOICES`: an endpoint on this node that is dialled directly. The others go through the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// The pod's address.
    pub addr: Address,
    /// The pod's port, host order.
    pub port: u32,
}

/// How many connections `DIRECTS` holds.
pub const MOST_DIRECTS: u32 = 65_536;
/// With so many, new connections go through the agent: room for those that begin at this moment.
pub const MANY_DIRECTS: u64 = MOST_DIRECTS as u64 - 4_096;

/// Value of `DIRECTS`, keyed by the tuple as the dialling socket has it: a connection from app to app, from its SYN until
/// the dialling socket is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The netns cookie of the pod, or of the node, that dialled.
    pub source: u64,
    /// When, by the kernel's monotonic clock, in ns.
    pub since: u64,
    /// What the app dialled: the pod, or a service.
    pub dialled: Address,
    /// Its port.
    pub port: u32,
    /// See [`stage`].
    pub stage: u32,
    /// What the kernel knows the dialling socket by: its addresses may be another's by the time that it is to be ended.
    pub client: u64,
    /// And the app's, once it has the connection; 0 before.
    pub app: u64,
}

/// Values of [`Direct::stage`].
pub mod stage {
    /// The SYN is on its way.
    pub const SYN: u32 = 0;
    /// The dialled pod's own `sk_lookup` has seen the SYN and let it through to the app.
    pub const ADMITTED: u32 = 1;
    /// The app has the connection: no other SYN of the same tuple may use it.
    pub const OPEN: u32 = 2;
    /// The dialled pod has seen the SYN, but the verdict was gone by then: it is judged as plaintext, and is the agent's.
    pub const PLAINTEXT: u32 = 3;
    /// Somebody else has answered. What the socket sends stays in its own pod and may look for a listener there: it is
    /// nobody's.
    pub const STRANGER: u32 = 4;
}

/// What the programs report through `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Both ends, as the dialling socket has them.
    pub tuple: Tuple,
    /// See [`event`].
    pub kind: u32,
    /// As it was then.
    pub direct: Direct,
    /// When, by the kernel's monotonic clock, in ns.
    pub at: u64,
    /// Bytes that the client sent and the server has acknowledged.
    pub sent: u64,
    /// Bytes that the client received.
    pub received: u64,
}

/// Values of [`Event::kind`].
pub mod event {
    /// A connection has come about.
    pub const OPENED: u32 = 1;
    /// The dialling socket is closed; one that was not [`OPENED`] has failed.
    pub const CLOSED: u32 = 2;
    /// A SYN had to be sent again, and the dialled pod has not seen it: something on the way drops it.
    pub const BLOCKED: u32 = 3;
    /// Somebody else than the dialled pod has answered: the socket can send nothing any more.
    pub const STRANGER: u32 = 4;
}

const _: () = {
    assert!(size_of::<Pair>() == 32);
    assert!(size_of::<ChoiceKey>() == 32);
    assert!(size_of::<Choice>() == 20);
    assert!(size_of::<Direct>() == 56);
    assert!(size_of::<Event>() == 36 + 4 + 56 + 24);
};

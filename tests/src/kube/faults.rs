//! Troubles that an API server has, made to order: for one resource or for all, once or until they are cleared.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{broadcast, watch};

use super::{failure::Failure, kinds::Kind, random::Random};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answers, and each event of a watch, are late by so much.
    Slow(Duration),
    /// Requests are refused with this code: 429 asks to come back in a second, any other says so and no more.
    Fail(u16),
    /// A watch breaks in the middle of a line, after so many whole ones.
    Cut {
        /// Whole lines before, bookmarks among them.
        after: usize,
    },
    /// Lists that do not ask for a version show this one, though there are newer ones.
    Stale {
        /// A resourceVersion that is not forgotten.
        version: u64,
    },
    /// Each event of a watch comes twice.
    Duplicate,
    /// Events of a watch come in another order, those of one object in their own. No API server does this: a client
    /// that loses the connection in between misses what was held back.
    Reorder,
    /// Lists are refused with 410, watches get the ERROR event.
    Gone,
}

/// Where and how often a [`Fault`] strikes: everywhere and always, unless it is told otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    fault: Fault,
    of: Of,
    verb: Option<&'static str>,
    left: Option<u32>,
}

impl Rule {
    /// Always, for every resource and verb.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            of: Of(None),
            verb: None,
            left: None,
        }
    }

    /// Only for this resource, by its plural: "pods", "gateways.networking.istio.io".
    pub fn on(mut self, resource: &str) -> Self {
        self.of = Of::resource(resource);
        self
    }

    /// Only for this verb of RBAC: "get", "list", "watch", "create", "update", "patch", "delete".
    pub fn verb(mut self, verb: &'static str) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only for the next `times` requests that it meets.
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }
}

/// One resource, or all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Of(Option<String>);

impl Of {
    pub(super) fn all() -> Self {
        Self(None)
    }

    pub(super) fn resource(name: &str) -> Self {
        Self(Some(name.to_owned()))
    }

    pub(super) fn covers(&self, kind: &Kind) -> bool {
        let Some(name) = &self.0 else { return true };
        *name == kind.plural || *name == kind.qualified()
    }
}

/// What open watches are told.
#[derive(Clone, Debug)]
pub(super) enum Signal {
    Cut(Of),
    Expire(Of),
}

/// What a watch suffers, drawn when it is opened.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    pub(super) slow: Option<Duration>,
    pub(super) cut_after: Option<usize>,
    pub(super) duplicate: bool,
    pub(super) reorder: bool,
    pub(super) gone: bool,
}

/// Whether the server answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outage {
    None,
    /// Nobody listens.
    Refusing,
    /// Connections are taken, and nothing is answered.
    Hanging,
}

/// All troubles of one server.
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
    random: Mutex<Random>,
    signals: broadcast::Sender<Signal>,
    pub(super) outage: watch::Sender<Outage>,
    /// Counts up when every connection is to break.
    pub(super) breaks: watch::Sender<u64>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rules: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            signals: broadcast::Sender::new(64),
            outage: watch::Sender::new(Outage::None),
            breaks: watch::Sender::new(0),
        }
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inject(&self, rule: Rule) {
        if rule.left != Some(0) {
            self.rules().push(rule);
        }
    }

    pub(super) fn clear(&self) {
        self.rules().clear();
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Nobody may be watching.
        let _ = self.signals.send(signal);
    }

    pub(super) fn signals(&self) -> broadcast::Receiver<Signal> {
        self.signals.subscribe()
    }

    pub(super) fn break_connections(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// The first fault of a kind that meets the request; it is used up by one.
    fn strike<T>(&self, kind: &Kind, verb: &str, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut rules = self.rules();
        let meets = |rule: &Rule| rule.of.covers(kind) && rule.verb.is_none_or(|only| only == verb);
        let at = rules
            .iter()
            .position(|rule| meets(rule) && pick(&rule.fault).is_some())?;
        let struck = pick(&rules[at].fault);
        if let Some(left) = &mut rules[at].left {
            *left -= 1;
            if *left == 0 {
                rules.remove(at);
            }
        }
        struck
    }

    /// How late an answer is to be; a watch is late by itself.
    pub(super) fn slow(&self, kind: &Kind, verb: &str) -> Option<Duration> {
        self.strike(kind, verb, |fault| match fault {
            Fault::Slow(late) => Some(*late),
            _ => None,
        })
    }

    /// The refusal that a request meets.
    pub(super) fn failure(&self, kind: &Kind, verb: &str) -> Option<Failure> {
        let failed = self.strike(kind, verb, |fault| match fault {
            Fault::Fail(code) => Some(*code),
            Fault::Gone if verb == "list" => Some(410),
            _ => None,
        });
        Some(match failed? {
            429 => Failure::new(
                429,
                "TooManyRequests",
                "Too many requests, please try again later.",
            )
            .retry_after(1),
            410 => Failure::expired("The resourceVersion for the provided list is too old."),
            503 => Failure::new(503, "ServiceUnavailable", "apiserver is shutting down"),
            code => Failure::new(code, "InternalError", "Internal error occurred: made to order"),
        })
    }

    /// The version that a list is to show.
    pub(super) fn stale(&self, kind: &Kind) -> Option<u64> {
        self.strike(kind, "list", |fault| match fault {
            Fault::Stale { version } => Some(*version),
            _ => None,
        })
    }

    pub(super) fn troubles(&self, kind: &Kind) -> Troubles {
        let has = |wanted: &Fault| {
            self.strike(kind, "watch", |fault| (fault == wanted).then_some(()))
                .is_some()
        };
        Troubles {
            slow: self.slow(kind, "watch"),
            cut_after: self.strike(kind, "watch", |fault| match fault {
                Fault::Cut { after } => Some(*after),
                _ => None,
            }),
            duplicate: has(&Fault::Duplicate),
            reorder: has(&Fault::Reorder),
            gone: has(&Fault::Gone),
        }
    }

    /// Another order, in which each key's own order is kept.
    pub(super) fn shuffle(&self, events: &mut Vec<(String, Bytes)>) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<String> = events.iter().map(|(key, _)| key.clone()).collect();
        let mut order = keys.clone();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        let mut left = std::mem::take(events);
        for key in order {
            if let Some(at) = left.iter().position(|(own, _)| *own == key) {
                events.push(left.remove(at));
            }
        }
    }

    /// Returns while the server answers, otherwise waits until it does again.
    pub(super) async fn answering(&self) {
        let mut outage = self.outage.subscribe();
        // The sender lives as long as the server, which is borrowed.
        let _ = outage.wait_for(|outage| *outage != Outage::Hanging).await;
    }
}

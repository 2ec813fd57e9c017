//! Addresses that the mesh does not have, or not yet: somebody dials one, and the feed is asked for it at once.
//!
//! The seam between the data plane and whichever feed there is: [`OnDemand`] is the side that asks, [`Lookups`] the side
//! that answers. An answer carries nothing: whoever answers has put a mesh in force by then that has the address, or
//! leaves the mesh as it is. The same address is asked for once at a time, however many wait for it, and what waits has a
//! deadline. Not here: what happens to a connection whose address stays unknown (`mesh::route` refuses it).

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// How long a connection waits for what it dialled to become known.
const DEADLINE: Duration = Duration::from_secs(2);
/// Addresses that are looked up at once.
const MOST: usize = 256;
/// The same on behalf of one pod, so that one that tries address after address leaves room for the others.
const MOST_OF_POD: usize = 32;

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The feed has done what it could: the mesh in force says whether the address is known.
    Answered,
    /// The feed has not answered in time.
    TimedOut,
    /// Too many are under way; the feed was not asked.
    TooMany,
}

/// Asks the feed for addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OnDemand {
    queue: mpsc::Sender<Lookup>,
    under_way: UnderWay,
}

/// What the feed is asked.
#[derive(Debug)]
pub struct Lookups {
    queue: mpsc::Receiver<Lookup>,
}

/// One address that somebody dialled. Dropping it is the answer.
#[derive(Debug)]
pub struct Lookup {
    address: IpAddr,
    /// Whoever waits sees it go.
    answered: watch::Sender<()>,
    under_way: UnderWay,
}

type UnderWay = Arc<Mutex<FxHashMap<IpAddr, Asked>>>;

#[derive(Debug)]
struct Asked {
    /// The uid of the pod that dialled first.
    by: Arc<str>,
    answered: watch::Receiver<()>,
}

/// Both sides of the seam.
pub fn on_demand() -> (OnDemand, Lookups) {
    let (sender, receiver) = mpsc::channel(MOST);
    let on_demand = OnDemand {
        queue: sender,
        under_way: UnderWay::default(),
    };
    (on_demand, Lookups { queue: receiver })
}

impl OnDemand {
    /// Waits until the feed has looked for an address that a pod dialled, for 2 s at most.
    pub async fn look_up(&self, pod: &Arc<str>, address: IpAddr) -> Answer {
        self.look_up_within(pod, address, DEADLINE).await
    }

    async fn look_up_within(&self, pod: &Arc<str>, address: IpAddr, deadline: Duration) -> Answer {
        let Some(mut answered) = self.ask(pod, address) else {
            return Answer::TooMany;
        };
        // Nothing is ever sent: it ends when the other end is dropped.
        match timeout(deadline, answered.changed()).await {
            Ok(_) => Answer::Answered,
            Err(_) => Answer::TimedOut,
        }
    }

    fn ask(&self, pod: &Arc<str>, address: IpAddr) -> Option<watch::Receiver<()>> {
        let (lookup, waiting) = {
            let mut under_way = lock(&self.under_way);
            if let Some(asked) = under_way.get(&address) {
                return Some(asked.answered.clone());
            }
            let of_pod = under_way.values().filter(|asked| asked.by == *pod).count();
            if under_way.len() >= MOST || of_pod >= MOST_OF_POD {
                return None;
            }
            let (answered, waiting) = watch::channel(());
            let by = Arc::clone(pod);
            let asked = Asked {
                by,
                answered: waiting.clone(),
            };
            under_way.insert(address, asked);
            let under_way = Arc::clone(&self.under_way);
            (
                Lookup {
                    address,
                    answered,
                    under_way,
                },
                waiting,
            )
        };
        // Not under the lock: what the queue does not take is dropped, and takes its entry with it. It takes all that are
        // under way, and with no feed that listens there is nothing to wait for.
        self.queue.try_send(lookup).ok().map(|()| waiting)
    }
}

impl Lookups {
    /// Waits until somebody asks, and takes all that are asked by now. May be dropped and called again at any time.
    /// Nothing when nobody can ask any more.
    pub async fn next(&mut self) -> Option<Vec<Lookup>> {
        let mut lookups = vec![self.queue.recv().await?];
        while let Ok(lookup) = self.queue.try_recv() {
            lookups.push(lookup);
        }
        Some(lookups)
    }
}

impl Lookup {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether nobody waits for it any more.
    pub fn is_given_up(&self) -> bool {
        // One is the table's own.
        self.answered.receiver_count() <= 1
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.address);
    }
}

fn lock(under_way: &UnderWay) -> MutexGuard<'_, FxHashMap<IpAddr, Asked>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

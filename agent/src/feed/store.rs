//! What the server has to say: every resource, encoded once, and in which order they changed.
//!
//! What a client has is one number to it, the revision up to which it was sent: that costs the server nothing for each
//! client, however large the mesh. Resources have versions that are hashes of their content, so that a client that
//! comes again is sent only what is new to it, also by another replica. Pure but for its lock; the protocol is in `server`.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prost::Message as _;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;

use crate::rpc::discovery::{Any, DeltaDiscoveryResponse, Resource};

/// Changes that are remembered. A client that is farther behind is compared with everything.
const CHANGES: usize = 100_000;

/// A type of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// L4 policies.
    Authorization,
    /// What waypoints do with requests.
    Http,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Address, Self::Authorization, Self::Http];

    /// Its name in the protocol.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => crate::rpc::discovery::ADDRESS_TYPE,
            Self::Authorization => crate::rpc::discovery::AUTHORIZATION_TYPE,
            Self::Http => crate::rpc::discovery::HTTP_TYPE,
        }
    }

    /// The one of that name.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// One resource, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The message.
    pub bytes: Bytes,
    /// Other names that it can be asked for by: `network/address`, for one.
    pub aliases: Vec<String>,
    /// The names that bring it: whoever asks for one of them is sent this as well.
    pub with: Vec<Arc<str>>,
}

/// A change of the resources of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Which.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// What it is now; none when it has gone.
    pub resource: Option<Encoded>,
}

/// The resources. Clones share them.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    resources: Mutex<Resources>,
    revision: watch::Sender<Revision>,
}

/// How far the store has come. None before there is a complete mesh: then nobody is told anything.
type Revision = Option<u64>;

#[derive(Debug, Default)]
struct Resources {
    revision: u64,
    kinds: [FxHashMap<Arc<str>, Arc<Stored>>; Kind::ALL.len()],
    aliases: FxHashMap<Arc<str>, Arc<str>>,
    /// What names bring with them. Only addresses do.
    brought: FxHashMap<Arc<str>, FxHashSet<Arc<str>>>,
    /// Since `forgotten`, in order.
    changes: VecDeque<(u64, Kind, Arc<str>)>,
    /// Changes up to this revision are not in `changes` any more.
    forgotten: u64,
}

/// A resource as all clients are sent it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: Arc<str>,
    aliases: Box<[Arc<str>]>,
    /// The names that bring it.
    pub(super) with: Box<[Arc<str>]>,
    /// The hash of its content.
    version: u64,
    /// The bytes of the message's own length.
    length: u32,
    /// As a field of a response, which is a list of such fields.
    wire: Box<[u8]>,
}

impl Stored {
    fn new(kind: Kind, name: Arc<str>, encoded: Encoded) -> Self {
        let version = hash(&encoded.bytes);
        let length = encoded.bytes.len() as u32;
        let aliases = encoded.aliases.iter().map(|alias| alias.as_str().into());
        let aliases = aliases.collect();
        let any = Any {
            type_url: kind.type_url().to_owned(),
            value: encoded.bytes,
        };
        let response = DeltaDiscoveryResponse {
            resources: vec![Resource {
                version: format!("{version:016x}"),
                resource: Some(any),
                name: name.to_string(),
                aliases: encoded.aliases,
            }],
            ..DeltaDiscoveryResponse::default()
        };
        Self {
            name,
            aliases,
            with: encoded.with.into(),
            version,
            length,
            wire: response.encode_to_vec().into(),
        }
    }

    /// The resource as a field of a response.
    pub(super) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Whether it has one of these names.
    pub(super) fn is_one_of(&self, names: &HashSet<String>) -> bool {
        names.contains(&*self.name) || self.aliases.iter().any(|alias| names.contains(&**alias))
    }

    /// Whether that is its version.
    fn has(&self, version: &str) -> bool {
        version.len() == 16 && u64::from_str_radix(version, 16) == Ok(self.version)
    }
}

/// What a client is to be sent.
#[derive(Debug, Default)]
pub struct Delta {
    /// New and changed.
    pub(super) resources: Vec<Arc<Stored>>,
    /// Gone.
    pub removed: Vec<String>,
    /// The client has everything up to this revision then.
    pub revision: u64,
}

impl Delta {
    /// Leaves out what a client has that has `versions`.
    pub(super) fn leave_out(&mut self, versions: &HashMap<String, String>) {
        let has = |it: &Stored| versions.get(&*it.name).is_some_and(|version| it.has(version));
        self.resources.retain(|it| !has(it));
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }
}

impl Default for Store {
    fn default() -> Self {
        let shared = Shared {
            resources: Mutex::default(),
            revision: watch::Sender::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Store {
    /// Takes changes in, all of them at once. What is as it was before is no change. The first call says that the
    /// mesh is complete, also where there is nothing in it.
    pub fn update(&self, updates: impl IntoIterator<Item = Update>) {
        let mut resources = self.lock();
        resources.revision += 1;
        for update in updates {
            resources.take(update);
        }
        let revision = resources.revision;
        drop(resources);
        self.shared.revision.send_replace(Some(revision));
    }

    /// Changes whenever there is something new.
    pub fn revision(&self) -> watch::Receiver<Option<u64>> {
        self.shared.revision.subscribe()
    }

    /// How many resources of a kind there are, and their bytes.
    pub fn size(&self, kind: Kind) -> (usize, usize) {
        let resources = self.lock();
        let all = &resources.kinds[kind as usize];
        (all.len(), all.values().map(|it| it.length as usize).sum())
    }

    /// What has changed after `since`; none if that is too long ago to know what has gone since.
    pub fn since(&self, kind: Kind, since: u64) -> Option<Delta> {
        let resources = self.lock();
        if since < resources.forgotten {
            return None;
        }
        let after = resources
            .changes
            .partition_point(|(revision, ..)| *revision <= since);
        let changed = resources.changes.range(after..).filter(|(_, of, _)| *of == kind);
        let names: FxHashSet<&Arc<str>> = changed.map(|(.., name)| name).collect();
        Some(resources.delta(kind, names.into_iter().map(|name| &**name)))
    }

    /// What a client does not have that has `versions`, by name.
    pub fn against(&self, kind: Kind, versions: &HashMap<String, String>) -> Delta {
        let resources = self.lock();
        let all = &resources.kinds[kind as usize];
        let has = |it: &Stored| versions.get(&*it.name).is_some_and(|version| it.has(version));
        let gone = versions.keys().filter(|name| !all.contains_key(name.as_str()));
        Delta {
            resources: all.values().filter(|it| !has(it)).cloned().collect(),
            removed: gone.cloned().collect(),
            revision: resources.revision,
        }
    }

    /// The resources of these names, or aliases, and what they and `group` bring. What is not there is said to be gone.
    pub(super) fn named<'a>(
        &self,
        kind: Kind,
        names: impl Iterator<Item = &'a str>,
        group: Option<&str>,
    ) -> Delta {
        let resources = self.lock();
        let mut delta = Delta {
            revision: resources.revision,
            ..Delta::default()
        };
        let mut found = FxHashSet::default();
        for name in names {
            match resources.find(kind, name) {
                Some(it) => {
                    found.extend(resources.brought_by(kind, &it.name).cloned());
                    found.insert(it.name.clone());
                }
                None => delta.removed.push(name.to_owned()),
            }
        }
        found.extend(
            group
                .into_iter()
                .flat_map(|it| resources.brought_by(kind, it))
                .cloned(),
        );
        let all = &resources.kinds[kind as usize];
        delta.resources = found.iter().filter_map(|name| all.get(name)).cloned().collect();
        delta
    }

    /// The own names of what is found by these names, or aliases.
    pub(super) fn found<'a>(&self, kind: Kind, names: impl Iterator<Item = &'a str>) -> FxHashSet<Arc<str>> {
        let resources = self.lock();
        names
            .filter_map(|name| Some(resources.find(kind, name)?.name.clone()))
            .collect()
    }

    /// The resource of this name.
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<Arc<Stored>> {
        self.lock().kinds[kind as usize].get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Resources> {
        self.shared
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resources {
    fn take(&mut self, update: Update) {
        let Update { kind, name, resource } = update;
        let of_kind = &mut self.kinds[kind as usize];
        let before = of_kind.get(&name);
        match resource {
            None if before.is_none() => return,
            Some(mut encoded) => {
                for group in &mut encoded.with {
                    if let Some((kept, _)) = self.brought.get_key_value(group) {
                        *group = kept.clone();
                    }
                }
                let stored = Arc::new(Stored::new(kind, name.clone(), encoded));
                if before == Some(&stored) {
                    return;
                }
                let old = of_kind.insert(name.clone(), Arc::clone(&stored));
                self.forget_aliases(&name, old);
                for alias in &stored.aliases {
                    self.aliases.insert(alias.clone(), name.clone());
                }
                for group in &stored.with {
                    self.brought
                        .entry(group.clone())
                        .or_default()
                        .insert(name.clone());
                }
            }
            None => {
                let old = of_kind.remove(&name);
                self.forget_aliases(&name, old);
            }
        }
        self.changes.push_back((self.revision, kind, name));
        while self.changes.len() > CHANGES {
            if let Some((revision, ..)) = self.changes.pop_front() {
                self.forgotten = revision;
            }
        }
    }

    /// Those that are still its own.
    fn forget_aliases(&mut self, name: &Arc<str>, stored: Option<Arc<Stored>>) {
        for alias in stored.iter().flat_map(|stored| &stored.aliases) {
            if self.aliases.get(alias).is_some_and(|owner| owner == name) {
                self.aliases.remove(alias);
            }
        }
        for group in stored.iter().flat_map(|stored| &stored.with) {
            if let Some(brought) = self.brought.get_mut(group) {
                brought.remove(name);
                if brought.is_empty() {
                    self.brought.remove(group);
                }
            }
        }
    }

    /// By its name, or an alias.
    fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Stored>> {
        let name = match self.aliases.get(name) {
            Some(name) if kind == Kind::Address => &**name,
            _ => name,
        };
        self.kinds[kind as usize].get(name)
    }

    fn brought_by(&self, kind: Kind, name: &str) -> impl Iterator<Item = &Arc<str>> {
        let brought = self.brought.get(name).filter(|_| kind == Kind::Address);
        brought.into_iter().flatten()
    }

    fn delta<'a>(&self, kind: Kind, names: impl Iterator<Item = &'a str>) -> Delta {
        let mut delta = Delta {
            revision: self.revision,
            ..Delta::default()
        };
        for name in names {
            match self.kinds[kind as usize].get(name) {
                Some(stored) => delta.resources.push(Arc::clone(stored)),
                None => delta.removed.push(name.to_owned()),
            }
        }
        delta
    }
}

/// The same in every replica of a version: `DefaultHasher::new()` has no secret.
fn hash(bytes: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, content: Option<&'static str>) -> Update {
        let resource = content.map(|content| Encoded {
            bytes: Bytes::from_static(content.as_bytes()),
            aliases: vec![format!("/{name}")],
            with: Vec::new(),
        });
        Update {
            kind: Kind::Address,
            name: name.into(),
            resource,
        }
    }

    fn names(delta: &Delta) -> (Vec<&str>, Vec<&str>) {
        let mut names: Vec<_> = delta.resources.iter().map(|it| &*it.name).collect();
        names.sort_unstable();
        (names, delta.removed.iter().map(String::as_str).collect())
    }

    #[test]
    fn a_client_is_sent_what_it_does_not_have() {
        let store = Store::default();
        assert_eq!(*store.revision().borrow(), None);
        store.update([update("a", Some("1")), update("b", Some("1"))]);
        let first = store.since(Kind::Address, 0).unwrap();
        assert_eq!(names(&first), (vec!["a", "b"], vec![]));
        store.update([update("a", Some("1")), update("b", None), update("c", Some("1"))]);
        let second = store.since(Kind::Address, first.revision).unwrap();
        assert_eq!(names(&second), (vec!["c"], vec!["b"]));
        assert!(store.since(Kind::Address, second.revision).unwrap().is_empty());
        assert!(store.since(Kind::Authorization, 0).unwrap().is_empty());
    }

    #[test]
    fn a_client_that_comes_again_is_compared_by_content() {
        let (store, other) = (Store::default(), Store::default());
        store.update([update("a", Some("1")), update("b", Some("1"))]);
        let has = store.since(Kind::Address, 0).unwrap().resources;
        let versions = has.iter();
        let versions = versions.map(|it| (it.name.to_string(), format!("{:016x}", it.version)));
        let versions = versions.collect();
        assert!(store.against(Kind::Address, &versions).is_empty());
        other.update([update("a", Some("2"))]);
        let delta = other.against(Kind::Address, &versions);
        assert_eq!(names(&delta), (vec!["a"], vec!["b"]));
    }

    #[test]
    fn a_name_may_be_an_alias_of_whoever_has_it_now() {
        let store = Store::default();
        store.update([update("a", Some("1"))]);
        let found = store.named(Kind::Address, ["/a", "/b"].into_iter(), None);
        assert_eq!(names(&found), (vec!["a"], vec!["/b"]));
        store.update([update("a", None)]);
        assert_eq!(
            names(&store.named(Kind::Address, ["/a"].into_iter(), None)),
            (vec![], vec!["/a"])
        );
    }

    #[test]
    fn whoever_is_too_far_behind_has_to_come_again() {
        let store = Store::default();
        for turn in 0..3 {
            let some = (0..CHANGES / 2).map(|n| update(&format!("{turn}-{n}"), Some("1")));
            store.update(some);
        }
        assert!(store.lock().changes.len() <= CHANGES);
        assert!(store.since(Kind::Address, 0).is_none());
        let everything = store.against(Kind::Address, &HashMap::new());
        assert_eq!(everything.resources.len(), CHANGES / 2 * 3);
    }
}

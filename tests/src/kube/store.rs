//! Objects, their history, and one revision that counts all writes, as etcd's does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    kinds::{self, Kind},
    object::Object,
    random::Random,
    tokens::Tokens,
};

/// One write, as watches see it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) key: String,
    pub(super) before: Option<Arc<Object>>,
    pub(super) after: Option<Arc<Object>>,
}

/// All objects of one resource.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) objects: BTreeMap<String, Arc<Object>>,
    log: VecDeque<Arc<Change>>,
    /// The revision of the last write here; of the start, if there was none.
    pub(super) last: u64,
    /// Writes up to here are forgotten.
    pub(super) floor: u64,
}

impl Table {
    /// Changes after `revision`, the oldest first; `None` if some of them are forgotten.
    pub(super) fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Arc<Change>>> {
        let from = self.log.partition_point(|change| change.revision <= revision);
        (revision >= self.floor).then(|| self.log.range(from..))
    }

    /// The objects as they were at `revision`, in the order of their keys; `None` if that is forgotten.
    pub(super) fn at(&self, revision: u64) -> Option<BTreeMap<&str, &Arc<Object>>> {
        let mut then: BTreeMap<&str, _> = self
            .objects
            .iter()
            .map(|(key, object)| (key.as_str(), object))
            .collect();
        let since: Vec<_> = self.since(revision)?.collect();
        for change in since.into_iter().rev() {
            match &change.before {
                Some(before) => then.insert(&change.key, before),
                None => then.remove(change.key.as_str()),
            };
        }
        Some(then)
    }
}

/// Everything that an API server keeps.
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) kinds: Vec<Arc<Kind>>,
    tables: HashMap<String, Table>,
    /// Who is owned by whom: the owner's uid, the table and the key of the owned.
    owned: HashMap<String, BTreeSet<(String, String)>>,
    pub(super) tokens: Tokens,
    pub(super) random: Random,
    /// How many changes of one resource are remembered.
    history: usize,
    pub(super) tick: watch::Sender<u64>,
}

impl State {
    pub(super) fn new(seed: u64, history: usize) -> Self {
        Self {
            revision: 1,
            kinds: kinds::built_in(),
            tables: HashMap::new(),
            owned: HashMap::new(),
            tokens: Tokens::default(),
            random: Random::new(seed),
            history,
            tick: watch::Sender::new(1),
        }
    }

    pub(super) fn table(&mut self, name: &str) -> &mut Table {
        let revision = self.revision;
        self.tables.entry(name.to_owned()).or_insert_with(|| Table {
            last: revision,
            ..Table::default()
        })
    }

    pub(super) fn object(&self, table: &str, key: &str) -> Option<&Arc<Object>> {
        self.tables.get(table)?.objects.get(key)
    }

    /// The parsed object.
    pub(super) fn value(&self, table: &str, key: &str) -> Option<Value> {
        self.object(table, key).map(|object| object.value())
    }

    pub(super) fn objects(&self, table: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.tables
            .get(table)
            .into_iter()
            .flat_map(|table| table.objects.values())
    }

    /// Objects of one namespace.
    pub(super) fn within(&self, table: &str, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = format!("{namespace}/");
        let all = self.tables.get(table);
        let from = prefix.clone();
        let objects = all
            .into_iter()
            .flat_map(move |table| table.objects.range(from.clone()..));
        objects
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .map(|(_, object)| object)
    }

    /// The resource that a request names.
    pub(super) fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let mut kinds = self.kinds.iter();
        kinds.find(|kind| kind.group == group && kind.plural == plural && kind.version(version).is_some())
    }

    /// Writes (`Some`) or removes (`None`), at the next revision.
    pub(super) fn commit(&mut self, kind: &Kind, key: &str, value: Option<Value>) -> Arc<Change> {
        self.revision += 1;
        let (revision, history) = (self.revision, self.history);
        let after = value.map(|value| Arc::new(Object::new(kind, value, revision)));
        let table = self.table(&kind.table);
        let before = match &after {
            Some(object) => table.objects.insert(key.to_owned(), object.clone()),
            None => table.objects.remove(key),
        };
        let change = Arc::new(Change {
            revision,
            key: key.to_owned(),
            before,
            after,
        });
        table.log.push_back(change.clone());
        table.last = revision;
        while table.log.len() > history {
            table.floor = table
                .log
                .pop_front()
                .map_or(table.floor, |change| change.revision);
        }
        self.note_owners(&kind.table, &change);
        self.tick.send_replace(revision);
        change
    }

    /// Forgets all history, as a compaction and a restart do.
    pub(super) fn forget(&mut self) {
        for table in self.tables.values_mut() {
            table.log.clear();
            table.floor = self.revision;
        }
    }

    fn note_owners(&mut self, table: &str, change: &Change) {
        let before = change
            .before
            .as_ref()
            .map(|object| object.owners.clone())
            .unwrap_or_default();
        let after = change
            .after
            .as_ref()
            .map(|object| object.owners.clone())
            .unwrap_or_default();
        let place = (table.to_owned(), change.key.clone());
        for uid in before.iter().filter(|uid| !after.contains(uid)) {
            self.owned.entry(uid.clone()).or_default().remove(&place);
        }
        for uid in after {
            self.owned.entry(uid).or_default().insert(place.clone());
        }
    }

    /// Takes what the object with this uid owned.
    pub(super) fn orphans(&mut self, uid: &str) -> Vec<(String, String)> {
        self.owned.remove(uid).into_iter().flatten().collect()
    }

    pub(super) fn table_names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    /// Ends a resource: what it held is gone without a word, its definition's change was told.
    pub(super) fn drop_kind(&mut self, table: &str) {
        self.kinds.retain(|kind| kind.table != table || !kind.custom);
        self.tables.remove(table);
    }
}

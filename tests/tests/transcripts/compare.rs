//! Whether an answer is the recorded one, all that varies between runs left aside: uids, names that were made up and
//! tokens must be the same where they were the same, resourceVersions must be in the same order.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

/// What recorded things are in this run.
#[derive(Default)]
pub(crate) struct Seen {
    strings: HashMap<String, String>,
    /// resourceVersions: of anything, and of objects.
    versions: [BTreeMap<u64, u64>; 2],
    /// Whether objects may have more fields than were recorded: "items are cut".
    pub(crate) cut: bool,
}

type Compared = Result<(), String>;

const TIMES: [&str; 7] = [
    "creationTimestamp",
    "deletionTimestamp",
    "time",
    "lastTransitionTime",
    "expirationTimestamp",
    "lastProbeTime",
    "last-change-trigger-time",
];

impl Seen {
    /// A recorded string is this one here; it must stay so.
    pub(crate) fn learn(&mut self, recorded: &str, actual: &str) -> Compared {
        let known = self
            .strings
            .entry(recorded.to_owned())
            .or_insert_with(|| actual.to_owned());
        if known == actual {
            return Ok(());
        }
        Err(format!("{recorded:?} was {known:?} and is {actual:?}"))
    }

    pub(crate) fn known(&self, recorded: &str) -> Option<&str> {
        self.strings.get(recorded).map(String::as_str)
    }

    /// All recorded strings and what they are.
    pub(crate) fn strings(&self) -> impl Iterator<Item = (&String, &String)> {
        self.strings.iter()
    }

    /// A recorded version is this one here. `object`: of an object, where another version is another number.
    pub(crate) fn learn_version(&mut self, recorded: u64, actual: u64, object: bool) -> Compared {
        for of in 0..=usize::from(object) {
            let known = &mut self.versions[of];
            let strict = of == 1;
            let fits = |before: &u64, after: &u64| if strict { before < after } else { before <= after };
            let below = known
                .range(..recorded)
                .next_back()
                .is_none_or(|(_, version)| fits(version, &actual));
            let above = known
                .range(recorded + 1..)
                .next()
                .is_none_or(|(_, version)| fits(&actual, version));
            let same = known.get(&recorded).is_none_or(|version| *version == actual);
            if !(below && above && same) {
                return Err(format!(
                    "resourceVersion {recorded} cannot be {actual} in {known:?}"
                ));
            }
            known.insert(recorded, actual);
        }
        Ok(())
    }

    /// What a recorded version is here: the newest that is not newer; one from the future stays there.
    pub(crate) fn version(&self, recorded: u64) -> u64 {
        let known = &self.versions[0];
        match known.range(..=recorded).next_back() {
            Some((near, actual)) if recorded - near < 1000 => *actual,
            Some((near, actual)) => actual + (recorded - near),
            None => recorded,
        }
    }

    pub(crate) fn compare(&mut self, at: &str, recorded: &Value, actual: &Value) -> Compared {
        let key = at.rsplit('/').next().unwrap_or_default();
        match (recorded, actual) {
            (Value::String(text), actual) if text.ends_with("elided)") => match actual {
                Value::Array(list) if list.is_empty() => Err(format!("{at}: an empty list")),
                Value::Null => Err(format!("{at}: nothing")),
                _ => Ok(()),
            },
            (Value::Object(recorded), Value::Object(actual)) => self.objects(at, recorded, actual),
            (Value::Array(recorded), Value::Array(actual)) => self.lists(at, recorded, actual),
            (Value::String(recorded), Value::String(actual)) => self
                .texts(key, recorded, actual)
                .map_err(|told| format!("{at}: {told}")),
            (Value::String(name), Value::Object(actual)) if actual["metadata"]["name"] == name.as_str() => {
                Ok(())
            }
            _ if recorded == actual => Ok(()),
            _ => Err(format!("{at}: {recorded} was recorded, {actual} is there")),
        }
    }

    fn objects(&mut self, at: &str, recorded: &Map<String, Value>, actual: &Map<String, Value>) -> Compared {
        let version = |of: &Map<String, Value>| {
            of.get("resourceVersion")
                .and_then(|version| version.as_str()?.parse().ok())
        };
        if let (Some(recorded_version), Some(actual_version)) = (version(recorded), version(actual)) {
            let object = recorded.contains_key("name");
            self.learn_version(recorded_version, actual_version, object)
                .map_err(|told| format!("{at}: {told}"))?;
        }
        if let (Some(Value::String(prefix)), Some(name), Some(own)) = (
            recorded.get("generateName"),
            recorded.get("name"),
            actual.get("name"),
        ) {
            let (name, own) = (
                name.as_str().unwrap_or_default(),
                own.as_str().unwrap_or_default(),
            );
            if !own.starts_with(prefix.as_str()) || own.len() != name.len() {
                return Err(format!("{at}: {own} is no name made from {prefix}"));
            }
            self.learn(name, own)?;
        }
        let marked = recorded.contains_key("...");
        let typeless = recorded.contains_key("kind")
            && recorded.contains_key("metadata")
            && !recorded.contains_key("apiVersion");
        let whole = recorded.get("kind").is_some_and(|kind| kind == "Status");
        let cut = self.cut;
        self.cut = (cut && !whole) || marked;
        let compared = self.fields(at, recorded, actual, self.cut || typeless);
        self.cut = cut;
        compared
    }

    fn fields(
        &mut self,
        at: &str,
        recorded: &Map<String, Value>,
        actual: &Map<String, Value>,
        cut: bool,
    ) -> Compared {
        for (key, value) in recorded.iter().filter(|(key, _)| *key != "...") {
            let inside = format!("{at}/{key}");
            match actual.get(key) {
                Some(_) if ["resourceVersion", "serverAddress"].contains(&key.as_str()) => {}
                Some(actual) => self.compare(&inside, value, actual)?,
                None if cut && value.is_null() => {}
                None => return Err(format!("{inside}: missing")),
            }
        }
        match actual.keys().find(|key| !recorded.contains_key(*key)) {
            Some(more) if !cut => Err(format!("{at}/{more}: was not recorded: {}", actual[more])),
            _ => Ok(()),
        }
    }

    /// Of a list that was cut, what is left of it must be there.
    fn lists(&mut self, at: &str, recorded: &[Value], actual: &[Value]) -> Compared {
        if recorded.last().is_some_and(|last| last == "(cut)") {
            for one in &recorded[..recorded.len() - 1] {
                let found = actual.iter().find(|other| identity(other) == identity(one));
                let found = found.ok_or_else(|| format!("{at}: no {:?}", identity(one)))?;
                self.compare(&format!("{at}/{:?}", identity(one)), one, found)?;
            }
            return Ok(());
        }
        let recorded: Vec<_> = recorded.iter().filter(|one| !is_fork(one)).collect();
        if recorded.len() != actual.len() {
            let names: Vec<_> = actual.iter().map(identity).collect();
            return Err(format!(
                "{at}: {} were recorded, {} are there: {names:?}",
                recorded.len(),
                actual.len()
            ));
        }
        let pairs = recorded.iter().zip(actual).enumerate();
        pairs
            .into_iter()
            .try_for_each(|(i, (one, other))| self.compare(&format!("{at}/{i}"), one, other))
    }

    fn texts(&mut self, key: &str, recorded: &str, actual: &str) -> Compared {
        let a_time = |text: &str| text.ends_with('Z') && text.len() >= 20;
        if recorded == actual || self.known(recorded) == Some(actual) {
            return Ok(());
        }
        let made_up = ["uid", "token", "continue", "clusterIP"].contains(&key)
            || recorded.starts_with("10.96.")
            || recorded.starts_with("JTI=")
            || recorded.starts_with("fake-header.")
            || is_uid(recorded);
        if made_up {
            return self.learn(recorded, actual);
        }
        if TIMES.contains(&key) && a_time(recorded) && a_time(actual) {
            return Ok(());
        }
        if key == "serverRelativeURL" && recorded.split('?').next() == actual.split('?').next() {
            return Ok(());
        }
        if masked(recorded) == masked(actual) {
            return Ok(());
        }
        Err(format!("{recorded:?} was recorded, {actual:?} is there"))
    }
}

/// What the fork that was recorded makes and upstream does not.
pub(crate) fn is_fork(object: &Value) -> bool {
    let named = |object: &Value| object["metadata"]["name"] == "openshift-service-ca.crt";
    named(object) || named(&object["object"])
}

fn identity(value: &Value) -> Value {
    let name = ["/name", "/resource", "/metadata/name", "/version"];
    name.iter()
        .find_map(|at| value.pointer(at))
        .cloned()
        .unwrap_or_default()
}

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// A message without uids, without the numbers of versions, and without the object that it prints in the order of Go's
/// fields.
fn masked(text: &str) -> String {
    let about_versions = text.to_lowercase().replace(' ', "").contains("resourceversion");
    let words = text.split_inclusive([' ', ',', ')', '(']).map(|word| {
        let bare = word.trim_end_matches([' ', ',', ')', '(']);
        if is_uid(bare) {
            return word.replace(bare, "UID");
        }
        if about_versions && !bare.is_empty() && bare.bytes().all(|c| c.is_ascii_digit()) {
            return word.replace(bare, "VERSION");
        }
        word.to_owned()
    });
    let text: String = words.collect();
    match (text.find("Invalid value: \"{"), text.find("}\": json:")) {
        (Some(from), Some(to)) if from < to => format!("{}(object){}", &text[..from], &text[to..]),
        _ => text,
    }
}

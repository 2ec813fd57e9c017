//! As much of a Kubernetes API as an agent asks of one: pods, namespaces and nodes, lists, watches and merge patches. It
//! listens inside a node's network namespace, where the agent is.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weft_tests::{LIMIT, Node, wait_until};

/// Kind, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Everything that has happened: version, key, type, object.
    events: Vec<(u64, Key, &'static str, Value)>,
    patches: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A running API. It ends with the test's process.
pub(crate) struct Api {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Api {
    /// On a port of the node's loopback device.
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let listener = node.listen_on("127.0.0.1:0".parse()?)?;
        let shared = Arc::new(Shared::default());
        let api = Self {
            address: listener.local_addr()?,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || accept(&listener, &shared));
        Ok(api)
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster: {{server: \"http://{}\"}}\n\
             users:\n- {{name: test, user: {{}}}}\ncontexts:\n- name: test\n  context: {{cluster: test, user: test}}\n",
            self.address
        )
    }

    /// Makes or replaces an object; its kind is a plural.
    pub(crate) fn put(&self, kind: &str, namespace: &str, name: &str, mut object: Value) {
        object["metadata"]["name"] = name.into();
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.put(key, object);
    }

    /// Removes an object.
    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.shared.state();
        if let Some(object) = state.objects.remove(&key) {
            state.happened(key, "DELETED", object);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// An object as it is now.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.state().objects.get(&key).cloned().unwrap_or_default()
    }

    /// How many patches have been taken.
    pub(crate) fn patches(&self) -> usize {
        self.shared.state().patches
    }

    /// Waits until an object is as it should be.
    pub(crate) fn wait_for(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        wait_until(what, LIMIT, || holds(&self.get(kind, namespace, name))).with_context(|| {
            format!(
                "{kind} {namespace}/{name} is {:#}",
                self.get(kind, namespace, name)
            )
        })
    }
}

impl State {
    fn happened(&mut self, key: Key, what: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push((self.version, key, what, object.clone()));
        object
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: Key, object: Value) -> Value {
        let mut state = self.state();
        let what = if state.objects.contains_key(&key) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let object = state.happened(key.clone(), what, object);
        state.objects.insert(key, object.clone());
        drop(state);
        self.changed.notify_all();
        object
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        let shared = Arc::clone(shared);
        thread::spawn(move || drop(serve(stream, &shared)));
    }
}

/// A request, as far as it matters.
struct Request {
    method: String,
    /// Of the objects: kind, namespace and name; empty for any.
    key: Key,
    query: BTreeMap<String, String>,
    body: Value,
}

fn read(reader: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().context("a target")?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%2F", "/")))
        .collect();
    let parts: Vec<_> = path.split('/').skip(3).collect();
    let text = |at: usize| parts.get(at).copied().unwrap_or_default().to_owned();
    let key = match parts.as_slice() {
        ["namespaces", _, _, ..] => (text(2), text(1), text(3)),
        _ => (text(0), String::new(), text(1)),
    };
    Ok(Some(Request {
        method,
        key,
        query,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }))
}

fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = read(&mut reader)? {
        let known = shared.state().objects.get(&request.key).cloned();
        let (status, answer) = match (request.method.as_str(), known) {
            ("GET", _) if request.query.contains_key("watch") => return watch(&mut stream, shared, &request),
            ("GET", _) if request.key.2.is_empty() => (200, list(shared, &request)),
            ("GET", Some(object)) => (200, object),
            ("PATCH", Some(object)) => patch(shared, &request, object),
            _ => (404, failure(404, "NotFound")),
        };
        let body = answer.to_string();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn is_meant(request: &Request, key: &Key, object: &Value) -> bool {
    let of_node = request
        .query
        .get("fieldSelector")
        .and_then(|it| it.strip_prefix("spec.nodeName="));
    key.0 == request.key.0
        && (request.key.1.is_empty() || request.key.1 == key.1)
        && of_node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

fn list(shared: &Shared, request: &Request) -> Value {
    let state = shared.state();
    let items = state
        .objects
        .iter()
        .filter(|(key, object)| is_meant(request, key, object));
    let items: Vec<_> = items.map(|(_, object)| object.clone()).collect();
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.version.to_string()}, "items": items})
}

fn watch(stream: &mut TcpStream, shared: &Shared, request: &Request) -> Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )?;
    let mut seen: u64 = request
        .query
        .get("resourceVersion")
        .map_or(Ok(0), |it| it.parse())?;
    loop {
        let mut state = shared.state();
        let news = loop {
            let news: Vec<_> = state
                .events
                .iter()
                .filter(|(version, ..)| *version > seen)
                .cloned()
                .collect();
            if !news.is_empty() {
                break news;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        for (version, key, what, object) in news {
            seen = version;
            if is_meant(request, &key, &object) {
                let line = format!("{}\n", json!({"type": what, "object": object}));
                write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
            }
        }
    }
}

/// A merge patch, with its conditions.
fn patch(shared: &Shared, request: &Request, mut object: Value) -> (u16, Value) {
    for condition in ["uid", "resourceVersion"] {
        let wanted = &request.body["metadata"][condition];
        if !wanted.is_null() && *wanted != object["metadata"][condition] {
            return (409, failure(409, "Conflict"));
        }
    }
    merge(&mut object, &request.body);
    shared.state().patches += 1;
    (200, shared.put(request.key.clone(), object))
}

/// RFC 7386.
fn merge(to: &mut Value, from: &Value) {
    let Some(fields) = from.as_object() else {
        to.clone_from(from);
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (name, value) in fields {
        match (value, to.as_object_mut()) {
            (Value::Null, Some(map)) => drop(map.remove(name)),
            _ => merge(&mut to[name], value),
        }
    }
}

//! Watches: what there is, then each change from the log, bookmarks, and the end.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    Server,
    answer::{self, Answer},
    failure::Failure,
    faults::{Signal, Troubles},
    kinds::Kind,
    object::Object,
    read,
    request::{Request, Shape, Target},
    select::Selector,
    store::Change,
};

/// How long a watch lasts that does not say.
const LASTS: Duration = Duration::from_secs(40 * 60);
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end.
const BOOKMARK_LAST: Duration = Duration::from_secs(2);
/// How long a watch that reorders waits for more to reorder.
const GATHER: Duration = Duration::from_millis(20);

pub(super) fn watch(
    server: &Arc<Server>,
    request: &Request,
    target: &Target,
    kind: &Arc<Kind>,
) -> Result<Answer, Failure> {
    let query = &request.query;
    read::validate(query, true)?;
    let from = read::number(query.text("resourceVersion"))?;
    let initial = match query.text("sendInitialEvents") {
        "" => from == 0,
        flag => flag == "true" || flag == "1",
    };
    let begun = server.clock.now();
    let lasts = query.number("timeoutSeconds").map_or(LASTS, Duration::from_secs);
    let first = match lasts.saturating_sub(BOOKMARK_LAST) {
        Duration::ZERO => lasts,
        late => late.min(BOOKMARK_EVERY),
    };
    let (lines, answered) = mpsc::channel(64);
    let watcher = Watcher {
        selector: read::selector(query, target, kind)?,
        prefix: read::prefix(target),
        kind: kind.clone(),
        version: target.version.clone(),
        shape: request.shape,
        seen: if from == 0 && !initial {
            server.version()
        } else {
            from
        },
        bookmarks: query.flag("allowWatchBookmarks"),
        marked: query.has("sendInitialEvents"),
        bookmark: begun + first,
        end: begun + lasts,
        signals: server.faults.signals(),
        tick: server.state().tick.subscribe(),
        troubles: server.faults.troubles(kind),
        sent: 0,
        server: server.clone(),
        lines,
    };
    tokio::spawn(watcher.run(initial));
    Ok(answer::lines(answered))
}

struct Watcher {
    server: Arc<Server>,
    kind: Arc<Kind>,
    version: String,
    shape: Shape,
    prefix: String,
    selector: Selector,
    /// The revision up to which everything was sent.
    seen: u64,
    bookmarks: bool,
    /// Whether the end of the initial events is told.
    marked: bool,
    bookmark: Duration,
    end: Duration,
    signals: broadcast::Receiver<Signal>,
    tick: watch::Receiver<u64>,
    troubles: Troubles,
    sent: usize,
    lines: mpsc::Sender<io::Result<Bytes>>,
}

/// The watch is over: its reader is gone, or it was cut.
struct Over;

/// What a watch is woken by.
enum Wake {
    Change,
    Bookmark,
    Signal(Result<Signal, broadcast::error::RecvError>),
    End,
}

impl Watcher {
    async fn run(mut self, initial: bool) {
        let _over: Result<(), Over> = self.serve(initial).await;
    }

    async fn serve(&mut self, initial: bool) -> Result<(), Over> {
        if self.troubles.gone {
            return self.expired(self.seen).await;
        }
        if initial {
            self.initial().await?;
        }
        loop {
            match self.changes() {
                Some(events) => self.send_all(events).await?,
                None => return self.expired(self.seen).await,
            }
            match self.wake().await {
                Wake::Change => {
                    if self.troubles.reorder {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                Wake::Bookmark => self.send_bookmark(false).await?,
                Wake::Signal(Ok(signal)) => self.obey(&signal).await?,
                Wake::Signal(Err(_)) | Wake::End => return Ok(()),
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let (server, lines) = (self.server.clone(), self.lines.clone());
        tokio::select! {
            biased;
            changed = self.tick.changed() => changed.map_or(Wake::End, |()| Wake::Change),
            () = server.clock.until(self.bookmark), if self.bookmarks && self.bookmark < self.end => Wake::Bookmark,
            () = server.clock.until(self.end) => Wake::End,
            () = lines.closed() => Wake::End,
            signal = self.signals.recv() => Wake::Signal(signal),
        }
    }

    /// What there is, as if it were added now.
    async fn initial(&mut self) -> Result<(), Over> {
        let events = {
            let mut state = self.server.state();
            self.seen = self.seen.max(state.revision);
            let table = state.table(&self.kind.table);
            let within = table.objects.range(self.prefix.clone()..);
            within
                .take_while(|(key, _)| key.starts_with(&self.prefix))
                .filter(|(_, object)| self.selector.matches(object))
                .map(|(key, object)| (key.clone(), self.event("ADDED", object)))
                .collect()
        };
        self.send_all(events).await?;
        if self.marked && self.bookmarks {
            self.send_bookmark(true).await?;
        }
        Ok(())
    }

    /// Events since the last look, with the keys of their objects; `None` if they are forgotten.
    fn changes(&mut self) -> Option<Vec<(String, Bytes)>> {
        let mut state = self.server.state();
        if self.kind.custom && !state.kinds.iter().any(|kind| kind.table == self.kind.table) {
            return None;
        }
        let revision = state.revision;
        let changes = state.table(&self.kind.table).since(self.seen)?;
        let within = changes.filter(|change| change.key.starts_with(&self.prefix));
        let events = within
            .filter_map(|change| Some((change.key.clone(), self.told(change)?)))
            .collect();
        self.seen = self.seen.max(revision);
        Some(events)
    }

    /// How this watch sees a change: what enters its selector is added, what leaves it is deleted as it was before.
    fn told(&self, change: &Change) -> Option<Bytes> {
        let matching =
            |object: &Option<Arc<Object>>| object.clone().filter(|object| self.selector.matches(object));
        match (matching(&change.before), matching(&change.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(self.event("ADDED", &after)),
            (Some(_), Some(after)) => Some(self.event("MODIFIED", &after)),
            (Some(before), None) => {
                let gone = before.at(&self.kind, change.revision);
                Some(self.event("DELETED", &gone))
            }
        }
    }

    fn event(&self, what: &str, object: &Object) -> Bytes {
        let shown = match self.shape {
            Shape::Metadata => object.metadata(),
            _ => object.shown(&self.kind, &self.version),
        };
        line(what, &shown)
    }

    async fn send_bookmark(&mut self, initial: bool) -> Result<(), Over> {
        let last = {
            let mut state = self.server.state();
            state.table(&self.kind.table).last
        };
        let last = if last == 0 { self.seen } else { last };
        let mut metadata = json!({"resourceVersion": last.to_string()});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        } else {
            let (now, late) = (self.server.clock.now(), self.end.saturating_sub(BOOKMARK_LAST));
            self.bookmark = match now + BOOKMARK_EVERY {
                next if next < late => next,
                _ if now < late => late,
                _ => self.end,
            };
        }
        let (kind, api_version) = match self.shape {
            Shape::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => (self.kind.kind.clone(), self.kind.api_version(&self.version)),
        };
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        self.send(line_of("BOOKMARK", &object)).await
    }

    async fn expired(&mut self, asked: u64) -> Result<(), Over> {
        let floor = {
            let mut state = self.server.state();
            state.table(&self.kind.table).floor
        };
        let failure = Failure::expired(format!("too old resource version: {asked} ({floor})"));
        self.send(line_of("ERROR", &failure.body())).await
    }

    async fn obey(&mut self, signal: &Signal) -> Result<(), Over> {
        match signal {
            Signal::Cut(of) if of.covers(&self.kind) => self.cut(&line("ADDED", b"{}")).await,
            Signal::Expire(of) if of.covers(&self.kind) => {
                self.expired(self.seen).await?;
                Err(Over)
            }
            _ => Ok(()),
        }
    }

    async fn send_all(&mut self, mut events: Vec<(String, Bytes)>) -> Result<(), Over> {
        if self.troubles.reorder {
            self.server.faults.shuffle(&mut events);
        }
        for (_, event) in events {
            let times = if self.troubles.duplicate { 2 } else { 1 };
            for _ in 0..times {
                self.send(event.clone()).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, line: Bytes) -> Result<(), Over> {
        if let Some(late) = self.troubles.slow {
            tokio::time::sleep(late).await;
        }
        self.server.faults.answering().await;
        if self.troubles.cut_after == Some(self.sent) {
            return self.cut(&line).await;
        }
        self.sent += 1;
        self.lines.send(Ok(line)).await.map_err(|_| Over)
    }

    /// Half a line, then the connection breaks.
    async fn cut(&mut self, line: &Bytes) -> Result<(), Over> {
        let half = line.slice(..line.len() / 2);
        let _reader_may_be_gone = self.lines.send(Ok(half)).await;
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        let _reader_may_be_gone = self.lines.send(Err(broken)).await;
        Err(Over)
    }
}

fn line(what: &str, object: &[u8]) -> Bytes {
    let mut line = format!("{{\"type\":\"{what}\",\"object\":").into_bytes();
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn line_of(what: &str, object: &Value) -> Bytes {
    line(what, &serde_json::to_vec(object).unwrap_or_default())
}

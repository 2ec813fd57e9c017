//! The log: how it is set up, and the access log, which has exactly one line for every [`Flow`].
//!
//! Lines are formatted where they are logged and written by a thread of their own. The queue between the two is
//! bounded: when the reader of our stdout stalls, lines are dropped and counted, and no connection waits for them.

use std::{fmt, io, thread, time::Duration};

use thiserror::Error;
use tracing::{Level, level_filters::LevelFilter};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    fmt::{MakeWriter, layer},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::{SubscriberInitExt, TryInitError},
};

use crate::mesh::{Direction, Flow, Outcome, Party, PolicyKey, Security};

mod requests;
#[cfg(test)]
mod tests;

pub use requests::request;

/// Lines that may wait for the writer: some 5 MiB of access lines, about a second of a busy node. The queue has a place for each in
/// memory from the start, 32 bytes.
const QUEUED_LINES: usize = 8_192;
/// Bytes that the writer gathers before it writes, when lines come faster than it takes them.
const WRITE_BUFFER: usize = 64 * 1024;

/// How long the writer leaves the queue alone once it has written all of it.
const NAP: Duration = Duration::from_millis(5);

/// A writer that sleeps after each flush, which comes when the queue is empty. Lines that come meanwhile wake nobody and are
/// written together; otherwise each short connection would cost a wake-up and a system call for its line.
struct Unhurried<W>(W);

impl<W: io::Write> io::Write for Unhurried<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    #[expect(clippy::disallowed_methods, reason = "on the writer's own thread")]
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(NAP);
        flushed
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `key=value` for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up or changed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter's syntax.
    #[error(
        "`{filter}` is not a log filter: write a level (error, warn, info, debug, trace) or target=level,..."
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it, where the parser says.
        source: Option<ParseError>,
    },
    /// Somebody else set a global subscriber up.
    #[error("the log is set up already")]
    AlreadySet(#[source] TryInitError),
    /// The subscriber that the filter belongs to is gone.
    #[error("the log's filter cannot be changed any more")]
    Gone(#[source] reload::Error),
}

/// Keeps the log's writer alive; what is queued is written when it is dropped.
#[derive(Debug)]
pub struct LogGuard {
    filter: LogFilter,
    dropped: DroppedLines,
    _writer: WorkerGuard,
}

impl LogGuard {
    /// The handle by which the filter is read and changed while weft runs.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// The count of lines that were dropped because the reader of the log was too slow.
    pub fn dropped(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

/// How many log lines were dropped. Cheap to clone; the default counts nothing (a log that is not set up).
#[derive(Clone, Debug, Default)]
pub struct DroppedLines(Option<ErrorCounter>);

impl DroppedLines {
    /// Lines dropped since the start.
    pub fn count(&self) -> u64 {
        self.0
            .as_ref()
            .map_or(0, |counter| counter.dropped_lines() as u64)
    }
}

/// Reads and changes which lines are logged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// The filter in force, for example `info,weft=debug`.
    pub fn current(&self) -> String {
        let all = self.0.with_current(EnvFilter::to_string).unwrap_or_default();
        let shown = all.split(',').filter(|directive| *directive != QUIET);
        shown.collect::<Vec<_>>().join(",")
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// When `filter` is not one; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.0.reload(parse(filter)?).map_err(LogError::Gone)
    }
}

impl From<reload::Handle<EnvFilter, Registry>> for LogFilter {
    fn from(handle: reload::Handle<EnvFilter, Registry>) -> Self {
        Self(handle)
    }
}

/// Sets the process's log up: lines that pass `filter`, on stdout.
///
/// # Errors
/// When `filter` is not a filter, or the log is set up already.
pub fn init(filter: &str, format: LogFormat) -> Result<LogGuard, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let stdout = Unhurried(io::BufWriter::with_capacity(WRITE_BUFFER, io::stdout()));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUED_LINES)
        .lossy(true)
        .thread_name("weft-log")
        .finish(stdout);
    let dropped = DroppedLines(Some(writer.error_counter()));
    let subscriber = Registry::default().with(filter).with(lines(format, writer));
    subscriber.try_init().map_err(LogError::AlreadySet)?;
    Ok(LogGuard {
        filter: handle.into(),
        dropped,
        _writer: guard,
    })
}

/// Reads the text of a filter, for a command line.
///
/// # Errors
/// When it is not one.
pub fn filter(text: &str) -> Result<String, LogError> {
    parse(text).map(|_| text.to_owned())
}

/// `EnvFilter` takes a bare `verbose` for a target, which would silence everything else, and an empty text for `error`:
/// here a bare word must be a level.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let wrong = |source| LogError::Filter {
        filter: filter.chars().take(256).collect(),
        source,
    };
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let directives: Vec<&str> = filter.split(',').map(str::trim).collect();
    if !directives
        .iter()
        .all(|directive| directive.contains(['=', '[']) || is_level(directive))
    {
        return Err(wrong(None));
    }
    // Whatever is said later about a target wins.
    let all = [QUIET].into_iter().chain(directives).collect::<Vec<_>>();
    EnvFilter::try_new(all.join(",")).map_err(|source| wrong(Some(source)))
}

/// A library that logs what it also answers, each failure of the Kubernetes API for one, says it twice.
const QUIET: &str = "kube_client=off";

/// What turns events into lines. Never coloured: the lines are for `grep` and for collectors.
fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = layer().with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => Box::new(layer),
        LogFormat::Json => Box::new(layer.json().flatten_event(true).with_span_list(false)),
    }
}

/// One access event. The field names are Istio's; a field that has no value is left out of the line.
macro_rules! access_event {
    ($level:expr, $flow:expr, $message:literal $(, $name:ident = $value:expr)*) => {
        tracing::event!(
            target: "access",
            parent: None,
            $level,
            {
                src.addr = $flow.source.addr.map(tracing::field::display),
                src.workload = workload_name(&$flow.source),
                src.namespace = namespace(&$flow.source),
                src.identity = identity($flow, &$flow.source),
                src.cluster = cluster(&$flow.source),
                // As ztunnel has it: the address of the TCP connection, and what the tunnel's CONNECT asks for.
                dst.addr = $flow.gateway.or($flow.destination.addr).map(tracing::field::display),
                dst.hbone_addr = $flow.gateway.and($flow.destination.addr).map(tracing::field::display),
                dst.service = $flow.service.as_deref().map(|service| &*service.key.hostname),
                dst.workload = workload_name(&$flow.destination),
                dst.namespace = namespace(&$flow.destination),
                dst.identity = identity($flow, &$flow.destination),
                dst.cluster = cluster(&$flow.destination),
                direction = direction($flow.direction),
                // Only where it is not what Istio's readers expect: mutual TLS, or plaintext.
                path = ($flow.security == Security::Kernel).then_some("kernel")
                $(, $name = $value)*
            },
            $message
        )
    };
}

/// The DEBUG line of a connection whose way is clear, before its first byte.
pub fn opened(flow: &Flow) {
    access_event!(Level::DEBUG, flow, "connection opened");
}

/// The one line of a connection that has ended: INFO where it was carried to its end, ERROR otherwise.
pub fn access(flow: &Flow) {
    match &flow.outcome {
        Outcome::Complete => complete(flow),
        Outcome::Refused(refusal) => incomplete(flow, refusal),
        Outcome::Failed(_, error) => incomplete(flow, error),
    }
}

fn complete(flow: &Flow) {
    access_event!(
        Level::INFO,
        flow,
        "connection complete",
        policy = flow.policy.as_ref().map(tracing::field::display),
        bytes_sent = flow.bytes_sent(),
        bytes_recv = flow.bytes_received(),
        duration = duration(flow).as_str()
    );
}

fn incomplete(flow: &Flow, error: &dyn fmt::Display) {
    access_event!(
        Level::ERROR,
        flow,
        "connection complete",
        policy = decided_by(flow).map(tracing::field::display),
        bytes_sent = flow.bytes_sent(),
        bytes_recv = flow.bytes_received(),
        duration = duration(flow).as_str(),
        error = error.to_string().as_str()
    );
}

/// The policy that refused it; of one that failed, the one that had allowed it.
fn decided_by(flow: &Flow) -> Option<&PolicyKey> {
    match &flow.outcome {
        Outcome::Refused(refusal) => refusal.policy(),
        Outcome::Complete | Outcome::Failed(..) => flow.policy.as_ref(),
    }
}

fn workload_name(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.name)
}

fn namespace(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.namespace)
}

fn cluster(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.cluster)
}

/// An identity is printed only where it is certain.
fn identity<'a>(flow: &Flow, party: &'a Party) -> Option<&'a str> {
    party
        .identity
        .as_ref()
        .filter(|_| flow.security.has_identities())
        .map(|identity| identity.as_str())
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

fn duration(flow: &Flow) -> String {
    format!("{}ms", flow.duration.as_millis())
}

//! A pod's log, if somebody runs pods and says what they write ([`super::StandIn::logs_from`]).

use anyhow::Result;
use serde_json::Value;

use super::{
    Server,
    answer::{self, Answer, Content},
    failure::Failure,
    kinds::Kind,
    object,
    request::{Request, Target},
};

/// Which log of a pod.
#[derive(Clone, Copy, Debug)]
pub struct WantedLog<'a> {
    /// The container's name.
    pub container: &'a str,
    /// The time from which on (RFC 3339), or "".
    pub since: &'a str,
    /// Of the container that ended before the one that is there.
    pub previous: bool,
}

pub(super) type Source = Box<dyn Fn(&Value, WantedLog<'_>) -> Result<Vec<u8>> + Send + Sync>;

pub(super) fn answer(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    if request.method != "GET" {
        return Err(Failure::method_not_allowed());
    }
    let key = object::key(&target.namespace, &target.name);
    let pod = server.state().value("pods", &key);
    let pod = pod.ok_or_else(|| Failure::not_found(kind, &target.name))?;
    let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    let container = match request.query.text("container") {
        "" => first,
        named => named,
    };
    let wanted = WantedLog {
        container,
        since: request.query.text("sinceTime"),
        previous: request.query.flag("previous"),
    };
    let text = match server.logs.get() {
        Some(source) => source(&pod, wanted),
        None => Err(anyhow::anyhow!("nothing runs here")),
    };
    let mut text = text.map_err(|error| Failure::bad_request(format!("{error:#}")))?;
    if let Some(lines) = request.query.number("tailLines") {
        text.drain(..text.len() - tail(&text, lines));
    }
    let content = Content::Whole(Some(text.into()));
    Ok(answer::answer(200, "text/plain", content))
}

/// How many bytes the last so many lines have.
fn tail(text: &[u8], lines: u64) -> usize {
    let from_the_last = text.split_inclusive(|byte| *byte == b'\n').rev();
    let last = (0..lines).zip(from_the_last);
    last.map(|(_, line)| line.len()).sum()
}

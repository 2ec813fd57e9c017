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

/// Given the pod, the container and the time from which on.
pub(super) type Source = Box<dyn Fn(&Value, &str, &str) -> Result<Vec<u8>> + Send + Sync>;

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
    let text = match server.logs.get() {
        Some(source) => source(&pod, container, request.query.text("sinceTime")),
        None => Err(anyhow::anyhow!("nothing runs here")),
    };
    let text = text.map_err(|error| Failure::bad_request(format!("{error:#}")))?;
    let content = Content::Whole(Some(text.into()));
    Ok(answer::answer(200, "text/plain", content))
}

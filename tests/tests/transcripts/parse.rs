//! Reads the recordings: one exchange after the other, as `tests/kube-transcripts/README.md` describes them.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A request and what was answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) number: usize,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) status: u16,
    pub(crate) answered: Vec<(String, String)>,
    pub(crate) answer: Recorded,
}

/// An answer's body.
#[derive(Debug)]
pub(crate) enum Recorded {
    Json(Value),
    Text(String),
    /// A watch's.
    Events(Vec<Value>),
}

/// All exchanges of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<Exchange>> {
    let parts = text.split("\n### ").skip(1);
    parts
        .map(|part| exchange(part).with_context(|| part.lines().next().unwrap_or_default().to_owned()))
        .collect()
}

fn exchange(part: &str) -> Result<Exchange> {
    let mut lines = part.lines();
    let title = lines.next().unwrap_or_default();
    let number = title
        .split('.')
        .next()
        .unwrap_or_default()
        .parse()
        .context("its number")?;
    let request = lines.next().context("a request line")?;
    let [method, path, _] = request.split(' ').collect::<Vec<_>>()[..] else {
        bail!("a request line: {request}")
    };
    let headers = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(header)
        .collect();
    let rest: Vec<&str> = lines.collect();
    let at = rest
        .iter()
        .position(|line| line.starts_with("< HTTP/"))
        .context("an answer")?;
    let body: Vec<&str> = rest[..at]
        .iter()
        .filter(|line| !line.starts_with("# "))
        .copied()
        .collect();
    let status = rest[at]
        .split(' ')
        .nth(2)
        .unwrap_or_default()
        .parse()
        .context("a status")?;
    let after = &rest[at + 1..];
    let answered = after
        .iter()
        .filter_map(|line| header(line.strip_prefix("< ")?))
        .collect();
    Ok(Exchange {
        number,
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body: body.join("\n").trim().to_owned(),
        status,
        answered,
        answer: recorded(after)?,
    })
}

fn header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().to_lowercase(), value.trim().to_owned()))
}

fn recorded(lines: &[&str]) -> Result<Recorded> {
    let body = |lines: &[&str]| {
        let kept = lines
            .iter()
            .filter(|line| !line.starts_with('#') && !line.starts_with("< "));
        kept.copied().collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    let watch = lines.iter().any(|line| line.starts_with("# (headers arrived"));
    if watch {
        let events = lines.split(|line| line.starts_with("# event at")).skip(1);
        let events = events.map(|event| serde_json::from_str(&body(event)).context("an event"));
        return Ok(Recorded::Events(events.collect::<Result<_>>()?));
    }
    let text = body(lines);
    Ok(serde_json::from_str(&text).map_or(Recorded::Text(text), Recorded::Json))
}

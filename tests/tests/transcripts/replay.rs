//! Replays one recording against a fresh stand-in.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use weft_tests::kube::{Options, StandIn};

use super::{
    client::{self, Answer},
    compare::{self, Seen},
    parse::{Exchange, Recorded},
};

/// A stand-in in the state that a recording begins in, and what is known of the recording's names.
pub(crate) struct Replay {
    pub(crate) cluster: StandIn,
    pub(crate) seen: Seen,
}

/// Headers that a client may rely on.
const COMPARED: [&str; 5] = ["content-type", "cache-control", "warning", "retry-after", "vary"];

impl Replay {
    pub(crate) fn new() -> Result<Self> {
        let cluster = StandIn::start_with(Options {
            clock_by_hand: true,
            namespace_ends: Duration::from_secs(5),
            ..Options::default()
        })?;
        Ok(Self {
            cluster,
            seen: Seen::default(),
        })
    }

    /// Sends a request beside the recorded ones, which must succeed.
    pub(crate) fn request(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Value> {
        let headers = [("Accept", "application/json"), ("Content-Type", content_type)];
        let mut headers: Vec<_> = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        headers.push(self.admin());
        let answer = client::send(self.cluster.address(), method, path, &headers, body)?.answer()?;
        let status = answer.status;
        let body = answer.body()?;
        ensure!(status < 300, "{method} {path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Result<Value> {
        self.request("POST", path, "application/json", body)
    }

    pub(crate) fn patch(&self, path: &str, body: &str) -> Result<Value> {
        self.request("PATCH", path, "application/merge-patch+json", body)
    }

    pub(crate) fn delete(&self, path: &str, body: &str) -> Result<Value> {
        self.request("DELETE", path, "application/json", body)
    }

    /// The store was at this version then.
    pub(crate) fn at(&mut self, recorded: u64) -> Result<()> {
        let version = self.cluster.version();
        self.seen
            .learn_version(recorded, version, false)
            .map_err(anyhow::Error::msg)
    }

    /// A string of the recording is this one.
    pub(crate) fn learn(&mut self, recorded: &str, actual: &str) -> Result<()> {
        self.seen.learn(recorded, actual).map_err(anyhow::Error::msg)
    }

    fn admin(&self) -> (String, String) {
        (
            "Authorization".into(),
            format!("Bearer {}", self.cluster.admin_token()),
        )
    }

    /// Sends a recorded request and compares what comes back. `during` acts while a watch is open. `anonymous`: without
    /// credentials; else a request without any is the admin's, who had a client certificate.
    pub(crate) fn exchange(
        &mut self,
        exchange: &Exchange,
        anonymous: bool,
        during: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let mut headers: Vec<_> = exchange
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), self.translated(value)))
            .collect();
        if !anonymous && !headers.iter().any(|(name, _)| name == "authorization") {
            headers.push(self.admin());
        }
        let path = self.translated_path(&exchange.path);
        let body = self.translated_body(&exchange.body);
        let call = client::send(self.cluster.address(), &exchange.method, &path, &headers, &body)?;
        if exchange.status == 504 {
            // It waits for the version to come; the clock may be too early once.
            for _ in 0..100 {
                self.cluster.advance(Duration::from_secs(4));
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let answer = call.answer()?;
        let headers = self.headers(exchange, &answer);
        let status = answer.status;
        if let Recorded::Events(_) = exchange.answer {
            ensure!(status == 200, "{status}: {}", answer.body()?);
            during(self)?;
            // In steps, so that bookmarks come before the end however busy the machine is.
            for _ in 0..10 {
                self.cluster.advance(Duration::from_secs(10));
                std::thread::sleep(Duration::from_millis(5));
            }
            let events = events(&answer.body()?)?;
            headers?;
            return self.watch(exchange, &events);
        }
        let body = answer.body()?;
        ensure!(
            status == exchange.status,
            "{status} instead of {}: {body}",
            exchange.status
        );
        headers?;
        self.body(exchange, &body)
    }

    fn headers(&mut self, exchange: &Exchange, answer: &Answer) -> Result<()> {
        let recorded = |name: &str| {
            exchange
                .answered
                .iter()
                .find(|(own, _)| own == name)
                .map(|(_, value)| value.as_str())
        };
        for name in COMPARED {
            let (then, now) = (recorded(name), answer.header(name));
            ensure!(then == now, "{name}: {then:?} was recorded, {now:?} is there");
        }
        if let Some(etag) = recorded("etag") {
            self.learn(etag, answer.header("etag").context("an ETag")?)?;
        }
        if matches!(exchange.answer, Recorded::Events(_)) {
            ensure!(
                answer.header("transfer-encoding") == Some("chunked"),
                "a watch is chunked"
            );
        }
        Ok(())
    }

    fn body(&mut self, exchange: &Exchange, body: &str) -> Result<()> {
        match &exchange.answer {
            Recorded::Json(recorded) => {
                let actual = serde_json::from_str(body).with_context(|| format!("JSON: {body}"))?;
                self.seen
                    .compare("", recorded, &actual)
                    .map_err(anyhow::Error::msg)
            }
            Recorded::Text(text) if text == body.trim() => Ok(()),
            Recorded::Text(text) => bail!("{text:?} was recorded, {body:?} is there"),
            Recorded::Events(_) => bail!("no watch"),
        }
    }

    /// The events in their order. How many bookmarks come is no promise: one where there were some, none where none.
    fn watch(&mut self, exchange: &Exchange, actual: &[Value]) -> Result<()> {
        let Recorded::Events(recorded) = &exchange.answer else {
            bail!("a watch")
        };
        let recorded: Vec<_> = recorded.iter().filter(|event| !compare::is_fork(event)).collect();
        let plain = |event: &&Value| {
            event["type"] == "BOOKMARK" && event["object"]["metadata"]["annotations"].is_null()
        };
        let (marks, events): (Vec<&Value>, Vec<&Value>) = recorded.into_iter().partition(plain);
        let (own_marks, own): (Vec<&Value>, Vec<&Value>) = actual.iter().partition(plain);
        ensure!(
            marks.is_empty() == own_marks.is_empty(),
            "bookmarks: {own_marks:?}"
        );
        let told = |events: &[&Value]| -> Vec<String> {
            let all = events.iter();
            all.map(|event| format!("{} {}", event["type"], event["object"]["metadata"]["name"]))
                .collect()
        };
        ensure!(
            events.len() == own.len(),
            "{:?} were recorded, {:?} came",
            told(&events),
            told(&own)
        );
        let first = marks
            .first()
            .zip(own_marks.first())
            .map(|(one, other)| (*one, *other));
        for (i, (recorded, actual)) in events.into_iter().zip(own).chain(first).enumerate() {
            self.seen
                .compare(&format!("event {}", i + 1), recorded, actual)
                .map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Recorded strings replaced by this run's.
    fn translated(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (recorded, actual) in self.seen.strings().filter(|(recorded, _)| recorded.len() > 20) {
            text = text.replace(recorded.as_str(), actual);
        }
        text
    }

    fn translated_path(&self, path: &str) -> String {
        let Some((path, query)) = path.split_once('?') else {
            return self.translated(path);
        };
        let pairs = query.split('&').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = match (key, value.parse()) {
                ("resourceVersion", Ok(version)) if version > 0 => self.seen.version(version).to_string(),
                ("continue", _) => self.translated_token(value),
                _ => value.to_owned(),
            };
            format!("{key}={value}")
        });
        format!(
            "{}?{}",
            self.translated(path),
            pairs.collect::<Vec<_>>().join("&")
        )
    }

    /// A token to go on with, from an answer or, if it is from before, with this run's version.
    fn translated_token(&self, token: &str) -> String {
        if let Some(known) = self.seen.known(token) {
            return known.to_owned();
        }
        let translated = || {
            let mut fields: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            fields["rv"] = self.seen.version(fields["rv"].as_u64()?).into();
            Some(URL_SAFE_NO_PAD.encode(fields.to_string()))
        };
        translated().unwrap_or_else(|| token.to_owned())
    }

    fn translated_body(&self, body: &str) -> String {
        let body = self.translated(body).replace("(1030 times x)", &"x".repeat(1030));
        let Ok(mut value) = serde_json::from_str::<Value>(&body) else {
            return body;
        };
        for at in ["/metadata/resourceVersion", "/preconditions/resourceVersion"] {
            let Some(version) = value.pointer_mut(at) else {
                continue;
            };
            if let Some(recorded) = version.as_str().and_then(|version| version.parse().ok()) {
                *version = self.seen.version(recorded).to_string().into();
            }
        }
        value.to_string()
    }
}

fn events(body: &str) -> Result<Vec<Value>> {
    body.lines()
        .map(|line| serde_json::from_str(line).context("an event's line"))
        .collect()
}

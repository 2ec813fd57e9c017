//! Get and list: limits and what goes on from them, versions and how they are to match.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    Server,
    answer::{self, Answer},
    failure::{Cause, Failure},
    kinds::Kind,
    object::{self, Object},
    request::{Query, Request, Shape, Target},
    select::Selector,
};

/// How long a list of a version that is not there yet is kept waiting.
const FUTURE: Duration = Duration::from_secs(3);

pub(super) fn get(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let state = server.state();
    let key = object::key(&target.namespace, &target.name);
    let found = state
        .object(&kind.table, &key)
        .ok_or_else(|| Failure::not_found(kind, &target.name))?;
    let shown = match request.shape {
        Shape::Metadata => found.metadata(),
        _ => found.shown(kind, &target.version),
    };
    Ok(answer::json_bytes(200, shown))
}

/// Where a list begins and which version it shows.
struct Page {
    revision: u64,
    /// Keys from here on.
    start: String,
}

pub(super) async fn list(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let query = &request.query;
    validate(query, false)?;
    let selector = selector(query, target, kind)?;
    let mut page = page(server, query, kind)?;
    if page.revision > server.state().revision {
        return Err(future(server, page.revision).await);
    }
    if !query.has("continue")
        && let Some(older) = server.faults.stale(kind)
    {
        page.revision = older.min(page.revision);
    }
    let prefix = prefix(target);
    let from = prefix.clone().max(page.start.clone());
    let limit = query
        .number("limit")
        .filter(|limit| *limit > 0)
        .unwrap_or(u64::MAX) as usize;

    let mut state = server.state();
    let table = state.table(&kind.table);
    if page.revision < table.floor {
        return Err(too_old(query, &page.start));
    }
    let then;
    let all: Box<dyn Iterator<Item = (&str, &Arc<Object>)>> = if page.revision >= table.last {
        Box::new(
            table
                .objects
                .range(from..)
                .map(|(key, object)| (key.as_str(), object)),
        )
    } else {
        then = table
            .at(page.revision)
            .ok_or_else(|| too_old(query, &page.start))?;
        Box::new(then.range(from.as_str()..).map(|(key, object)| (*key, *object)))
    };
    let within = all.take_while(|(key, _)| key.starts_with(&prefix));
    let mut chosen = within.filter(|(key, object)| *key >= page.start.as_str() && selector.matches(object));
    let items: Vec<_> = chosen.by_ref().take(limit).collect();
    let rest = chosen.count();
    let next = items
        .last()
        .filter(|_| rest > 0)
        .map(|(key, _)| token(page.revision, key));
    let remaining = (next.is_some() && selector.is_empty()).then_some(rest);
    let objects = items.iter().map(|(_, object)| *object);
    let meta = Meta {
        revision: page.revision,
        next,
        remaining,
    };
    Ok(answer::json_bytes(
        200,
        rendered(kind, &target.version, request.shape, &meta, objects),
    ))
}

struct Meta {
    revision: u64,
    next: Option<String>,
    remaining: Option<usize>,
}

fn rendered<'a>(
    kind: &Kind,
    version: &str,
    shape: Shape,
    meta: &Meta,
    objects: impl Iterator<Item = &'a Arc<Object>>,
) -> Vec<u8> {
    let mut metadata = json!({"resourceVersion": meta.revision.to_string()});
    if kind.custom && shape == Shape::Whole {
        metadata["continue"] = "".into();
    }
    if let Some(next) = &meta.next {
        metadata["continue"] = next.as_str().into();
    }
    if let Some(remaining) = meta.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let (list, api_version) = match shape {
        Shape::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        _ => (kind.list.as_str(), kind.api_version(version)),
    };
    let head =
        format!("{{\"kind\":\"{list}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[");
    let mut body = head.into_bytes();
    for (at, object) in objects.enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend(match shape {
            Shape::Metadata => object.metadata(),
            _ => object.item(kind, version),
        });
    }
    body.extend_from_slice(b"]}");
    body
}

/// The keys of what is asked for begin so.
pub(super) fn prefix(target: &Target) -> String {
    if target.namespace.is_empty() {
        String::new()
    } else {
        format!("{}/", target.namespace)
    }
}

/// The selectors of a list or a watch; a name in the path is one more.
pub(super) fn selector(query: &Query, target: &Target, kind: &Kind) -> Result<Selector, Failure> {
    let mut fields = query.text("fieldSelector").to_owned();
    if !target.name.is_empty() {
        fields = format!("{fields},metadata.name={}", target.name);
    }
    Selector::parse(kind, query.text("labelSelector"), &fields)
}

fn page(server: &Server, query: &Query, kind: &Kind) -> Result<Page, Failure> {
    let current = server.state().revision;
    let version = query.text("resourceVersion");
    if query.has("continue") {
        if !["", "0"].contains(&version) {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Failure::bad_request(message));
        }
        let (revision, start) = read_token(query.text("continue"))?;
        return Ok(match u64::try_from(revision) {
            Ok(revision) => Page { revision, start },
            // The token of a list that has expired: it goes on from what there is now.
            Err(_) => Page {
                revision: current,
                start,
            },
        });
    }
    let asked = number(version)?;
    let exact = match query.text("resourceVersionMatch") {
        "Exact" => true,
        "" => asked > 0 && query.number("limit").is_some_and(|limit| limit > 0),
        _ => false,
    };
    let revision = if exact || asked > current { asked } else { current };
    let floor = server.state().table(&kind.table).floor;
    if exact && asked < floor {
        return Err(Failure::expired(
            "The resourceVersion for the provided list is too old.",
        ));
    }
    Ok(Page {
        revision,
        start: String::new(),
    })
}

/// A resourceVersion of a query; none is 0.
pub(super) fn number(version: &str) -> Result<u64, Failure> {
    if version.is_empty() {
        return Ok(0);
    }
    version.parse().map_err(|_| {
        Failure::internal(format!(
            "resourceVersion: Invalid value: \"{version}\": strconv.ParseUint: parsing \"{version}\": invalid syntax"
        ))
    })
}

/// What may not be asked for together.
pub(super) fn validate(query: &Query, watch: bool) -> Result<(), Failure> {
    let (matching, version) = (query.text("resourceVersionMatch"), query.text("resourceVersion"));
    let initial = query.has("sendInitialEvents");
    let mut causes = Vec::new();
    let field = "resourceVersionMatch";
    if initial && watch {
        if matching != "NotOlderThan" {
            let what = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            causes.push(Cause::forbidden(field, what));
        }
        if !["", "NotOlderThan"].contains(&matching) {
            let message = format!("Unsupported value: \"{matching}\": supported values: \"NotOlderThan\"");
            causes.push(Cause::new("FieldValueNotSupported", field, message));
        }
    } else if !matching.is_empty() && watch {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    } else if !matching.is_empty() && version.is_empty() {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    } else if matching == "Exact" && version == "0" {
        causes.push(Cause::forbidden(
            field,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ));
    }
    if initial && !watch {
        causes.push(Cause::forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ));
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid("meta.k8s.io", "ListOptions", "", &causes))
}

async fn future(server: &Server, asked: u64) -> Failure {
    server.clock.until(server.clock.now() + FUTURE).await;
    let current = server.state().revision;
    let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
    let details =
        json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
    Failure::new(504, "Timeout", message)
        .details(details)
        .retry_after(1)
}

fn too_old(query: &Query, start: &str) -> Failure {
    if !query.has("continue") {
        return Failure::expired("The resourceVersion for the provided list is too old.");
    }
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
    Failure::expired(message).go_on(encoded(-1, start))
}

/// Goes on right after `key`.
fn token(revision: u64, key: &str) -> String {
    encoded(revision as i64, &format!("/{key}\0"))
}

fn encoded(revision: i64, start: &str) -> String {
    let fields: BTreeMap<&str, Value> = [
        ("v", json!("meta.k8s.io/v1")),
        ("rv", json!(revision)),
        ("start", json!(start)),
    ]
    .into();
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&fields).unwrap_or_default())
}

fn read_token(token: &str) -> Result<(i64, String), Failure> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let fields: Value = serde_json::from_slice(&bytes).ok()?;
        let start = fields["start"].as_str()?;
        Some((
            fields["rv"].as_i64()?,
            start.strip_prefix('/').unwrap_or(start).to_owned(),
        ))
    };
    read().ok_or_else(|| {
        Failure::bad_request("invalid continue token: continue key is not valid: invalid character '\\u0081' looking for beginning of value")
    })
}

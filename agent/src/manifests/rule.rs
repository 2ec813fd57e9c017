//! Rules for requests as both APIs have them, and how values that both have are read.

use serde_json::Value;

use super::{Reader, gateway::Rank, read::there, words};
use crate::mesh::{
    Place,
    http::{DirectResponse, HeaderChanges, HeaderTest, RequestTest, RouteAction, Rule, RuleName, TextMatch},
};

/// A rule, and what a request must be to fall under it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HttpRule {
    pub(super) alternatives: Vec<Alternative>,
    pub(super) rule: Rule,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Alternative {
    pub(super) test: RequestTest,
    /// The only port of the service on which it counts.
    pub(super) port: Option<u16>,
    /// How specific it is, where that counts.
    pub(super) rank: Rank,
}

/// A rule that does nothing yet but this.
pub(super) fn plain(name: RuleName, action: RouteAction) -> Rule {
    Rule {
        name,
        cors: None,
        fault: None,
        request_headers: Default::default(),
        response_headers: Default::default(),
        rewrite: Default::default(),
        action,
        mirrors: Vec::new(),
        timeouts: Default::default(),
        retry: None,
    }
}

/// A rule that cannot be read: whoever falls under it is told so, and passed on to nobody.
pub(super) fn unreadable(name: RuleName) -> Rule {
    let respond = RouteAction::Respond(DirectResponse {
        status: 500,
        body: format!("{name} cannot be read").into(),
    });
    plain(name, respond)
}

/// Notes fields that nobody knows: what one of them was to narrow would be wider without it.
pub(super) fn only(value: &Value, known: &[&str], place: &Place<'_>, reader: &mut Reader<'_>) {
    let Some(fields) = reader.fields(value, place) else {
        return;
    };
    for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
        let message = format!("is not known here: write {}", known.join(", "));
        reader.invalid(&place.field(name), message);
    }
}

/// Leaves out changes of headers that no waypoint changes.
pub(super) fn only_changeable(changes: &mut HeaderChanges, place: &Place<'_>, reader: &mut Reader<'_>) {
    let mut told = false;
    let mut keeps = |name: &str| {
        let keeps = words::is_changeable(name);
        if !keeps && !told {
            told = true;
            let message = format!("{name} is the connection's own, and not changed: remove it");
            reader.warn(place, "HeaderNotChanged", message);
        }
        keeps
    };
    changes.set.retain(|(name, _)| keeps(name));
    changes.add.retain(|(name, _)| keeps(name));
    changes.remove.retain(|name| keeps(name));
}

/// `type` and `value` of a match of the Gateway API.
pub(super) fn typed(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<HeaderTest> {
    let type_ = reader.optional(value, "type", place, |text| Ok(text.to_owned()));
    let is = match type_.as_deref().unwrap_or("Exact") {
        "Exact" => reader
            .required(value, "value", place, words::any_text)
            .map(TextMatch::Exact),
        "RegularExpression" => reader
            .required(value, "value", place, words::expression)
            .map(TextMatch::Regex),
        _ => {
            let message = "is not known here: write Exact or RegularExpression";
            reader.invalid(&place.field("type"), message);
            None
        }
    };
    is.map(HeaderTest::Is)
}

/// A field of a field; `null` where there is none.
pub(super) fn within<'v>(value: &'v Value, field: &str) -> &'v Value {
    there(value, field).unwrap_or(&Value::Null)
}

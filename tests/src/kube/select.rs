//! Label and field selectors.

use serde_json::Value;

use super::{failure::Failure, kinds::Kind, object::Object};

/// What a list or a watch is limited to.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub(super) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = requirements(labels).map_err(Failure::bad_request)?;
        let fields = terms(fields).map_err(Failure::bad_request)?;
        for (field, ..) in &fields {
            let known = selectable(kind).iter().any(|(name, _)| name == field);
            if !known && !["metadata.name", "metadata.namespace"].contains(&field.as_str()) {
                return Err(Failure::bad_request(format!(
                    "field label not supported: {field}"
                )));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether it selects everything.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        let field = |name: &str| match name {
            "metadata.name" => object.name.as_str(),
            "metadata.namespace" => object.namespace.as_str(),
            name => object
                .fields
                .iter()
                .find(|(field, _)| *field == name)
                .map_or("", |(_, value)| value),
        };
        let fields = self
            .fields
            .iter()
            .all(|(name, equal, value)| (field(name) == value) == *equal);
        fields
            && self
                .labels
                .iter()
                .all(|requirement| requirement.holds(&object.labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &[(String, String)]) -> bool {
        let value = |key: &String| {
            labels
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value)
        };
        match self {
            Self::In(key, values) => value(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => value(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Whether a plain map of labels, as a Service's selector is, selects these; an empty one selects nothing.
pub(super) fn covers(selector: &[(String, String)], labels: &[(String, String)]) -> bool {
    !selector.is_empty() && selector.iter().all(|pair| labels.contains(pair))
}

/// `a=b,c!=d`.
fn terms(text: &str) -> Result<Vec<(String, bool, String)>, String> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let parsed = parts.map(|part| {
        let (name, equal, value) = if let Some((name, value)) = part.split_once("!=") {
            (name, false, value)
        } else {
            let (name, value) = part.split_once('=').ok_or(format!(
                "invalid field selector: {part}; can't understand '{part}'"
            ))?;
            (name, true, value.strip_prefix('=').unwrap_or(value))
        };
        Ok((name.trim().to_owned(), equal, value.trim().to_owned()))
    });
    parsed.collect()
}

/// `a=b,c in (d,e),!f,g`.
fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let mut found = Vec::new();
    let mut depth = 0;
    let parts = text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        found.push(requirement(part)?);
    }
    Ok(found)
}

fn requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key.trim().into()));
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = part.split_once(operator) {
            let (key, values) = (key.trim().to_owned(), vec![value.trim().to_owned()]);
            return Ok(if equal {
                Requirement::In(key, values)
            } else {
                Requirement::NotIn(key, values)
            });
        }
    }
    let words: Vec<&str> = part.splitn(3, char::is_whitespace).collect();
    let set = |values: &str| -> Vec<String> {
        let inner = values.trim().trim_start_matches('(').trim_end_matches(')');
        inner.split(',').map(|value| value.trim().to_owned()).collect()
    };
    match words.as_slice() {
        [key] => Ok(Requirement::Exists((*key).into())),
        [key, "in", values] => Ok(Requirement::In((*key).into(), set(values))),
        [key, "notin", values] => Ok(Requirement::NotIn((*key).into(), set(values))),
        [_, found, ..] => Err(format!(
            "unable to parse requirement: found '{found}', expected: in, notin, =, ==, !=, gt, lt"
        )),
        [] => Err("unable to parse requirement".into()),
    }
}

/// The fields that a resource can be selected by, beside name and namespace, and where they are.
fn selectable(kind: &Kind) -> &'static [(&'static str, &'static str)] {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("spec.hostNetwork", "/spec/hostNetwork"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
            ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ],
        ("", "services") => &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        ("", "secrets") => &[("type", "/type")],
        ("", "nodes") => &[("spec.unschedulable", "/spec/unschedulable")],
        ("", "namespaces") => &[("status.phase", "/status/phase")],
        (_, "events") => &[
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("reason", "/reason"),
            ("type", "/type"),
        ],
        _ => &[],
    }
}

/// Their values; a flag that is not there is "false".
pub(super) fn fields_of(kind: &Kind, value: &Value) -> Vec<(&'static str, String)> {
    let flags = ["spec.hostNetwork", "spec.unschedulable"];
    let told = selectable(kind).iter().map(|(name, at)| {
        let text = match value.pointer(at) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            _ if flags.contains(name) => "false".to_owned(),
            _ => String::new(),
        };
        (*name, text)
    });
    told.filter(|(_, text)| !text.is_empty()).collect()
}

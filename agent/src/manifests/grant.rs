//! ReferenceGrant: which objects of other namespaces may refer to those of its own.

use serde_json::Value;

use super::there;
use crate::cluster::objects::{Custom, Kind};

/// What a ReferenceGrant permits.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    from: Vec<(Kind, String)>,
    /// Without a name: all of the kind.
    to: Vec<(Kind, Option<String>)>,
}

impl Grant {
    /// Reads one: what cannot be read permits nothing.
    pub fn new(object: &Custom) -> Self {
        let text = |value: &Value, field| there(value, field).and_then(Value::as_str).map(str::to_owned);
        let kind = |value: &Value| {
            let group = text(value, "group").unwrap_or_default();
            let group = if group == "core" { "" } else { group.as_str() };
            Kind::find(group, &text(value, "kind")?)
        };
        let list = |field| {
            there(&object.spec, field)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        };
        let from = list("from").filter_map(|it| Some((kind(it)?, text(it, "namespace")?)));
        let to = list("to").filter_map(|it| match there(it, "name") {
            None => Some((kind(it)?, None)),
            Some(name) => Some((kind(it)?, Some(name.as_str()?.to_owned()))),
        });
        Self {
            from: from.collect(),
            to: to.collect(),
        }
    }

    /// Whether objects of a kind and namespace may refer to an object of the grant's namespace.
    pub fn permits(&self, from: (Kind, &str), to: (Kind, &str)) -> bool {
        let comes = |(kind, namespace): &(Kind, String)| (*kind, namespace.as_str()) == from;
        let goes = |(kind, name): &(Kind, Option<String>)| {
            *kind == to.0 && name.as_deref().is_none_or(|name| name == to.1 || name.is_empty())
        };
        self.from.iter().any(comes) && self.to.iter().any(goes)
    }
}

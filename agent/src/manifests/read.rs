//! Reads what a custom object says, value by value: what cannot be read becomes a diagnostic that names the field, and
//! everything else is read all the same.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};

use super::{Diagnostic, ObjectRef, Severity};
use crate::mesh::{Place, values};

/// The most diagnostics that are kept of one object, and the first of each reason besides: an object of which an error was left out
/// would read as being in force.
const MOST_DIAGNOSTICS: usize = 20;

/// Labels, or a selector for labels.
pub type Labels = BTreeMap<String, String>;

/// What is wrong with one object, as it is read.
pub struct Reader<'a> {
    object: ObjectRef,
    diagnostics: &'a mut Vec<Diagnostic>,
    told: usize,
    reasons: Vec<(Severity, &'static str)>,
    /// How many values could not be read.
    faults: usize,
}

impl<'a> Reader<'a> {
    /// A reader of one object.
    pub fn new(object: ObjectRef, diagnostics: &'a mut Vec<Diagnostic>) -> Self {
        Self {
            object,
            diagnostics,
            told: 0,
            reasons: Vec::new(),
            faults: 0,
        }
    }

    /// What is read.
    pub fn object(&self) -> &ObjectRef {
        &self.object
    }

    /// How many values could not be read so far.
    pub fn faults(&self) -> usize {
        self.faults
    }

    /// Notes anything about the object.
    pub fn tell(&mut self, severity: Severity, reason: &'static str, message: impl Into<String>) {
        self.told += 1;
        let is_new = !self.reasons.contains(&(severity, reason));
        if is_new {
            self.reasons.push((severity, reason));
        }
        if self.told <= MOST_DIAGNOSTICS || is_new {
            let diagnostic = Diagnostic::new(&self.object, severity, reason, message);
            self.diagnostics.push(diagnostic);
        }
    }

    /// Notes a value that cannot be read.
    pub fn invalid(&mut self, place: &Place<'_>, message: impl AsRef<str>) {
        self.faults += 1;
        let message = format!("{place}: {}", message.as_ref());
        self.tell(Severity::Error, "InvalidField", message);
    }

    /// Notes a value that is legal and may not do what was meant.
    pub fn warn(&mut self, place: &Place<'_>, reason: &'static str, message: impl AsRef<str>) {
        let message = format!("{place}: {}", message.as_ref());
        self.tell(Severity::Warning, reason, message);
    }

    /// The fields of a value that must be a list of fields.
    pub fn fields<'v>(&mut self, value: &'v Value, place: &Place<'_>) -> Option<&'v Map<String, Value>> {
        match value {
            Value::Object(fields) => Some(fields),
            _ => {
                self.invalid(place, "must be a list of fields, `name: value`");
                None
            }
        }
    }

    /// A text; numbers and truth values are taken for theirs.
    pub fn text<'v>(&mut self, value: &'v Value, place: &Place<'_>) -> Option<Cow<'v, str>> {
        match value {
            Value::String(text) => Some(text.as_str().into()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
            _ => {
                self.invalid(place, "must be a single value");
                None
            }
        }
    }

    /// The values of a list; none where the field is not there.
    pub fn list<'v>(&mut self, parent: &'v Value, field: &str, place: &Place<'_>) -> &'v [Value] {
        match there(parent, field) {
            None => &[],
            Some(Value::Array(values)) => values,
            Some(_) => {
                self.invalid(&place.field(field), "must be a list");
                &[]
            }
        }
    }

    /// Reads a value.
    pub fn parse<T>(
        &mut self,
        value: &Value,
        place: &Place<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(value, place)?;
        parse(&text).map_err(|message| self.invalid(place, message)).ok()
    }

    /// Reads a field that may be left out.
    pub fn optional<T>(
        &mut self,
        parent: &Value,
        field: &str,
        place: &Place<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.parse(there(parent, field)?, &place.field(field), parse)
    }

    /// Reads a field that must be there.
    pub fn required<T>(
        &mut self,
        parent: &Value,
        field: &str,
        place: &Place<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if there(parent, field).is_none() {
            self.invalid(&place.field(field), "is missing: add it");
        }
        self.optional(parent, field, place, parse)
    }

    /// Reads every value of a list that can be.
    pub fn all<T>(
        &mut self,
        parent: &Value,
        field: &str,
        place: &Place<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let values = self.list(parent, field, place).iter().enumerate();
        let place = place.field(field);
        values
            .filter_map(|(i, value)| self.parse(value, &place.index(i), &parse))
            .collect()
    }

    /// Labels by name; none where one cannot be read.
    pub fn labels(&mut self, value: &Value, place: &Place<'_>) -> Option<Labels> {
        let before = self.faults;
        let fields = self.fields(value, place)?;
        let texts = fields.iter().filter_map(|(key, value)| {
            let text = self.text(value, &place.field(key))?;
            Some((key.clone(), text.into_owned()))
        });
        let labels = texts.collect();
        (self.faults == before).then_some(labels)
    }

    /// `selector.matchLabels`: which workloads of a namespace an object is about.
    pub fn selector(&mut self, spec: &Value) -> Selector {
        let place = Place::ROOT.field("spec");
        let place = place.field("selector");
        let Some(selector) = there(spec, "selector") else {
            return Selector::Everything;
        };
        if self.fields(selector, &place).is_none() {
            return Selector::Unreadable;
        }
        match there(selector, "matchLabels") {
            None => Selector::Everything,
            Some(labels) => match self.labels(labels, &place.field("matchLabels")) {
                Some(labels) if labels.is_empty() => Selector::Everything,
                Some(labels) => Selector::Labels(labels),
                None => Selector::Unreadable,
            },
        }
    }
}

/// Which workloads of a namespace an object is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Selector {
    /// All.
    Everything,
    /// Those that have these labels, at least one.
    Labels(Labels),
    /// Nobody knows.
    Unreadable,
}

/// A field that is there, and not `null`.
pub fn there<'v>(parent: &'v Value, field: &str) -> Option<&'v Value> {
    parent.get(field).filter(|value| !value.is_null())
}

/// A number of a port. As text, for [`Reader::parse`].
pub fn port(text: &str) -> Result<u16, String> {
    values::port(text)
}

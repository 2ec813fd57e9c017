//! What the API server answers when it refuses: a `Status` object, its code and its words, as recorded.

use serde_json::{Map, Value, json};

use super::kinds::Kind;

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) code: u16,
    reason: Option<&'static str>,
    message: String,
    details: Option<Value>,
    /// A token to go on with, of a list whose own has expired.
    go_on: Option<String>,
    /// Seconds, as the header and in the details.
    pub(super) retry_after: Option<u32>,
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Cause {
    pub(super) fn new(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: field.into(),
        }
    }

    pub(super) fn required(field: impl Into<String>, what: &str) -> Self {
        let message = match what {
            "" => "Required value".to_owned(),
            what => format!("Required value: {what}"),
        };
        Self::new("FieldValueRequired", field, message)
    }

    /// `value` is shown as it is: quote it where it is a string.
    pub(super) fn invalid(field: impl Into<String>, value: impl std::fmt::Display, what: &str) -> Self {
        Self::new(
            "FieldValueInvalid",
            field,
            format!("Invalid value: {value}: {what}"),
        )
    }

    pub(super) fn forbidden(field: &str, what: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {what}"))
    }

    fn json(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: Some(reason),
            message: message.into(),
            details: None,
            go_on: None,
            retry_after: None,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// Without a reason, as of an error that the server did not expect.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self {
            reason: None,
            ..Self::new(500, "", message)
        }
    }

    pub(super) fn no_such_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .details(json!({}))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).details(json!({}))
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.qualified());
        Self::new(404, "NotFound", message).details(of_object(kind, name))
    }

    pub(super) fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.qualified());
        Self::new(409, "AlreadyExists", message).details(of_object(kind, name))
    }

    pub(super) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.qualified()
        );
        Self::new(409, "Conflict", message).details(of_object(kind, name))
    }

    /// The optimistic lock.
    pub(super) fn modified(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 422 for an object of `group`: `what` is its kind.
    pub(super) fn invalid(group: &str, what: &str, name: &str, causes: &[Cause]) -> Self {
        let qualified = if group.is_empty() {
            what.to_owned()
        } else {
            format!("{what}.{group}")
        };
        let told: Vec<_> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        let told = match told.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        let mut details = Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", what)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        details.insert("causes".into(), causes.iter().map(Cause::json).collect());
        Self::new(
            422,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {told}"),
        )
        .details(details.into())
    }

    pub(super) fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub(super) fn causes(mut self, causes: &[Cause]) -> Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        details["causes"] = causes.iter().map(Cause::json).collect();
        self
    }

    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        details["retryAfterSeconds"] = seconds.into();
        self.retry_after = Some(seconds);
        self
    }

    /// A token to go on with.
    pub(super) fn go_on(mut self, token: String) -> Self {
        self.go_on = Some(token);
        self
    }

    /// The `Status` object.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if let Some(reason) = self.reason {
            body["reason"] = reason.into();
        }
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        if let Some(token) = &self.go_on {
            body["metadata"]["continue"] = token.as_str().into();
        }
        body
    }
}

/// `details` that name an object; `kind` there is the resource.
pub(super) fn of_object(kind: &Kind, name: &str) -> Value {
    let mut details = json!({"kind": kind.plural});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    if !kind.group.is_empty() {
        details["group"] = kind.group.as_str().into();
    }
    details
}

//! What is wrong with an object, or will not do what it seems to: for its status condition, an event, and `weft analyze`.

use std::fmt;

use crate::cluster::objects::{Kind, ObjectMeta};

/// The longest message, in bytes: an event's may have 1,024.
const LONGEST_MESSAGE: usize = 600;

/// One thing that is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The object.
    pub object: ObjectRef,
    /// How bad it is.
    pub severity: Severity,
    /// For programs, CamelCase, for example `InvalidField`.
    pub reason: &'static str,
    /// For people: which field, what is wrong, and how to mend it.
    pub message: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// It is not in force as it stands, and what it is in doubt about is closed.
    Error,
    /// It is in force, but may not do what was meant.
    Warning,
    /// Worth knowing.
    Info,
}

/// Which object, and which state of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its namespace; empty for one without.
    pub namespace: String,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its uid; empty in a file.
    pub uid: String,
    /// What a condition's `observedGeneration` is to be; 0 where the kind has none.
    pub generation: i64,
}

impl ObjectRef {
    /// The object of this metadata.
    pub fn new(kind: Kind, metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            kind,
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
        }
    }

    /// Its API group, empty for Kubernetes' oldest kinds.
    pub fn group(&self) -> &'static str {
        self.kind.group()
    }

    /// The version that is read with preference; the API converts any other.
    pub fn version(&self) -> &'static str {
        self.kind.versions()[0]
    }
}

impl Diagnostic {
    /// One of an object; a message that is too long is cut.
    pub fn new(
        object: &ObjectRef,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object: object.clone(),
            severity,
            reason,
            message: cut(message.into()),
        }
    }
}

fn cut(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let mut end = LONGEST_MESSAGE - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.kind())?;
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            severity,
            reason,
            message,
        } = self;
        write!(f, "{severity}: {object}: {message} ({reason})")
    }
}

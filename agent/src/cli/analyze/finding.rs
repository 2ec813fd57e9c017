//! One thing that is wrong, with its code and where it stands.

use serde::{Serialize, Serializer};

use super::inputs::{Inputs, Line};
use crate::{
    cluster::objects::Kind,
    controller::{
        analyze::{Code, code},
        compile::{Diagnostic, Severity},
    },
};

/// It, as `-o json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    #[serde(serialize_with = "as_text")]
    pub(super) severity: Severity,
    /// `WEFT0401`.
    pub(super) code: String,
    /// As conditions and events have it.
    pub(super) reason: String,
    /// Empty for a whole file.
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// None in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<usize>,
    /// What is wrong with what, and the mend.
    pub(super) message: String,
    /// The code's mend, for all that have it.
    pub(super) mend: &'static str,
}

fn as_text<S: Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(severity)
}

impl Finding {
    /// One of a file.
    pub(super) fn of_file(at: Line, reason: &str, severity: Severity, message: String) -> Self {
        let code = code(reason);
        Self {
            severity,
            code: code.map(number).unwrap_or_default(),
            reason: reason.to_owned(),
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            file: Some(at.file).filter(|file| !file.is_empty()),
            line: Some(at.line).filter(|line| *line > 0),
            message,
            mend: code.map_or("", |code| code.mend),
        }
    }

    /// Whether it is about this namespace itself.
    pub(super) fn is_namespace(&self, name: &str) -> bool {
        self.kind == Kind::Namespace.kind() && self.name == name
    }
}

/// `WEFT0401`.
pub(super) fn number(code: &Code) -> String {
    format!("WEFT{:04}", code.number)
}

/// Everything that is wrong, by file and line; of a cluster by object.
pub(super) fn findings(diagnostics: Vec<Diagnostic>, inputs: &Inputs) -> Vec<Finding> {
    let mut findings: Vec<_> = inputs.findings.clone();
    findings.extend(diagnostics.into_iter().map(|it| finding(it, inputs)));
    findings.sort_by(|a, b| place(a).cmp(&place(b)));
    findings.dedup();
    findings
}

fn place(it: &Finding) -> impl Ord + '_ {
    (
        &it.file,
        it.line,
        &it.namespace,
        &it.kind,
        &it.name,
        it.severity,
        &it.code,
    )
}

fn finding(it: Diagnostic, inputs: &Inputs) -> Finding {
    let object = it.object;
    let key = (object.kind, object.namespace.clone(), object.name.clone());
    let place = inputs.place(&key, &field(&it.message));
    let kind = place
        .as_ref()
        .map_or(object.kind.kind(), |(_, kind)| kind)
        .to_owned();
    let line = place.map(|(line, _)| line);
    let at = line.unwrap_or(Line {
        file: String::new(),
        line: 0,
    });
    Finding {
        kind,
        namespace: object.namespace,
        name: object.name,
        ..Finding::of_file(at, it.reason, it.severity, it.message)
    }
}

/// The field that a message begins with, as a way through the object.
fn field(message: &str) -> String {
    let Some((field, _)) = message.split_once(": ") else {
        return String::new();
    };
    match field.split_once(' ') {
        Some(("label", key)) => format!("metadata.labels.{key}"),
        Some(("annotation", key)) => format!("metadata.annotations.{key}"),
        _ => field.to_owned(),
    }
}

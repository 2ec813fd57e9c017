//! What is looked at: the objects of files, and where each of them stands; or a cluster's.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{files::Text, finding::Finding};
use crate::{
    cluster::objects::{Kind, ManifestError, Object},
    controller::compile::Severity,
    manifests::documents::{Document, documents},
};

/// Objects in one list.
const MOST_ITEMS: usize = 100_000;

/// What has pods to be, and where it says how they are.
const TEMPLATES: [(&str, &str); 7] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// It.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    objects: Vec<Object>,
    files: Vec<String>,
    documents: Vec<(usize, Document)>,
    origins: BTreeMap<Key, Origin>,
    /// What is wrong before anything is looked at.
    pub(super) findings: Vec<Finding>,
    /// Documents of kinds that say nothing to weft.
    pub(super) others: usize,
}

/// Kind, namespace and name.
type Key = (Kind, String, String);

/// Where an object stands.
#[derive(Debug)]
struct Origin {
    /// Its document.
    document: usize,
    /// What stands before its fields there.
    prefix: String,
    /// Its kind in the file: a pod may be a Deployment's.
    kind: String,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) file: String,
    /// From 1.
    pub(super) line: usize,
}

impl Inputs {
    /// Those of files, in this namespace where they name none.
    pub(super) fn of_files(texts: Vec<Text>, namespace: Option<&str>) -> Self {
        let mut inputs = Self::default();
        for text in texts {
            let file = inputs.files.len();
            inputs.files.push(text.path);
            match text.text {
                Ok(it) => inputs.file(file, &it, text.in_folder, namespace),
                Err(message) => inputs.wrong(file, 1, "Unreadable", Severity::Error, message),
            }
        }
        inputs
    }

    /// Those of a cluster.
    pub(super) fn of_cluster(objects: Vec<Object>, findings: Vec<Finding>) -> Self {
        Self {
            objects,
            findings,
            ..Self::default()
        }
    }

    pub(super) fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// How many files there are.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// Where a field of an object stands, and what the file calls the object's kind.
    pub(super) fn place(&self, key: &Key, field: &str) -> Option<(Line, &str)> {
        let origin = self.origins.get(key)?;
        let (file, document) = self.documents.get(origin.document)?;
        let line = Line {
            file: self.files.get(*file)?.clone(),
            line: document.line_of(&format!("{}{field}", origin.prefix)),
        };
        Some((line, &origin.kind))
    }

    fn wrong(&mut self, file: usize, line: usize, reason: &str, severity: Severity, message: String) {
        let file = self.files.get(file).cloned().unwrap_or_default();
        self.findings
            .push(Finding::of_file(Line { file, line }, reason, severity, message));
    }

    fn file(&mut self, file: usize, text: &str, in_folder: bool, namespace: Option<&str>) {
        for document in documents(text) {
            match document {
                Ok(document) => {
                    let value = document.value.clone();
                    let at = self.documents.len();
                    self.documents.push((file, document));
                    self.value(at, value, String::new(), in_folder, namespace);
                }
                Err(it) => self.wrong(file, it.line, "Unreadable", Severity::Error, it.message),
            }
        }
    }

    /// An object, or a list of some.
    fn value(&mut self, at: usize, value: Value, prefix: String, in_folder: bool, namespace: Option<&str>) {
        let is_list = value
            .get("kind")
            .and_then(Value::as_str)
            .is_some_and(|kind| kind.ends_with("List"));
        match value.get("items") {
            Some(Value::Array(items)) if is_list && prefix.is_empty() => {
                for (i, item) in items.iter().take(MOST_ITEMS).enumerate() {
                    self.value(at, item.clone(), format!("items[{i}]."), in_folder, namespace);
                }
            }
            _ => self.object(at, value, prefix, in_folder, namespace),
        }
    }

    fn object(
        &mut self,
        at: usize,
        mut value: Value,
        prefix: String,
        in_folder: bool,
        namespace: Option<&str>,
    ) {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        let mut origin = Origin {
            document: at,
            prefix,
            kind: kind.to_owned(),
        };
        if let Some((pod, path)) = pod_of(&value) {
            value = pod;
            origin.prefix += &path;
        }
        if let (Some(namespace), Some(Value::Object(metadata))) = (namespace, value.get_mut("metadata")) {
            metadata.entry("namespace").or_insert_with(|| namespace.into());
        }
        match Object::from_manifest(value) {
            Ok(object) => self.add(object, origin),
            Err(ManifestError::NotRead { .. }) => self.others += 1,
            Err(error) => self.no_object(&origin, &error, in_folder),
        }
    }

    fn no_object(&mut self, origin: &Origin, error: &ManifestError, in_folder: bool) {
        let Some((file, document)) = self.documents.get(origin.document) else {
            return;
        };
        let (file, line) = (*file, document.line_of(&origin.prefix));
        let message = crate::net::chain(error);
        match error {
            // Folders have other files than manifests too.
            ManifestError::NotAnObject(_) if in_folder => {
                self.wrong(file, line, "NotAnObject", Severity::Info, message);
            }
            ManifestError::NotAnObject(_) => {
                self.wrong(file, line, "NotAnObject", Severity::Error, message);
            }
            _ => self.wrong(file, line, "InvalidObject", Severity::Error, message),
        }
    }

    fn add(&mut self, object: Object, origin: Origin) {
        let metadata = object.metadata();
        // What is in no namespace may name one all the same.
        let namespace = metadata
            .namespace
            .clone()
            .filter(|_| object.kind().is_namespaced());
        let key = (
            object.kind(),
            namespace.unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        );
        if let Some((line, _)) = self.place(&key, "") {
            let message = format!(
                "is defined in {}:{} as well, and the last one counts: remove one of them",
                line.file, line.line
            );
            self.twice(&origin, &key, message);
        }
        self.origins.insert(key, origin);
        self.objects.push(object);
    }

    fn twice(&mut self, origin: &Origin, key: &Key, message: String) {
        let Some((file, document)) = self.documents.get(origin.document) else {
            return;
        };
        let line = Line {
            file: self.files.get(*file).cloned().unwrap_or_default(),
            line: document.line_of(&origin.prefix),
        };
        let mut finding = Finding::of_file(line, "DefinedTwice", Severity::Warning, message);
        finding.kind.clone_from(&origin.kind);
        (finding.namespace, finding.name) = (key.1.clone(), key.2.clone());
        self.findings.push(finding);
    }
}

/// A pod as a template describes it, and where in the document. It runs on no node in particular.
fn pod_of(value: &Value) -> Option<(Value, String)> {
    let kind = value.get("kind")?.as_str()?;
    let (_, path) = TEMPLATES.iter().find(|(its, _)| *its == kind)?;
    let template = value.pointer(path)?.as_object()?;
    let owner = value.get("metadata")?;
    let mut metadata = template
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for field in ["name", "namespace"] {
        match owner.get(field) {
            Some(it) => metadata.insert(field.to_owned(), it.clone()),
            None => metadata.remove(field),
        };
    }
    let mut spec = template
        .get("spec")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_else(Map::new);
    spec.entry("nodeName").or_insert_with(|| "any".into());
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    let fields: String = path.trim_start_matches('/').replace('/', ".");
    Some((pod, fields + "."))
}

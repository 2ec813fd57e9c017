//! The objects of the manifests that a mesh file names, and where each is written. (What they mean: `routes`.)

use std::{collections::BTreeMap, error::Error, path::Path, sync::Arc};

use super::{
    Problem,
    manifests::ManifestFile,
    problem::{Place, Problems},
    schema::Document,
    values,
};
use crate::{
    cluster::objects::{Custom, Kind, ManifestError, Object},
    manifests::{
        Diagnostic, ObjectRef, Severity,
        documents::{self, documents},
    },
};

/// The kinds that say something beside a mesh file, whose workloads and services are its own.
const KINDS: [Kind; 10] = [
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::ReferenceGrant,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::VirtualService,
    Kind::DestinationRule,
];

/// All of them, by namespace, kind and name.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<ObjectRef, Written>);

#[derive(Debug)]
struct Written {
    object: Custom,
    file: Arc<Path>,
    document: documents::Document,
}

impl Objects {
    /// Reads them, and notes what is none.
    pub(super) fn read(document: &Document, files: &[ManifestFile], problems: &mut Problems) -> Self {
        let section = Place::ROOT.field("manifests");
        let entries: Vec<_> = document.manifests.iter().flatten().collect();
        let mut all = Self::default();
        for file in files {
            match &file.text {
                Ok(text) => all.read_file(&file.path, text, problems),
                Err(why) => {
                    let message = format!("{} cannot be read: {why}", file.path.display());
                    let at = entries.get(file.entry).map(|text| text.referenced);
                    let at = at.unwrap_or(serde_saphyr::Location::UNKNOWN);
                    problems.add(at, &section.index(file.entry), message);
                }
            }
        }
        all
    }

    fn read_file(&mut self, file: &Arc<Path>, text: &str, problems: &mut Problems) {
        for document in documents(text) {
            match document {
                Ok(document) => self.read_one(file, document, problems),
                Err(unreadable) => problems.push(problem(file, unreadable.line, "", unreadable.message)),
            }
        }
    }

    fn read_one(&mut self, file: &Arc<Path>, document: documents::Document, problems: &mut Problems) {
        let line = document.line;
        match Object::from_manifest(document.value.clone()) {
            Ok(Object::Custom(kind, object)) if KINDS.contains(&kind) => {
                let key = ObjectRef::new(kind, &object.metadata);
                let written = Written {
                    object: *object,
                    file: Arc::clone(file),
                    document,
                };
                if let Err(message) = self.insert(key.clone(), written) {
                    problems.push(problem(file, line, key, message));
                }
            }
            Ok(object) => {
                let message =
                    "is not read beside a mesh file, which has workloads, services and waypoints of its own";
                let object = ObjectRef::new(object.kind(), object.metadata());
                problems.push_warning(problem(file, line, object, message));
            }
            Err(error @ ManifestError::NotRead { .. }) => {
                problems.push_warning(problem(file, line, "", error.to_string()));
            }
            Err(error) => {
                let why = error.source().map_or_else(String::new, |why| format!(": {why}"));
                problems.push(problem(file, line, "", format!("{error}{why}")));
            }
        }
    }

    fn insert(&mut self, key: ObjectRef, written: Written) -> Result<(), String> {
        values::label(&key.namespace)?;
        values::name(&key.name)?;
        let same = |other: &ObjectRef| {
            (&other.namespace, other.kind, &other.name) == (&key.namespace, key.kind, &key.name)
        };
        if self.0.keys().any(same) {
            return Err("there are two of this name: rename or remove one".into());
        }
        self.0.insert(key, written);
        Ok(())
    }

    /// The objects of a kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = (&ObjectRef, &Custom)> {
        self.all().filter(move |(key, _)| key.kind == kind)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&ObjectRef, &Custom)> {
        self.0.iter().map(|(key, written)| (key, &written.object))
    }

    /// Notes what is wrong with them, at the line where it is written.
    pub(super) fn tell(&self, diagnostics: Vec<Diagnostic>, problems: &mut Problems) {
        for Diagnostic {
            object,
            severity,
            message,
            ..
        } in diagnostics
        {
            let (mut file, mut line) = (None, 0);
            if let Some(written) = self.0.get(&object) {
                file = Some(Arc::clone(&written.file));
                line = written.document.line_of(field(&message));
            }
            let problem = Problem {
                file,
                line: line as u64,
                column: 0,
                field: object.to_string(),
                message,
            };
            match severity {
                Severity::Error => problems.push(problem),
                Severity::Warning => problems.push_warning(problem),
                Severity::Info => {}
            }
        }
    }
}

/// The field that a message begins with; empty where it begins with none.
fn field(message: &str) -> &str {
    let start = message.split_once(": ").map_or("", |(start, _)| start);
    if start.contains(' ') { "" } else { start }
}

fn problem(file: &Arc<Path>, line: usize, object: impl ToString, message: impl Into<String>) -> Problem {
    Problem {
        file: Some(Arc::clone(file)),
        line: line as u64,
        column: 0,
        field: object.to_string(),
        message: message.into(),
    }
}

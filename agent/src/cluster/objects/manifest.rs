//! Objects from manifests: what people write into files.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::{Custom, Kind, Object};

/// Why a document is no object that is read.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It has no `apiVersion`, `kind` or name.
    #[error("is no object: it has no `{0}`")]
    NotAnObject(&'static str),
    /// An object that says nothing to weft.
    #[error("{kind} of {api_version} is not read")]
    NotRead {
        /// The group and the version.
        api_version: String,
        /// The kind.
        kind: String,
    },
    /// A field that Kubernetes would refuse.
    #[error("is no {kind} that Kubernetes would take")]
    Invalid {
        /// The kind.
        kind: &'static str,
        /// Which field, and why.
        source: serde_json::Error,
    },
}

impl Object {
    /// The object of one document of a file, in namespace `default` where it names none.
    ///
    /// # Errors
    /// Where it is none that is read.
    pub fn from_manifest(document: Value) -> Result<Self, ManifestError> {
        let text = |field| document.get(field).and_then(Value::as_str);
        let api_version = text("apiVersion").ok_or(ManifestError::NotAnObject("apiVersion"))?;
        let kind = text("kind").ok_or(ManifestError::NotAnObject("kind"))?;
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = Kind::find(group, kind).ok_or_else(|| ManifestError::NotRead {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        })?;
        let mut object = match kind {
            Kind::Namespace => Self::Namespace(read(kind, document)?),
            Kind::Node => Self::Node(read(kind, document)?),
            Kind::Pod => Self::Pod(read(kind, document)?),
            Kind::Service => Self::Service(read(kind, document)?),
            Kind::EndpointSlice => Self::EndpointSlice(read(kind, document)?),
            kind => Self::Custom(kind, read::<Custom>(kind, document)?),
        };
        let metadata = object.metadata_mut();
        if metadata.name.is_none() {
            return Err(ManifestError::NotAnObject("metadata.name"));
        }
        if kind.is_namespaced() {
            metadata.namespace.get_or_insert_with(|| "default".into());
        }
        Ok(object)
    }
}

fn read<T: DeserializeOwned>(kind: Kind, document: Value) -> Result<Box<T>, ManifestError> {
    let read = serde_json::from_value(document);
    read.map(Box::new).map_err(|source| ManifestError::Invalid {
        kind: kind.kind(),
        source,
    })
}

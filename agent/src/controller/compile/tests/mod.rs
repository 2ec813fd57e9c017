//! Manifests and what they mean: each `manifests/NAME.yaml` against `manifests/NAME.mesh`, the mesh in a form to be read.

mod goldens;
mod incremental;
mod mesh;
mod random;
mod show;
mod show_http;

use serde_json::Value;

use super::*;
use crate::cluster::objects::Object;

/// The objects of a file of manifests.
fn objects(text: &str) -> Vec<Object> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let object = |document| Object::from_manifest(document).expect("an object that is read");
    documents.into_iter().map(object).collect()
}

/// What a file of manifests means, in a cluster of IPv4 and IPv6.
fn compiled(text: &str) -> Compiled {
    compile(&Resources::new(objects(text)), &settings())
}

fn settings() -> Settings {
    Settings {
        cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ..Settings::default()
    }
}

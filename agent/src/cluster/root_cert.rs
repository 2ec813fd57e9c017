//! The roots of the mesh, as the controller gives them out.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::time::timeout;

use super::client::explain;
use crate::rpc::Roots;

/// The ConfigMap that has them, in weft's own namespace.
pub const CONFIG_MAP: &str = "weft-ca-root-cert";
/// Its key, as that of Istio's ConfigMap.
pub const ROOT_CERT: &str = "root-cert.pem";

/// How long the API may take to say them.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads them from the ConfigMap of this namespace, each time anew; those of the last time where the API does not answer,
/// because the controller can be there when the API is not.
pub fn root_cert(client: Client, namespace: String) -> Roots {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let last = Arc::<Mutex<Option<Vec<u8>>>>::default();
    Arc::new(move || {
        let (maps, namespace, last) = (maps.clone(), namespace.clone(), Arc::clone(&last));
        Box::pin(async move {
            let read = timeout(DEADLINE, read(&maps, &namespace)).await;
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the API does not answer");
            let read = read.map_err(late).flatten();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            match (read, &*last) {
                (Err(_), Some(last)) => Ok(last.clone()),
                (Err(error), None) => Err(error),
                (Ok(pem), _) => Ok(last.insert(pem).clone()),
            }
        })
    })
}

async fn read(maps: &Api<ConfigMap>, namespace: &str) -> io::Result<Vec<u8>> {
    let map = maps.get(CONFIG_MAP).await;
    let map = map.map_err(|error| io::Error::other(explain(&error)))?;
    let pem = map.data.and_then(|mut data| data.remove(ROOT_CERT));
    let missing = || {
        io::Error::other(format!(
            "the ConfigMap {namespace}/{CONFIG_MAP} has no {ROOT_CERT}"
        ))
    };
    pem.map(String::into_bytes).ok_or_else(missing)
}

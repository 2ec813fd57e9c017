//! What the controller said of objects, taken back: `weft uninstall-hook` runs it when no controller is left. A condition that
//! stayed would say of a cluster without weft that a policy is in force.

use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::json;

use super::conditions::{FIELD_MANAGER, merge::cleared};
use crate::cluster::{
    client::{explain, is_not_found},
    objects::{Custom, Kind},
};

/// The kinds of which the controller writes a status.
const KINDS: [Kind; 15] = [
    Kind::Namespace,
    Kind::Service,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::RequestAuthentication,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::VirtualService,
    Kind::DestinationRule,
];
/// Objects that are listed at a time.
const PAGE: u32 = 500;
/// How often a kind is gone through while others write at the same time.
const TRIES: usize = 5;

/// What came of it.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Objects that say nothing of weft's any more.
    pub written: usize,
    /// Those that go on saying it, and why the API would not have it changed.
    pub refused: Vec<String>,
}

/// Takes what is the controller's from the status of every object. What others say there stays.
///
/// # Errors
/// When objects cannot be listed.
pub async fn clear(client: &Client) -> Result<Cleared, kube::Error> {
    let mut all = Cleared::default();
    for kind in KINDS {
        let mut tries = 0;
        loop {
            let mut overtaken = Vec::new();
            tries += 1;
            match pass(client, kind, &mut all, &mut overtaken).await {
                // The list is older than what the API keeps.
                Err(kube::Error::Api(status)) if status.code == 410 && tries < TRIES => continue,
                other => other?,
            }
            if overtaken.is_empty() {
                break;
            }
            if tries == TRIES {
                all.refused.append(&mut overtaken);
                break;
            }
        }
    }
    Ok(all)
}

/// Goes once through the objects of a kind.
async fn pass(
    client: &Client,
    kind: Kind,
    all: &mut Cleared,
    overtaken: &mut Vec<String>,
) -> Result<(), kube::Error> {
    for version in kind.versions() {
        let resource = kind.api_resource(version);
        match pages(client, kind, &resource, all, overtaken).await {
            // This version is not served, or the kind is not installed.
            Err(error) if is_not_found(&error) => {}
            other => return other,
        }
    }
    Ok(())
}

async fn pages(
    client: &Client,
    kind: Kind,
    resource: &ApiResource,
    all: &mut Cleared,
    overtaken: &mut Vec<String>,
) -> Result<(), kube::Error> {
    let api: Api<Custom> = Api::all_with(client.clone(), resource);
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = api.list(&page).await?;
        for live in found.items {
            let Some(status) = cleared(kind, &live) else {
                continue;
            };
            match put(client, resource, &live, &status).await {
                Ok(()) => all.written += 1,
                Err(error) if is_not_found(&error) => {}
                Err(kube::Error::Api(error)) if error.code == 409 => {
                    overtaken.push(format!("{}: somebody else writes it", title(kind, &live)));
                }
                Err(error) => {
                    let why = explain(&error);
                    all.refused.push(format!("{}: {why}", title(kind, &live)));
                }
            }
        }
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

async fn put(
    client: &Client,
    resource: &ApiResource,
    live: &Custom,
    status: &serde_json::Value,
) -> Result<(), kube::Error> {
    let name = live.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Custom> = match &live.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    // With the version that was read: what others have in the same list has not changed meanwhile.
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "resourceVersion": live.metadata.resource_version},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(name, &params, &Patch::Apply(&patch)).await?;
    Ok(())
}

fn title(kind: Kind, live: &Custom) -> String {
    let namespace = live.metadata.namespace.as_deref().unwrap_or_default();
    let name = live.metadata.name.as_deref().unwrap_or_default();
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{} {namespace}{slash}{name}", kind.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::conditions::merge::ours;

    #[test]
    fn every_kind_with_a_condition_of_ours_is_gone_through() {
        for kind in Kind::ALL {
            assert!(ours(kind).is_empty() || KINDS.contains(&kind), "{kind:?}");
        }
    }
}

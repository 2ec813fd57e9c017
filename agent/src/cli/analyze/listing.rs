//! Lists what a cluster has of every kind that is read.

use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{ApiResource, PartialObjectMeta},
};
use serde::de::DeserializeOwned;

use super::{
    finding::Finding,
    inputs::{Inputs, Line},
};
use crate::{
    cluster::{
        client::{Access, connect, explain, is_not_found},
        objects::{Custom, EndpointSlice, Kind, Namespace, Node, Object, Pod, Service},
    },
    controller::compile::Severity,
};

/// Objects of one answer of the API.
const PAGE: u32 = 500;

/// Everything.
///
/// # Errors
/// When there is no way to the cluster. A kind that may not be listed is said, and left out.
pub(super) async fn list(access: &Access) -> Result<Inputs, String> {
    let client = connect(access).await.map_err(|error| crate::net::chain(&error))?;
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    for kind in Kind::ALL {
        match of_kind(kind, &client).await {
            Ok(found) => objects.extend(found),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let message = format!("{}: {}", kind.plural(), explain(&kube::Error::Api(status)));
                let nowhere = Line {
                    file: String::new(),
                    line: 0,
                };
                findings.push(Finding::of_file(
                    nowhere,
                    "CannotList",
                    Severity::Warning,
                    message,
                ));
            }
            Err(error) => return Err(explain(&error)),
        }
    }
    Ok(Inputs::of_cluster(objects, findings))
}

async fn of_kind(kind: Kind, client: &Client) -> Result<Vec<Object>, kube::Error> {
    match kind {
        Kind::Namespace => all::<Namespace>(client).await,
        Kind::Node => all::<Node>(client).await,
        Kind::Pod => all::<Pod>(client).await,
        Kind::Service => all::<Service>(client).await,
        Kind::EndpointSlice => all::<EndpointSlice>(client).await,
        kind => {
            let Some(resource) = served(kind, client).await? else {
                return Ok(Vec::new());
            };
            let api = Api::<Custom>::all_with(client.clone(), &resource);
            pages(&api, |it| Object::Custom(kind, Box::new(it))).await
        }
    }
}

async fn all<K>(client: &Client) -> Result<Vec<Object>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    Object: From<K>,
{
    pages(&Api::<K>::all(client.clone()), Object::from).await
}

/// The best version of a kind that the cluster serves; none where it does not know the kind.
async fn served(kind: Kind, client: &Client) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions() {
        let resource = kind.api_resource(version);
        let api = Api::<PartialObjectMeta<Custom>>::all_with(client.clone(), &resource);
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => return Ok(Some(resource)),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn pages<K>(api: &Api<K>, object: impl Fn(K) -> Object) -> Result<Vec<Object>, kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut objects = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await?;
        objects.extend(list.items.into_iter().map(|it| {
            let mut it = object(it);
            it.forget_managers();
            it
        }));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

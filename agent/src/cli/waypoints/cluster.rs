//! What these commands ask of the API.

use anyhow::{anyhow, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Service},
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, Patch, PatchParams},
    core::{ApiResource, ObjectMeta, PartialObjectMeta},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ClusterArgs;
use crate::cluster::{
    client::{connect, explain, is_not_found},
    labels,
    objects::{Custom, Kind},
};

/// Objects of one answer of the API.
const PAGE: u32 = 500;
/// Who we are where several write one object.
const FIELD_MANAGER: &str = "weft-cli";

/// A cluster that has Gateways.
pub(super) struct Cluster {
    client: Client,
    gateway: ApiResource,
}

impl Cluster {
    /// # Errors
    /// When it does not answer, or has no Gateway API.
    pub(super) async fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let client = connect(&args.access()).await?;
        for version in Kind::Gateway.versions() {
            let gateway = Kind::Gateway.api_resource(version);
            let gateways = Api::<PartialObjectMeta<Custom>>::all_with(client.clone(), &gateway);
            match gateways.list_metadata(&ListParams::default().limit(1)).await {
                Err(error) if is_not_found(&error) => {}
                // Who may not list all of them may still be allowed what is asked for.
                Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Self { client, gateway }),
                Err(error) => return Err(anyhow!(explain(&error))),
                Ok(_) => return Ok(Self { client, gateway }),
            }
        }
        bail!(
            "this cluster has no Gateway API: install its custom resources (https://gateway-api.sigs.k8s.io), then run \
             `helm upgrade` for weft once more"
        )
    }

    /// The kubeconfig's.
    pub(super) fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    pub(super) fn api_version(&self) -> &str {
        &self.gateway.api_version
    }

    fn gateways(&self, namespace: &str) -> Api<Custom> {
        Api::namespaced_with(self.client.clone(), namespace, &self.gateway)
    }

    pub(super) async fn gateway(&self, namespace: &str, name: &str) -> anyhow::Result<Option<Custom>> {
        let found = self.gateways(namespace).get_opt(name).await;
        found.map_err(|error| anyhow!(explain(&error)))
    }

    /// All of a namespace, or of all.
    pub(super) async fn all_gateways(&self, namespace: Option<&str>) -> anyhow::Result<Vec<Custom>> {
        match namespace {
            Some(namespace) => list(&self.gateways(namespace)).await,
            None => list(&Api::all_with(self.client.clone(), &self.gateway)).await,
        }
    }

    /// Makes it as it is, or puts it right.
    pub(super) async fn apply_gateway(&self, gateway: &Value) -> anyhow::Result<()> {
        let text = |field: &str| gateway["metadata"][field].as_str().unwrap_or_default();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let gateways = self.gateways(text("namespace"));
        let applied = gateways
            .patch(text("name"), &params, &Patch::Apply(gateway))
            .await;
        applied.map(drop).map_err(|error| anyhow!(explain(&error)))
    }

    pub(super) async fn delete_gateway(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let deleted = self.gateways(namespace).delete(name, &Default::default()).await;
        deleted.map(drop).map_err(|error| anyhow!(explain(&error)))
    }

    /// Sends a namespace's services through a waypoint of its own.
    pub(super) async fn bind_namespace(&self, namespace: &str, waypoint: &str) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"labels": {labels::USE_WAYPOINT: waypoint, labels::USE_WAYPOINT_NAMESPACE: null}}});
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let patched = namespaces
            .patch_metadata(namespace, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(drop).map_err(|error| anyhow!(explain(&error)))
    }

    /// # Errors
    /// When it is not there.
    pub(super) async fn check_namespace(&self, name: &str) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        match namespaces.get_metadata(name).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => {
                bail!("there is no namespace {name}: `kubectl get namespaces` lists them")
            }
            Err(error) => Err(anyhow!(explain(&error))),
        }
    }

    /// Of every service and namespace the metadata.
    pub(super) async fn services(&self) -> anyhow::Result<(Vec<ObjectMeta>, Vec<ObjectMeta>)> {
        let services = Api::<Service>::all(self.client.clone());
        let namespaces = Api::<Namespace>::all(self.client.clone());
        Ok((metadata(&services).await?, metadata(&namespaces).await?))
    }

    /// The Deployments of waypoints.
    pub(super) async fn deployments(&self, namespace: Option<&str>) -> anyhow::Result<Vec<Deployment>> {
        let all = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let of = ListParams::default().labels(labels::GATEWAY_NAME);
        let found = all.list(&of).await;
        found
            .map(|found| found.items)
            .map_err(|error| anyhow!(explain(&error)))
    }
}

async fn list<K>(api: &Api<K>) -> anyhow::Result<Vec<K>>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut all = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = api.list(&page).await.map_err(|error| anyhow!(explain(&error)))?;
        all.extend(found.items);
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn metadata<K>(api: &Api<K>) -> anyhow::Result<Vec<ObjectMeta>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut all = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let found = api
            .list_metadata(&page)
            .await
            .map_err(|error| anyhow!(explain(&error)))?;
        all.extend(found.items.into_iter().map(|it| it.metadata));
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

//! The stand-in API server's troubles, each met by kube-rs' own watcher: it must come back to the right set of objects.
//! That the faults strike at all is asserted, too.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use weft_tests::{
    LIMIT,
    kube::{Fault, Options, Rule, StandIn},
};

/// Names and what they hold.
type Set = BTreeMap<String, String>;

/// Tries again soon, for ever.
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(20))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {}
}

async fn client(kubeconfig: &str) -> Result<Client> {
    let config = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// What a watcher has told.
#[derive(Default)]
struct Told {
    set: Set,
    arriving: Set,
    /// Names in the order in which they were told, and every error.
    names: Vec<String>,
    errors: Vec<String>,
    lists: usize,
}

/// A watcher of the ConfigMaps of "demo".
struct Follower {
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    fn start(client: Client, config: watcher::Config) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let own = told.clone();
        let api: Api<ConfigMap> = Api::namespaced(client, "demo");
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, config).backoff(Soon));
            while let Some(event) = events.next().await {
                own.lock().unwrap_or_else(PoisonError::into_inner).hear(event);
            }
        });
        Self { told, task }
    }

    fn look<T>(&self, see: impl Fn(&Told) -> T) -> T {
        see(&self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until what was told satisfies `check`.
    async fn until(&self, what: &str, check: impl Fn(&Told) -> bool) -> Result<()> {
        let looked = async {
            while !self.look(&check) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LIMIT, looked).await.is_err() {
            bail!(
                "waited in vain for {what}: {:?} {:?}",
                self.look(|told| told.set.clone()),
                self.look(|told| told.errors.clone())
            );
        }
        Ok(())
    }

    /// Waits until the watcher knows what the server has.
    async fn agrees(&self, cluster: &StandIn) -> Result<()> {
        let there = there(cluster);
        self.until(&format!("{there:?}"), |told| told.set == there).await
    }
}

impl Told {
    fn hear(&mut self, event: watcher::Result<watcher::Event<ConfigMap>>) {
        match event {
            Ok(watcher::Event::Init) => self.arriving.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                let (name, value) = entry(&object);
                self.names.push(name.clone());
                self.arriving.insert(name, value);
            }
            Ok(watcher::Event::InitDone) => {
                self.lists += 1;
                self.set = std::mem::take(&mut self.arriving);
            }
            Ok(watcher::Event::Apply(object)) => {
                let (name, value) = entry(&object);
                self.names.push(name.clone());
                self.set.insert(name, value);
            }
            Ok(watcher::Event::Delete(object)) => {
                self.set.remove(&entry(&object).0);
            }
            Err(err) => self.errors.push(err.to_string()),
        }
    }
}

fn entry(object: &ConfigMap) -> (String, String) {
    let name = object.metadata.name.clone().unwrap_or_default();
    let data = object.data.as_ref().and_then(|data| data.get("v").cloned());
    (name, data.unwrap_or_default())
}

fn there(cluster: &StandIn) -> Set {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = cluster.list("ConfigMap", "demo");
    all.iter()
        .map(|object| (text(&object["metadata"]["name"]), text(&object["data"]["v"])))
        .collect()
}

fn put(cluster: &StandIn, name: &str, value: &str) -> Result<()> {
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "demo"}, "data": {"v": value},
    }))
}

/// A server with three objects, and a client of it.
async fn world() -> Result<(StandIn, Client)> {
    let cluster = StandIn::start()?;
    ["a", "b", "c"]
        .iter()
        .try_for_each(|name| put(&cluster, name, "1"))?;
    let client = client(&cluster.kubeconfig()).await?;
    Ok((cluster, client))
}

/// Both ways in which a watcher learns what there is.
fn both() -> [watcher::Config; 2] {
    [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ]
}

/// One object each made, changed and removed.
fn churn(cluster: &StandIn, round: &str) -> Result<()> {
    put(cluster, &format!("new-{round}"), round)?;
    put(cluster, "a", round)?;
    put(cluster, &format!("brief-{round}"), round)?;
    cluster.delete("ConfigMap", "demo", &format!("brief-{round}"));
    Ok(())
}

/// Follows a server whose troubles begin before the watcher does, and changes things meanwhile.
async fn follows(config: watcher::Config, rule: Rule) -> Result<(StandIn, Follower)> {
    let (cluster, client) = world().await?;
    cluster.faults().inject(rule);
    let follower = Follower::start(client, config);
    for round in ["one", "two", "three"] {
        churn(&cluster, round)?;
        follower.agrees(&cluster).await?;
    }
    Ok((cluster, follower))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_is_waited_for() -> Result<()> {
    for config in both() {
        let slow = Rule::new(Fault::Slow(Duration::from_millis(30))).on("configmaps");
        let (_cluster, follower) = follows(config, slow).await?;
        assert!(follower.look(|told| told.errors.is_empty()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_cut_in_the_middle_of_a_line_goes_on() -> Result<()> {
    for config in both() {
        for after in 0..4 {
            let cut = Rule::new(Fault::Cut { after }).on("configmaps").times(3);
            follows(config.clone(), cut).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_watch_can_be_cut() -> Result<()> {
    for config in both() {
        let (cluster, client) = world().await?;
        let follower = Follower::start(client, config);
        follower.agrees(&cluster).await?;
        for round in ["one", "two", "three"] {
            let watches = cluster.requests("watch", "configmaps");
            // The watcher may be between two watches, where nothing can be cut.
            follower
                .until("another watch", |_| {
                    cluster.faults().cut_watches("configmaps");
                    cluster.requests("watch", "configmaps") > watches
                })
                .await?;
            churn(&cluster, round)?;
            follower.agrees(&cluster).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_list_is_caught_up_with() -> Result<()> {
    let (cluster, client) = world().await?;
    let version = cluster.version();
    cluster.delete("ConfigMap", "demo", "b");
    churn(&cluster, "since")?;
    cluster
        .faults()
        .inject(Rule::new(Fault::Stale { version }).on("configmaps").times(1));
    let follower = Follower::start(client, watcher::Config::default());
    follower.agrees(&cluster).await?;
    assert!(
        follower.look(|told| told.names.contains(&"b".to_owned())),
        "the list was not stale"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_twice_change_nothing() -> Result<()> {
    for config in both() {
        let (_cluster, follower) = follows(config, Rule::new(Fault::Duplicate)).await?;
        let times = |name: &str| follower.look(|told| told.names.iter().filter(|own| *own == name).count());
        assert_eq!(times("new-three"), 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_another_order_make_the_same_set() -> Result<()> {
    let (cluster, client) = world().await?;
    cluster.faults().inject(Rule::new(Fault::Reorder));
    let follower = Follower::start(client, watcher::Config::default());
    follower.agrees(&cluster).await?;
    let names: Vec<String> = (0..20).map(|i| format!("n{i:02}")).collect();
    names.iter().try_for_each(|name| put(&cluster, name, "1"))?;
    names.iter().try_for_each(|name| put(&cluster, name, "2"))?;
    follower.agrees(&cluster).await?;
    let told = follower.look(|told| told.names.clone());
    let told: Vec<_> = told.into_iter().filter(|name| name.starts_with('n')).collect();
    let sent: Vec<_> = names.iter().chain(&names).cloned().collect();
    assert_ne!(told, sent, "the order is the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gone_starts_over() -> Result<()> {
    for config in both() {
        for verb in ["list", "watch"] {
            follows(config.clone(), Rule::new(Fault::Gone).verb(verb).times(2)).await?;
        }
        let (cluster, client) = world().await?;
        let follower = Follower::start(client, config);
        follower.agrees(&cluster).await?;
        let lists = follower.look(|told| told.lists);
        follower
            .until("another list", |told| {
                cluster.faults().expire_watches("configmaps");
                told.lists > lists
            })
            .await?;
        churn(&cluster, "after")?;
        follower.agrees(&cluster).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_tried_again() -> Result<()> {
    for config in both() {
        for code in [429, 500, 503] {
            let (cluster, _) = follows(config.clone(), Rule::new(Fault::Fail(code)).times(4)).await?;
            let asked = ["list", "watch"].map(|verb| cluster.requests(verb, "configmaps"));
            assert!(asked.iter().sum::<u64>() > 4, "{asked:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_waited_for() -> Result<()> {
    for config in both() {
        let (cluster, client) = world().await?;
        let follower = Follower::start(client, config);
        follower.agrees(&cluster).await?;
        let errors = follower.look(|told| told.errors.len());
        cluster.faults().refuse();
        churn(&cluster, "away")?;
        follower
            .until("refused connections", |told| told.errors.len() > errors + 3)
            .await?;
        assert_ne!(follower.look(|told| told.set.clone()), there(&cluster));
        cluster.faults().recover();
        follower.agrees(&cluster).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_waited_for() -> Result<()> {
    for config in both() {
        let (cluster, client) = world().await?;
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "demo");
        let follower = Follower::start(client, config);
        follower.agrees(&cluster).await?;
        cluster.faults().hang();
        churn(&cluster, "meanwhile")?;
        let asked = tokio::time::timeout(Duration::from_millis(100), api.get("a")).await;
        assert!(asked.is_err(), "it answers");
        cluster.faults().recover();
        assert_eq!(entry(&api.get("a").await?).1, "meanwhile");
        follower.agrees(&cluster).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_forgets_is_survived() -> Result<()> {
    for config in both() {
        let (cluster, client) = world().await?;
        let follower = Follower::start(client, config);
        follower.agrees(&cluster).await?;
        let lists = follower.look(|told| told.lists);
        // Away, so that the watcher cannot resume before something is forgotten.
        cluster.faults().refuse();
        churn(&cluster, "forgotten")?;
        cluster.faults().restart();
        cluster.faults().recover();
        follower.agrees(&cluster).await?;
        assert!(follower.look(|told| told.lists) > lists, "it did not start over");
    }
    Ok(())
}

/// What simulations of scale ask of it: fifty thousand pods, listed in chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_pods_are_listed_in_chunks() -> Result<()> {
    const PODS: usize = 50_000;
    let cluster = StandIn::start_with(Options {
        endpoint_slices: false,
        ..Options::default()
    })?;
    for i in 0..PODS {
        cluster.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{i}"), "namespace": format!("ns-{}", i % 100), "labels": {"app": format!("app-{}", i % 500)}},
            "spec": {"nodeName": format!("node-{}", i % 1000), "containers": [{"name": "app", "image": "example.test/app:1"}]},
            "status": {"phase": "Running", "podIP": format!("10.{}.{}.{}", i / 65536, (i / 256) % 256, i % 256)},
        }))?;
    }
    let api: Api<Pod> = Api::all(client(&cluster.kubeconfig()).await?);
    let (mut seen, mut chunks, mut go_on) = (0, 0, String::new());
    loop {
        let first = ListParams::default().limit(500);
        let params = if go_on.is_empty() {
            first
        } else {
            first.continue_token(&go_on)
        };
        let page = api.list(&params).await?;
        seen += page.items.len();
        chunks += 1;
        go_on = match page.metadata.continue_ {
            Some(token) if !token.is_empty() => token,
            _ => break,
        };
        // What changes between two pages does not show.
        cluster.delete("Pod", "ns-0", &format!("pod-{}", chunks * 100));
    }
    assert_eq!((seen, chunks), (PODS, 100));
    let of_node = ListParams::default().fields("spec.nodeName=node-7");
    assert_eq!(api.list(&of_node).await?.items.len(), PODS / 1000);
    Ok(())
}

/// Over TLS, by a service account: RBAC says what it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_may_what_rbac_says() -> Result<()> {
    let cluster = StandIn::start_with(Options {
        tls: true,
        ..Options::default()
    })?;
    cluster.apply_yaml("{apiVersion: v1, kind: ServiceAccount, metadata: {name: app, namespace: demo}}")?;
    let token = cluster.token("demo", "app", &[], None)?;
    let client = client(&cluster.kubeconfig_of(&token)).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), "demo");
    match services.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => bail!("{other:?}"),
    }
    cluster.apply_yaml(concat!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r, namespace: demo}\n",
        "rules: [{apiGroups: [''], resources: [services], verbs: [list]}]\n---\n",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: r, namespace: demo}\n",
        "roleRef: {kind: Role, name: r, apiGroup: rbac.authorization.k8s.io}\n",
        "subjects: [{kind: ServiceAccount, name: app, namespace: demo}]\n",
    ))?;
    assert!(services.list(&ListParams::default()).await?.items.is_empty());
    assert_eq!(client.apiserver_version().await?.major, "1");
    Ok(())
}

/// Definitions that are installed late: 404 before, served after, the same objects under each version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_is_served_once_it_is_there() -> Result<()> {
    let (cluster, client) = world().await?;
    let path = |version: &str| format!("/apis/gateway.networking.k8s.io/{version}/namespaces/demo/gateways");
    let get = |path: String| {
        let request = http::Request::get(path).body(Vec::new());
        let client = client.clone();
        async move { anyhow::Ok(client.request::<Value>(request?).await?) }
    };
    assert!(get(path("v1")).await.is_err());
    cluster.install_crds()?;
    cluster.apply_yaml("{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g, namespace: demo}, spec: {gatewayClassName: x}}")?;
    for version in ["v1", "v1beta1"] {
        let list = get(path(version)).await?;
        let first = list["items"].get(0).context("a gateway")?;
        assert_eq!(
            first["apiVersion"],
            format!("gateway.networking.k8s.io/{version}")
        );
    }
    assert!(
        cluster
            .get("Gateway.gateway.networking.k8s.io", "demo", "g")
            .is_some()
    );
    assert!(cluster.get("Gateway.networking.istio.io", "demo", "g").is_none());
    let found = cluster.until(
        ("Gateway.gateway.networking.k8s.io", "demo", "g"),
        LIMIT,
        |found| found.is_some(),
    );
    assert_eq!(
        found
            .await?
            .map(|found| found["spec"]["gatewayClassName"].clone()),
        Some("x".into())
    );
    assert!(cluster.delete(
        "CustomResourceDefinition",
        "",
        "gateways.gateway.networking.k8s.io"
    ));
    assert!(get(path("v1")).await.is_err());
    Ok(())
}

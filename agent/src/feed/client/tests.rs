//! The client against the server, over TLS.

use std::{net::SocketAddr, path::PathBuf};

use hyper::body::Incoming;
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    feed::{
        on_demand,
        server::Server,
        store::{Encoded, Store, Update},
        wds,
    },
    mesh::{PolicyKey, SameNodes, TrustDomain, Workload},
    rpc::{Answer, Handler, ServerTls, serve},
};

const WAIT: Duration = Duration::from_secs(20);
const NAME: &str = "weft-controller.weft-system.svc";

/// Whoever calls is taken.
struct Open(Server);

impl Handler for Open {
    fn call(self: Arc<Self>, request: http::Request<Incoming>) -> Answer {
        Box::pin(async move {
            assert_eq!(request.uri().path(), DELTA_PATH);
            assert_eq!(request.headers()["authorization"], "Bearer a-token");
            self.0.answer("test".into(), CancellationToken::new(), request)
        })
    }
}

struct World {
    store: Store,
    server: Server,
    root: String,
    tls: ServerTls,
    token: PathBuf,
}

impl World {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let tls = ServerTls::new(
            vec![cert.der().clone()],
            key.serialize_der().try_into().unwrap(),
            None,
        )
        .unwrap();
        let token = std::env::temp_dir().join(format!("weft-token-{}-{:p}", std::process::id(), &tls));
        std::fs::write(&token, "a-token\n").unwrap();
        let store = Store::default();
        Self {
            server: Server::new(store.clone()),
            store,
            root: cert.pem(),
            tls,
            token,
        }
    }

    /// Serves on an address until the token is cancelled.
    async fn serve(&self, at: &str) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = loop {
            match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let handler = Arc::new(Open(self.server.clone()));
        let serving = tokio::spawn(serve(listener, self.tls.clone(), handler, shutdown.clone()));
        (address, shutdown, serving)
    }

    fn client(&self, address: SocketAddr) -> Client {
        self.client_of(address, NAME, false)
    }

    fn waypoint(&self, address: SocketAddr) -> Client {
        self.client_of(address, NAME, true)
    }

    /// One that expects a server of this name.
    fn client_of(&self, address: SocketAddr, server_name: &str, subscribe_http: bool) -> Client {
        Client::spawn(self.config(address, server_name, subscribe_http))
    }

    fn config(&self, address: SocketAddr, server_name: &str, subscribe_http: bool) -> ClientConfig {
        let root = self.root.clone();
        ClientConfig {
            credentials: Credentials {
                address: address.to_string(),
                server_name: server_name.to_owned(),
                roots: Arc::new(move || {
                    let root = root.clone().into_bytes();
                    Box::pin(async move { Ok(root) })
                }),
                token: self.token.clone(),
                cert: None,
                cluster: "Kubernetes".into(),
            },
            id: "agent".into(),
            node: "a".into(),
            settings: MeshSettings {
                trust_domain: TrustDomain::default(),
                cluster: "Kubernetes".into(),
                cluster_domain: "cluster.local".into(),
                root_namespace: "istio-system".into(),
                cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                same_nodes: SameNodes::default(),
            },
            subscribe_http,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.token);
    }
}

fn pod(name: &str, address: &str, policies: &[PolicyKey]) -> (Workload, Update) {
    let mut workload = wds::tests::sample();
    workload.uid = format!("Kubernetes//Pod/shop/{name}").into();
    workload.addresses = vec![address.parse().unwrap()];
    workload.policies.clear();
    let encoded = Encoded {
        bytes: wds::encode_workload(&workload, policies),
        aliases: vec![format!("/{address}")],
        with: Vec::new(),
    };
    let update = Update {
        kind: Kind::Address,
        name: workload.uid.clone(),
        resource: Some(encoded),
    };
    (workload, update)
}

fn gone(name: &str) -> Update {
    Update {
        kind: Kind::Address,
        name: format!("Kubernetes//Pod/shop/{name}").into(),
        resource: None,
    }
}

/// The next mesh that has these workloads and no others.
async fn mesh_with(client: &mut Client, names: &[&str]) -> Answered {
    let found = async {
        loop {
            let answered = client.changed().await;
            let mut uids: Vec<_> = answered.mesh.workloads().map(|it| it.uid.to_string()).collect();
            uids.sort();
            if uids
                == names
                    .iter()
                    .map(|name| format!("Kubernetes//Pod/shop/{name}"))
                    .collect::<Vec<_>>()
            {
                return answered;
            }
        }
    };
    timeout(WAIT, found).await.expect("the mesh never came")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WAIT, wait)
        .await
        .unwrap_or_else(|_| panic!("{what} never came"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_arrives_changes_and_outlives_its_server() {
    let world = World::new();
    let (address, shutdown, serving) = world.serve("127.0.0.1:0").await;
    let mut client = world.client(address);
    // There is nothing to say before the server has a whole mesh.
    until("the client", || {
        world
            .server
            .counts()
            .clients
            .load(std::sync::atomic::Ordering::Relaxed)
            == 1
    })
    .await;
    let (first, update) = pod("a-1", "10.0.0.1", &[]);
    world.store.update([update]);
    let mesh = mesh_with(&mut client, &["a-1"]).await.mesh;
    assert_eq!(**mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap(), first);
    world.store.update([pod("b-1", "10.0.0.2", &[]).1]);
    mesh_with(&mut client, &["a-1", "b-1"]).await;

    let quiet = SystemTime::now();
    shutdown.cancel();
    serving.await.unwrap();
    world.store.update([gone("a-1"), pod("c-1", "10.0.0.3", &[]).1]);
    let state = client.state();
    until("the loss", || !state.lock().unwrap().connected).await;
    let heard = state.lock().unwrap().heard;
    assert!(
        heard >= Some(quiet),
        "it was there until then, though it had nothing to say"
    );
    let before = world
        .server
        .counts()
        .pushes
        .load(std::sync::atomic::Ordering::Relaxed);
    let _serving = world.serve(&address.to_string()).await;
    mesh_with(&mut client, &["b-1", "c-1"]).await;
    assert!(state.lock().unwrap().connected);
    let after = world
        .server
        .counts()
        .pushes
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        after - before,
        2,
        "one for each kind: what it has already is not sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_and_the_rest_is_taken() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    world.store.update([pod("a-1", "10.0.0.1", &[]).1]);
    let mut client = world.client(address);
    mesh_with(&mut client, &["a-1"]).await;
    let mut broken = pod("a-1", "10.0.0.1", &[]).1;
    broken.resource.as_mut().unwrap().bytes = "not a message".into();
    world.store.update([broken, pod("b-1", "10.0.0.2", &[]).1]);
    mesh_with(&mut client, &["a-1", "b-1"]).await;
    until("the NACK", || {
        world
            .server
            .counts()
            .nacks
            .load(std::sync::atomic::Ordering::Relaxed)
            == 1
    })
    .await;
    let error = client.state().lock().unwrap().error.clone().unwrap();
    assert!(error.contains("shop/a-1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_looked_up() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    world.store.update([pod("a-1", "10.0.0.1", &[]).1]);
    let mut client = world.client(address);
    mesh_with(&mut client, &["a-1"]).await;
    let (on_demand, mut lookups) = on_demand();
    let unknown = tokio::spawn(async move {
        on_demand
            .look_up(&"pod".into(), "10.9.9.9".parse().unwrap())
            .await
    });
    for lookup in lookups.next().await.unwrap() {
        client.look_up(lookup);
    }
    assert_eq!(unknown.await.unwrap(), crate::feed::Answer::Answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_tries_every_address_does_not_cut_its_agent_off() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    world.store.update([pod("a-1", "10.0.0.1", &[]).1]);
    let mut client = world.client(address);
    mesh_with(&mut client, &["a-1"]).await;
    let (on_demand, mut lookups) = on_demand();
    // More than a client may name that has not asked for everything.
    for number in 0..10_100_u32 {
        let tried = std::net::Ipv4Addr::from(0x0a80_0000 + number).into();
        let on_demand = on_demand.clone();
        let unknown = tokio::spawn(async move { on_demand.look_up(&"pod".into(), tried).await });
        for lookup in lookups.next().await.unwrap() {
            client.look_up(lookup);
        }
        assert_eq!(unknown.await.unwrap(), crate::feed::Answer::Answered);
    }
    world.store.update([pod("b-1", "10.0.0.2", &[]).1]);
    mesh_with(&mut client, &["a-1", "b-1"]).await;
    let state = client.state().lock().unwrap().clone();
    assert!(state.connected && state.error.is_none(), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mtls_modes_arrive_as_modes() {
    use crate::mesh::{MtlsMode, PortModes};
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    let strict = PortModes {
        mode: MtlsMode::Strict,
        ..PortModes::default()
    };
    let (shop, root) = ("shop".into(), "istio-system".into());
    let key = wds::modes_policy(&strict, &PolicyKey::default(), &shop, &root).unwrap();
    let policy = Update {
        kind: Kind::Authorization,
        name: key.to_string().into(),
        resource: Some(Encoded {
            bytes: wds::encode_policy(&wds::encode_modes(key.clone(), &strict)),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    };
    world.store.update([policy, pod("a-1", "10.0.0.1", &[key]).1]);
    let mut client = world.client(address);
    let mesh = mesh_with(&mut client, &["a-1"]).await.mesh;
    let workload = mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(mesh.mtls_mode(workload, 80), MtlsMode::Strict);
    assert_eq!((mesh.policies().len(), workload.policies.len()), (0, 0));
}

fn policy(key: &PolicyKey) -> Update {
    let policy = crate::mesh::Policy {
        key: key.clone(),
        scope: crate::mesh::Scope::Selector,
        action: crate::mesh::Action::Deny,
        rules: Vec::new(),
        dry_run: false,
    };
    Update {
        kind: Kind::Authorization,
        name: key.to_string().into(),
        resource: Some(Encoded {
            bytes: wds::encode_policy(&policy),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    }
}

/// istiod sends policies in a response of their own, after the workloads that name them.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_waits_for_the_policies_that_this_nodes_pods_name_and_not_for_ever() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    let [late, never, elsewhere] = ["late", "never", "elsewhere"].map(|name| PolicyKey {
        namespace: "shop".into(),
        name: name.into(),
    });
    let (mut far, _) = pod("b-1", "10.0.0.2", &[]);
    far.node = "b".into();
    let mut of_far = pod("b-1", "10.0.0.2", &[]).1;
    of_far.resource.as_mut().unwrap().bytes = wds::encode_workload(&far, &[elsewhere]);
    world.store.update([of_far]);
    let mut client = world.client(address);
    // What another node's pods lack holds nobody up.
    mesh_with(&mut client, &["b-1"]).await;
    assert_eq!(pod("a-1", "10.0.0.1", &[]).0.node.as_ref(), "a");
    world
        .store
        .update([pod("a-1", "10.0.0.1", std::slice::from_ref(&late)).1]);
    let early = timeout(POLICIES / 2, client.changed()).await;
    assert!(early.is_err(), "a mesh without its policy: {early:?}");
    world.store.update([policy(&late)]);
    let arrived = timeout(POLICIES / 2, client.changed())
        .await
        .expect("with its policy");
    assert_eq!(
        (arrived.mesh.workloads().len(), arrived.mesh.policies().len()),
        (2, 1)
    );
    let since = Instant::now();
    world
        .store
        .update([pod("a-1", "10.0.0.1", &[late.clone(), never.clone()]).1]);
    let named = client.changed().await;
    assert!(since.elapsed() >= POLICIES, "{:?}", since.elapsed());
    let workload = named.mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(workload.policies, [late.clone(), never]);
    // What comes then is not held up once more.
    world.store.update([gone("b-1")]);
    timeout(POLICIES / 2, mesh_with(&mut client, &["a-1"]))
        .await
        .expect("at once");
}

/// Such a server would answer each question with everything that it has.
#[tokio::test]
async fn a_server_that_is_not_wefts_is_not_asked_for_addresses_and_its_next_mesh_is_the_answer() {
    let world = World::new();
    let (sender, mut meshes) = mpsc::channel(MESHES);
    let (_lookups, asked) = mpsc::channel(LOOKUPS);
    let mut asking = Asking {
        config: world.config("127.0.0.1:1".parse().unwrap(), NAME, false),
        received: Arc::new(Received::new(Sees::Connections)),
        sender,
        asked,
        waiting: Vec::new(),
        is_weft: false,
        held: None,
        unpublished: false,
        state: Arc::default(),
    };
    let (requests, mut sent) = mpsc::channel(LOOKUPS);
    let response = |kind: Kind, names: &[&str], server: &str| DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources: names
            .iter()
            .map(|name| {
                let (workload, update) = pod(name, "10.9.9.9", &[]);
                discovery::Resource {
                    name: workload.uid.to_string(),
                    resource: Some(discovery::Any {
                        type_url: String::new(),
                        value: update.resource.unwrap().bytes,
                    }),
                    ..discovery::Resource::default()
                }
            })
            .collect(),
        removed_resources: vec!["/10.9.9.9".to_owned()],
        control_plane: Some(discovery::ControlPlane {
            identifier: server.to_owned(),
        }),
        ..DeltaDiscoveryResponse::default()
    };
    let istiod = r#"{"Component":"istiod"}"#;
    for kind in [Kind::Authorization, Kind::Address] {
        asking.take(response(kind, &[], istiod), &requests).await.unwrap();
        sent.recv().await.expect("the ACK");
    }
    let (on_demand, mut lookups) = on_demand();
    let asked = tokio::spawn(async move {
        on_demand
            .look_up(&"pod".into(), "10.9.9.9".parse().unwrap())
            .await
    });
    for lookup in lookups.next().await.unwrap() {
        asking.ask(lookup, &requests).await.unwrap();
    }
    assert!(sent.try_recv().is_err(), "it is not asked");
    // The address comes with the response that says that there is no resource of that name.
    asking
        .take(response(Kind::Address, &["a-1"], istiod), &requests)
        .await
        .unwrap();
    sent.recv().await.expect("the ACK");
    assert!(!asked.is_finished(), "there is no mesh of it yet");
    assert!(asking.publish().await);
    let answered = meshes.recv().await.unwrap();
    assert_eq!(answered.lookups.len(), 1);
    drop(answered);
    assert_eq!(asked.await.unwrap(), crate::feed::Answer::Answered);
}

fn cart() -> crate::mesh::ServiceKey {
    wds::routes_of("shop/cart.shop.svc.cluster.local").unwrap()
}

/// Routes of the service `cart`, with this many policies.
fn routes(policies: usize) -> Update {
    let policies: Vec<_> = (0..policies)
        .map(|n| format!(r#"{{"namespace":"shop","name":"p{n}"}}"#))
        .collect();
    let text = format!(
        r#"{{"routes":{{"service":{{"namespace":"shop","hostname":"{}"}},"policies":[{}]}}}}"#,
        cart().hostname,
        policies.join(",")
    );
    http(&wds::routes_name(&cart()), Some(text))
}

fn http(name: &str, text: Option<String>) -> Update {
    Update {
        kind: Kind::Http,
        name: name.into(),
        resource: text.map(|text| Encoded {
            bytes: text.into(),
            aliases: Vec::new(),
            with: Vec::new(),
        }),
    }
}

/// What a mesh says of the service `cart`: how many policies its routes name, that it has none, or that they cannot be read.
fn said(mesh: &Mesh) -> &'static str {
    match mesh.http_routes(&cart()) {
        Ok(None) => "none",
        Ok(Some(routes)) => ["0", "1", "2"][routes.values().policies.len()],
        Err(_) => "unreadable",
    }
}

/// The next mesh that says this of the service `cart`.
async fn mesh_that_says(client: &mut Client, expect: &str) -> Mesh {
    let found = async {
        loop {
            let mesh = client.changed().await.mesh;
            if said(&mesh) == expect {
                return mesh;
            }
        }
    };
    let found = timeout(WAIT, found).await;
    found.unwrap_or_else(|_| panic!("a mesh that says {expect} never came"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waypoint_is_told_what_to_do_with_requests_and_an_agent_is_not() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    let jwt = r#"{"authentication":{"key":{"namespace":"shop","name":"jwt"},"rules":[]}}"#;
    let jwt = http("auth/shop/jwt", Some(jwt.to_owned()));
    world
        .store
        .update([pod("a-1", "10.0.0.1", &[]).1, routes(1), jwt]);
    let (mut waypoint, mut agent) = (world.waypoint(address), world.client(address));
    let mesh = mesh_with(&mut waypoint, &["a-1"]).await.mesh;
    let key = PolicyKey {
        namespace: "shop".into(),
        name: "jwt".into(),
    };
    assert_eq!(
        (said(&mesh), mesh.request_authentication(&key).is_some()),
        ("1", true)
    );
    let mesh = mesh_with(&mut agent, &["a-1"]).await.mesh;
    assert_eq!(
        (said(&mesh), mesh.request_authentication(&key).is_some()),
        ("none", false)
    );
    // One changed service is one resource, and one push to one client.
    let pushes = || {
        world
            .server
            .counts()
            .pushes
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = pushes();
    world.store.update([routes(2)]);
    mesh_that_says(&mut waypoint, "2").await;
    assert_eq!(pushes() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_routes_that_cannot_be_read_nothing_stays() {
    let world = World::new();
    let (address, shutdown, serving) = world.serve("127.0.0.1:0").await;
    world.store.update([pod("a-1", "10.0.0.1", &[]).1, routes(1)]);
    let mut client = world.waypoint(address);
    mesh_that_says(&mut client, "1").await;
    let name = wds::routes_name(&cart());
    let later =
        r#"{"routes":{"service":{"namespace":"shop","hostname":"cart.shop.svc.cluster.local"},"later":1}}"#;
    world.store.update([http(&name, Some(later.to_owned()))]);
    mesh_that_says(&mut client, "unreadable").await;
    let error = client.state().lock().unwrap().error.clone().unwrap();
    assert!(error.contains(&name) && error.contains("later"), "{error}");
    // They go while the server is away.
    shutdown.cancel();
    serving.await.unwrap();
    world.store.update([http(&name, None)]);
    let _serving = world.serve(&address.to_string()).await;
    mesh_that_says(&mut client, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_name_is_sent_no_token() {
    let world = World::new();
    let (address, ..) = world.serve("127.0.0.1:0").await;
    let client = world.client_of(address, "somebody-else.svc", false);
    let state = client.state();
    until("an error", || state.lock().unwrap().error.is_some()).await;
    let error = state.lock().unwrap().error.clone().unwrap();
    assert!(
        error.contains("somebody-else") && error.contains("certificate"),
        "{error}"
    );
}

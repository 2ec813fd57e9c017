//! Controllers of this process at a stand-in API server, each behind a way that can fall silent.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weft::{
    args::{Cli, Command},
    rpc::Credentials,
};
use weft_tests::{
    LIMIT,
    kube::{Options, StandIn},
    wait_until,
};

/// The name that controllers' certificates are for.
const NAME: &str = "weft-controller.weft-system.svc";

/// A cluster that controllers can be started in.
pub(crate) struct World {
    pub(crate) api: StandIn,
    pub(crate) runtime: Runtime,
    dir: PathBuf,
}

impl World {
    /// One with all definitions, a node, and weft's own objects.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let world = Self::bare(name)?;
        world.api.install_crds()?;
        Ok(world)
    }

    /// The same without definitions.
    pub(crate) fn bare(name: &str) -> Result<Self> {
        let api = StandIn::start_with(Options::default())?;
        api.apply_yaml(
            "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\n\
             apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: weft-agent, namespace: weft-system}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: weft-agent-a, namespace: weft-system}\nspec: {nodeName: a, serviceAccountName: weft-agent, containers: []}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: weft-controller, namespace: weft-system}\nspec:\n  ports: [{port: 15012}]\n",
        )?;
        let dir = std::env::temp_dir().join(format!("weft-controller-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self {
            api,
            runtime: Runtime::new()?,
            dir,
        })
    }

    /// A controller, once it serves a mesh.
    pub(crate) fn start(&self, replica: &str, more: &[&str]) -> Result<Controller> {
        let controller = self.launch(replica, more)?;
        controller.wait_until_ready()?;
        Ok(controller)
    }

    /// A controller that may not get far.
    pub(crate) fn launch(&self, replica: &str, more: &[&str]) -> Result<Controller> {
        let way = Way::to(self.api.address())?;
        let kubeconfig = self.dir.join(format!("kubeconfig-{replica}"));
        let to_api = self.api.address().to_string();
        let text = self.api.kubeconfig().replace(&to_api, &way.address.to_string());
        fs::write(&kubeconfig, text)?;
        let (listen, http) = (free_address()?, free_address()?);
        let line = [
            "weft".to_owned(),
            "controller".to_owned(),
            format!("--listen={listen}"),
            format!("--http={http}"),
            format!("--replica={replica}"),
            format!("--kubeconfig={}", kubeconfig.display()),
        ];
        let line = line.into_iter().chain(more.iter().map(|it| (*it).to_owned()));
        let Command::Controller(args) = Cli::try_parse_from(line)?.command else {
            bail!("the controller's arguments");
        };
        let shutdown = CancellationToken::new();
        let running = weft::controller::run(args.config(), shutdown.clone());
        let task = self.runtime.spawn(async move {
            if let Err(error) = running.await {
                eprintln!("the controller: {error:#}");
            }
        });
        Ok(Controller {
            way,
            listen,
            http,
            shutdown,
            task,
        })
    }

    /// How a caller with this token reaches a controller.
    pub(crate) fn credentials(&self, controller: &Controller, token: &str) -> Result<Credentials> {
        let file = self.dir.join(format!("token-{}", controller.listen.port()));
        fs::write(&file, token)?;
        let map = self.api.get("configmaps", "weft-system", "weft-ca-root-cert");
        let roots = map.context("the ConfigMap")?["data"]["root-cert.pem"]
            .as_str()
            .context("its roots")?
            .as_bytes()
            .to_vec();
        Ok(Credentials {
            address: controller.listen.to_string(),
            server_name: NAME.to_owned(),
            roots: Arc::new(move || {
                let roots = roots.clone();
                Box::pin(async move { Ok(roots) })
            }),
            token: file,
            cert: None,
            cluster: "Kubernetes".to_owned(),
        })
    }

    pub(crate) fn agent_token(&self) -> Result<String> {
        self.api
            .token("weft-system", "weft-agent", &["weft-ca"], Some("weft-agent-a"))
    }

    /// A condition of an object: its status and its reason, once it is of the object's generation.
    pub(crate) fn condition(
        &self,
        [kind, namespace, name]: [&str; 3],
        type_: &str,
    ) -> Option<(String, String)> {
        let object = self.api.get(kind, namespace, name)?;
        let generation = object["metadata"]["generation"].clone();
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let is = |it: &&Value| it["type"] == type_ && it["observedGeneration"] == generation;
        let found = conditions.iter().find(is)?;
        let text = |field: &str| found[field].as_str().map(ToOwned::to_owned);
        Some((text("status")?, text("reason")?))
    }

    /// Makes or changes the `number`th pod of a namespace.
    pub(crate) fn pod(&self, namespace: &str, number: usize, more: &Value) -> Result<()> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{number}"), "namespace": namespace},
            "spec": {"nodeName": "a", "serviceAccountName": "default", "containers": []},
            "status": {
                "phase": "Running",
                "podIP": format!("10.1.{}.{}", number / 256, number % 256),
                "podIPs": [{"ip": format!("10.1.{}.{}", number / 256, number % 256)}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        lay(&mut pod, more);
        self.api.apply(pod)
    }
}

fn lay(object: &mut Value, change: &Value) {
    match (object, change) {
        (Value::Object(fields), Value::Object(change)) => {
            for (key, value) in change {
                lay(fields.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change.clone(),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A controller that runs; it is told to end when this is dropped.
pub(crate) struct Controller {
    pub(crate) way: Way,
    pub(crate) listen: SocketAddr,
    http: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Controller {
    fn page(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub(crate) fn wait_until_ready(&self) -> Result<()> {
        wait_until("the controller to be ready", LIMIT * 2, || {
            self.page("/healthz/ready")
                .ok()?
                .starts_with("HTTP/1.1 200")
                .then_some(())
        })
    }

    /// One of its metrics that has no labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let page = self.page("/metrics")?;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    }

    pub(crate) fn leads(&self) -> bool {
        self.metric("weft_controller_leader").is_ok_and(|it| it == 1.0)
    }

    /// Ends it as a SIGTERM does. How long it took.
    pub(crate) fn stop(&mut self, world: &World) -> Result<Duration> {
        let since = Instant::now();
        self.shutdown.cancel();
        let ended = async { tokio::time::timeout(LIMIT * 2, &mut self.task).await };
        ensure!(world.runtime.block_on(ended).is_ok(), "it does not end");
        Ok(since.elapsed())
    }
}

/// A way to the API that counts what is written over it, and that can fall silent: connections stay, and nothing arrives.
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    silent: AtomicBool,
    patches: AtomicU64,
}

impl Way {
    fn to(api: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let way = Self {
            address: listener.local_addr()?,
            state: Arc::default(),
        };
        let state = Arc::clone(&way.state);
        thread::spawn(move || {
            for own in listener.incoming().flatten() {
                let Ok(there) = TcpStream::connect(api) else {
                    continue;
                };
                let (Ok(from), Ok(to)) = (own.try_clone(), there.try_clone()) else {
                    continue;
                };
                let (up, down) = (Arc::clone(&state), Arc::clone(&state));
                thread::spawn(move || carry(from, to, &up));
                thread::spawn(move || carry(there, own, &down));
            }
        });
        Ok(way)
    }

    pub(crate) fn silence(&self, silent: bool) {
        self.state.silent.store(silent, SeqCst);
    }

    /// How many PATCHes have gone over it.
    pub(crate) fn patches(&self) -> u64 {
        self.state.patches.load(SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(size) = from.read(&mut buffer) {
        while state.silent.load(SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
        if buffer.starts_with(b"PATCH ") {
            state.patches.fetch_add(1, SeqCst);
        }
        if size == 0 || to.write_all(&buffer[..size]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

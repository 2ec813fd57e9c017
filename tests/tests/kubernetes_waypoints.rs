//! Waypoints as Kubernetes objects: a controller makes what a Gateway asks for, keeps it as it is to be, says on the Gateway what
//! became of it, and leaves alone what is not its own; and the commands that make, show and delete Gateways. Against a stand-in
//! API server in which nothing runs: the test plays the part of what makes Deployments available.

use std::{fs, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use weft::args::{Cli, Command};
use weft_tests::{
    LIMIT,
    kube::{Options, StandIn},
    wait_until,
};

const GATEWAY: &str = "Gateway.gateway.networking.k8s.io";
const PARTS: [&str; 4] = [
    "serviceaccounts",
    "services",
    "deployments",
    "poddisruptionbudgets",
];

/// A cluster with Gateway API, and a controller that runs in this process.
struct World {
    api: StandIn,
    runtime: Runtime,
    shutdown: CancellationToken,
    kubeconfig: PathBuf,
}

impl World {
    fn start(name: &str) -> Result<Self> {
        let api = StandIn::start_with(Options::default())?;
        api.install_crds()?;
        api.apply_yaml(
            "apiVersion: v1\nkind: Service\nmetadata: {name: weft-controller, namespace: weft-system}\nspec:\n  ports: [{port: 15012}]\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft-waypoint}\nspec: {controllerName: weft.dev/mesh-controller}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
        )?;
        let kubeconfig = std::env::temp_dir().join(format!("weft-waypoints-{name}-{}", std::process::id()));
        fs::write(&kubeconfig, api.kubeconfig())?;
        let world = Self {
            api,
            runtime: Runtime::new()?,
            shutdown: CancellationToken::new(),
            kubeconfig,
        };
        let line = [
            "controller",
            "--listen=127.0.0.1:0",
            "--http=127.0.0.1:0",
            "--waypoint-image=weft:test",
        ];
        let Command::Controller(args) = world.command(&line)? else {
            anyhow::bail!("the controller's arguments");
        };
        let running = weft::controller::run(args.config(), world.shutdown.clone());
        world.runtime.spawn(async move {
            if let Err(error) = running.await {
                eprintln!("the controller: {error:#}");
            }
        });
        Ok(world)
    }

    fn command(&self, line: &[&str]) -> Result<Command> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let line = ["weft"].iter().chain(line).copied().chain([kubeconfig.as_str()]);
        Ok(Cli::try_parse_from(line)?.command)
    }

    /// What a command for people ends with.
    fn run(&self, line: &[&str]) -> Result<ExitCode> {
        let command = self.command(line)?;
        self.runtime.block_on(async {
            match command {
                Command::Apply(args) => weft::cli::waypoints::apply(args).await,
                Command::Get(args) => weft::cli::waypoints::get(args).await,
                Command::Delete(args) => weft::cli::waypoints::delete(args).await,
                _ => anyhow::bail!("another command"),
            }
        })
    }

    fn gateway(&self, more: &str) -> Result<()> {
        self.api.apply_yaml(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gate, namespace: shop}}\nspec:\n  gatewayClassName: weft-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n{more}"
        ))
    }

    fn part(&self, plural: &str) -> Option<Value> {
        self.api.get(plural, "shop", "gate")
    }

    fn wait_for_parts(&self) -> Result<()> {
        wait_until("the waypoint's objects", LIMIT, || {
            PARTS
                .iter()
                .all(|plural| self.part(plural).is_some())
                .then_some(())
        })
    }

    /// A condition of the Gateway: its status and its reason.
    fn condition(&self, type_: &str) -> Option<(String, String)> {
        let gateway = self.api.get(GATEWAY, "shop", "gate")?;
        let generation = gateway["metadata"]["generation"].clone();
        let conditions = gateway["status"]["conditions"].as_array()?.clone();
        let is = |it: &&Value| it["type"] == type_ && it["observedGeneration"] == generation;
        let found = conditions.iter().find(is)?;
        Some((
            found["status"].as_str()?.to_owned(),
            found["reason"].as_str()?.to_owned(),
        ))
    }

    fn wait_for_condition(&self, type_: &str, status: &str, reason: &str) -> Result<()> {
        let wanted = (status.to_owned(), reason.to_owned());
        let told = wait_until(&format!("{type_} {status} {reason}"), LIMIT, || {
            self.condition(type_).filter(|it| *it == wanted).map(drop)
        });
        told.with_context(|| {
            format!(
                "{:#}",
                self.api.get(GATEWAY, "shop", "gate").unwrap_or_default()["status"]
            )
        })
    }

    /// As Kubernetes would, once a pod is ready.
    fn make_available(&self, pods: u64) -> Result<()> {
        let status = json!({"status": {"availableReplicas": pods, "readyReplicas": pods, "replicas": 2}});
        self.api.merge("deployments", "shop", "gate", &status)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = fs::remove_file(&self.kubeconfig);
    }
}

#[test]
fn a_gateway_becomes_a_waypoint_and_says_when_it_takes_requests() -> Result<()> {
    let world = World::start("becomes")?;
    world.gateway("")?;
    world.wait_for_parts()?;
    let gateway = world.api.get(GATEWAY, "shop", "gate").context("the Gateway")?;
    for plural in PARTS {
        let owner = world.part(plural).context("it")?["metadata"]["ownerReferences"][0].clone();
        ensure!(owner["uid"] == gateway["metadata"]["uid"], "{plural}: {owner}");
    }
    let deployment = world.part("deployments").context("the Deployment")?;
    let pod = &deployment["spec"]["template"]["spec"];
    ensure!(pod["containers"][0]["image"] == "weft:test", "{pod:#}");
    let address = world
        .api
        .get("services", "weft-system", "weft-controller")
        .context("the Service")?;
    let controller = format!(
        "--controller={}:15012",
        address["spec"]["clusterIP"].as_str().unwrap_or_default()
    );
    let args = pod["containers"][0]["args"].as_array().context("arguments")?;
    ensure!(args.contains(&json!(controller)), "{args:?}");
    let args = args.iter().filter_map(Value::as_str);
    let args = args.map(|arg| arg.replace("$(POD_IPS)", "10.244.1.2,fd00::2"));
    let parsed = Cli::try_parse_from(["weft".to_owned()].into_iter().chain(args))?;
    ensure!(
        matches!(parsed.command, Command::Waypoint(_)),
        "its pods run something else"
    );
    let roots = &deployment["spec"]["template"]["metadata"]["annotations"]["weft.dev/root-cert"];
    ensure!(
        roots
            .as_str()
            .is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")),
        "{roots}"
    );
    world.wait_for_condition("Accepted", "True", "Accepted")?;
    world.wait_for_condition("Programmed", "False", "Pending")?;
    world.make_available(1)?;
    world.wait_for_condition("Programmed", "True", "Programmed")?;
    world.wait_for_condition("ResolvedRefs", "True", "ResolvedRefs")?;
    let gateway = world.api.get(GATEWAY, "shop", "gate").context("the Gateway")?;
    let service = world.part("services").context("the Service")?;
    ensure!(
        gateway["status"]["addresses"][0]["value"] == service["spec"]["clusterIP"],
        "{:#}",
        gateway["status"]
    );
    ensure!(
        gateway["status"]["listeners"][0]["name"] == "mesh",
        "{:#}",
        gateway["status"]
    );
    // Its last pod has gone.
    world.make_available(0)?;
    world.wait_for_condition("Programmed", "False", "Pending")?;
    wait_until("the class to be accepted", LIMIT, || {
        let class = world.api.get("gatewayclasses", "", "weft-waypoint")?;
        (class["status"]["conditions"][0]["status"] == "True").then_some(())
    })
}

#[test]
fn what_somebody_changes_is_put_right_and_nothing_is_written_without_need() -> Result<()> {
    let world = World::start("drift")?;
    world.gateway("")?;
    world.wait_for_parts()?;
    world.make_available(1)?;
    world.wait_for_condition("Programmed", "True", "Programmed")?;
    let version = || {
        let gateway = world.api.get(GATEWAY, "shop", "gate").unwrap_or_default();
        let parts = PARTS.map(|plural| world.part(plural).unwrap_or_default());
        let all = [&[gateway][..], &parts].concat();
        all.iter()
            .map(|it| it["metadata"]["resourceVersion"].clone())
            .collect::<Vec<_>>()
    };
    let (before, asked) = (version(), world.api.requests("patch", "deployments"));
    // Something else happens, of which it hears.
    world.api.merge(
        "serviceaccounts",
        "shop",
        "gate",
        &json!({"metadata": {"annotations": {"note": "mine"}}}),
    )?;
    let image = json!({"spec": {"replicas": 9, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}});
    world.api.merge("deployments", "shop", "gate", &image)?;
    wait_until("the Deployment to be as it was", LIMIT, || {
        let spec = world.part("deployments")?["spec"].clone();
        let right = spec["replicas"] == 2 && spec["template"]["spec"]["terminationGracePeriodSeconds"] == 45;
        right.then_some(())
    })?;
    ensure!(
        world.part("serviceaccounts").context("it")?["metadata"]["annotations"]["note"] == "mine",
        "what is not ours to say stays"
    );
    ensure!(
        world.api.requests("patch", "deployments") == asked + 1,
        "it was put right once"
    );
    let after = version();
    ensure!(
        before[0] == after[0] && before[2] == after[2] && before[4] == after[4],
        "{before:?} {after:?}"
    );
    // And what was removed comes back.
    let old = world.part("services").context("the Service")?["metadata"]["uid"].clone();
    world.api.delete("services", "shop", "gate");
    wait_until("the Service to be back", LIMIT, || {
        (world.part("services")?["metadata"]["uid"] != old).then_some(())
    })
}

#[test]
fn what_is_not_its_own_is_left_alone() -> Result<()> {
    let world = World::start("foreign")?;
    world.api.apply_yaml(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: gate, namespace: shop, labels: {app: mine}}\nspec: {replicas: 7, selector: {matchLabels: {app: mine}}}\n",
    )?;
    world.gateway("")?;
    world.wait_for_condition("Programmed", "False", "NoResources")?;
    let gateway = world.api.get(GATEWAY, "shop", "gate").context("the Gateway")?;
    ensure!(
        gateway["status"].to_string().contains("leaves alone"),
        "{:#}",
        gateway["status"]
    );
    let deployment = world.part("deployments").context("the Deployment")?;
    ensure!(
        deployment["spec"]["replicas"] == 7 && deployment["metadata"]["labels"] == json!({"app": "mine"}),
        "{deployment:#}"
    );
    // Once it has gone its name is free.
    world.api.delete("deployments", "shop", "gate");
    wait_until("a Deployment of its own", LIMIT, || {
        (world.part("deployments")?["spec"]["replicas"] == 2).then_some(())
    })?;
    world.make_available(1)?;
    world.wait_for_condition("Programmed", "True", "Programmed")
}

#[test]
fn what_a_gateway_asks_for_comes_and_goes() -> Result<()> {
    let world = World::start("comes")?;
    world.gateway("")?;
    world.wait_for_parts()?;
    let annotate = |value: Value| {
        let patch = json!({"metadata": {"annotations": {"weft.dev/waypoint-max-replicas": value}}});
        world.api.merge(GATEWAY, "shop", "gate", &patch)
    };
    annotate(json!("5"))?;
    wait_until("an autoscaler", LIMIT, || {
        (world.part("horizontalpodautoscalers")?["spec"]["maxReplicas"] == 5).then_some(())
    })?;
    annotate(Value::Null)?;
    wait_until("no autoscaler", LIMIT, || {
        world.part("horizontalpodautoscalers").is_none().then_some(())
    })?;
    // What cannot be is said, and what is there goes on.
    annotate(json!("many"))?;
    world.wait_for_condition("Accepted", "False", "InvalidParameters")?;
    ensure!(world.part("deployments").is_some(), "it goes on");
    annotate(Value::Null)?;
    world.wait_for_condition("Accepted", "True", "Accepted")?;
    // Another class is another's: ours goes.
    let other = json!({"spec": {"gatewayClassName": "other"}});
    world.api.merge(GATEWAY, "shop", "gate", &other)?;
    wait_until("its objects to go", LIMIT, || {
        PARTS
            .iter()
            .all(|plural| world.part(plural).is_none())
            .then_some(())
    })?;
    let ours = json!({"spec": {"gatewayClassName": "weft-waypoint"}});
    world.api.merge(GATEWAY, "shop", "gate", &ours)?;
    world.wait_for_parts()?;
    // Kubernetes takes away what nobody owns.
    world.api.delete(GATEWAY, "shop", "gate");
    wait_until("its objects to go with it", LIMIT, || {
        PARTS
            .iter()
            .all(|plural| world.part(plural).is_none())
            .then_some(())
    })
}

#[test]
fn a_waypoint_of_another_mesh_is_not_touched() -> Result<()> {
    let world = World::start("another")?;
    world.api.apply_yaml(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-waypoint}\nspec: {controllerName: istio.io/mesh-controller}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: theirs, namespace: shop}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n",
    )?;
    world.gateway("")?;
    world.wait_for_parts()?;
    world.wait_for_condition("Programmed", "False", "Pending")?;
    ensure!(
        world.api.get("deployments", "shop", "theirs").is_none(),
        "theirs is deployed"
    );
    let theirs = world.api.get(GATEWAY, "shop", "theirs").context("the Gateway")?;
    ensure!(theirs["status"].is_null(), "{:#}", theirs["status"]);
    // Of a class that nobody has, it is ours.
    world.api.delete("gatewayclasses", "", "istio-waypoint");
    wait_until("it to be deployed", LIMIT, || {
        world.api.get("deployments", "shop", "theirs").map(drop)
    })
}

#[test]
fn commands_make_show_and_delete_waypoints() -> Result<()> {
    let world = World::start("commands")?;
    let is = |code: ExitCode, expect: u8| format!("{code:?}") == format!("{:?}", ExitCode::from(expect));
    let label = || {
        world.api.get("namespaces", "", "shop").unwrap_or_default()["metadata"]["labels"]["istio.io/use-waypoint"].clone()
    };
    ensure!(
        is(world.run(&["apply", "waypoint", "-n", "gone"])?, 2),
        "there is no such namespace"
    );
    ensure!(
        is(world.run(&["delete", "waypoint", "gate", "-n", "shop"])?, 2),
        "there is none"
    );
    // It takes no requests yet: the namespace is not sent through it.
    let enroll = [
        "apply",
        "waypoint",
        "gate",
        "-n",
        "shop",
        "--for",
        "all",
        "--enroll-namespace",
        "--wait",
        "1",
    ];
    ensure!(is(world.run(&enroll)?, 1), "it is not ready");
    ensure!(label().is_null(), "{}", label());
    world.wait_for_parts()?;
    let gateway = world.api.get(GATEWAY, "shop", "gate").context("the Gateway")?;
    ensure!(
        gateway["metadata"]["labels"]["istio.io/waypoint-for"] == "all",
        "{gateway:#}"
    );
    // And now it does, while the command waits.
    thread::scope(|scope| {
        let enroll = [
            "apply",
            "waypoint",
            "gate",
            "-n",
            "shop",
            "--enroll-namespace",
            "--wait",
            "60",
        ];
        let world = &world;
        let waiting = scope.spawn(move || world.run(&enroll));
        world.make_available(1)?;
        let code = waiting
            .join()
            .map_err(|_| anyhow::anyhow!("the command panicked"))??;
        ensure!(is(code, 0), "{code:?}");
        Ok(())
    })?;
    ensure!(label() == "gate", "{}", label());
    world.api.apply_yaml("apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec:\n  ports: [{port: 80}]\n")?;
    ensure!(is(world.run(&["get", "waypoints", "-A"])?, 0), "get");
    ensure!(
        is(world.run(&["get", "waypoints", "-n", "shop", "-o", "json"])?, 0),
        "get"
    );
    // A service is bound to it, and nobody is there to be asked.
    ensure!(
        is(world.run(&["delete", "waypoint", "gate", "-n", "shop"])?, 1),
        "it is bound"
    );
    ensure!(
        is(
            world.run(&["delete", "waypoint", "gate", "-n", "shop", "--yes"])?,
            0
        ),
        "deleted"
    );
    ensure!(world.api.get(GATEWAY, "shop", "gate").is_none(), "it is there");
    Ok(())
}

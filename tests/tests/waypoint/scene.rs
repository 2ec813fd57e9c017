//! A client on node a; on node b a waypoint and two versions of an app in namespace `default`, where manifests without a
//! namespace are; the service in front of them goes through the waypoint.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::json;
use weft_tests::{
    Agent, AgentOptions, LIMIT, Pod, PodSpec, World,
    process::Process,
    program::{PYTHON, serve, source},
    wait_until,
};

use crate::requests::Requests;

/// The service's address.
pub(crate) const SERVICE: &str = "10.96.1.10:80";
/// The same service's port for anything but HTTP.
pub(crate) const TCP: &str = "10.96.1.10:9000";
/// And for gRPC.
pub(crate) const GRPC: &str = "10.96.1.10:50051";
/// Ports of the apps.
pub(crate) const HTTP_PORT: u16 = 8080;
pub(crate) const TCP_PORT: u16 = 9000;
pub(crate) const GRPC_PORT: u16 = 50051;

/// What the scenes are made of.
pub(crate) struct Scene {
    pub(crate) app: String,
    pub(crate) client: Pod,
    pub(crate) other: Pod,
    pub(crate) versions: [Pod; 2],
    pub(crate) gateway: Pod,
    pub(crate) waypoint: Option<Agent>,
    pub(crate) agents: Vec<Agent>,
    apps: Vec<Process>,
}

impl Scene {
    /// With these manifests: texts, and seeds by their name.
    pub(crate) fn set(world: &mut World, app: &str, manifests: &[&str]) -> Result<Self> {
        let mut scene = Self::prepare(world, app, manifests)?;
        scene.start(world, AgentOptions::default())?;
        Ok(scene)
    }

    /// Everything but the agents and the waypoint.
    pub(crate) fn prepare(world: &mut World, app: &str, manifests: &[&str]) -> Result<Self> {
        let pod = |name: &str| PodSpec::new(name).namespace("default").service_account(name);
        let client = world.pod("a", pod("client"))?;
        let other = world.pod("a", pod("other").namespace("elsewhere"))?;
        let version = |version: &str| {
            let spec = PodSpec::new(&format!("{app}-{version}")).namespace("default");
            spec.service_account("app")
                .label("app", app)
                .label("version", version)
        };
        let versions = [world.pod("b", version("v1"))?, world.pod("b", version("v2"))?];
        let gateway = PodSpec::new("waypoint-1")
            .namespace("default")
            .service_account("waypoint");
        let gateway = world.pod("b", gateway.label("gateway", "waypoint").native())?;
        let mesh = world.mesh_mut();
        mesh.services.push(json!({
            "name": "waypoint", "namespace": "default", "vips": ["10.96.1.1"],
            "ports": [{ "port": 15008, "targetPort": 15008 }], "selector": { "gateway": "waypoint" },
        }));
        mesh.services.push(json!({
            "name": app, "namespace": "default", "vips": ["10.96.1.10"],
            "ports": [
                { "port": 80, "targetPort": HTTP_PORT, "appProtocol": "http" },
                { "port": 9000, "targetPort": TCP_PORT, "appProtocol": "tcp" },
                { "port": 9001, "targetPort": TCP_PORT },
                { "port": 50051, "targetPort": GRPC_PORT, "appProtocol": "grpc" },
            ],
            "selector": { "app": app },
            "waypoint": { "service": "default/waypoint.default.svc.cluster.local" },
        }));
        for (at, text) in manifests.iter().enumerate() {
            let file = world.dir().join(format!("manifest-{at}.yaml"));
            fs::write(&file, manifest(text)?)?;
            world.mesh_mut().manifests.push(file);
        }
        let mut scene = Self {
            app: app.to_owned(),
            client,
            other,
            versions,
            gateway,
            waypoint: None,
            agents: Vec::new(),
            apps: Vec::new(),
        };
        for (name, pod) in ["v1", "v2"].into_iter().zip(scene.versions.clone()) {
            scene.app(&pod, "requests.py", &[name, &HTTP_PORT.to_string()], HTTP_PORT)?;
        }
        Ok(scene)
    }

    /// Starts the agents and the waypoint.
    pub(crate) fn start(&mut self, world: &mut World, options: AgentOptions) -> Result<()> {
        self.agents = world.start_agents()?.to_vec();
        self.waypoint = Some(world.start_waypoint(&self.gateway, options)?);
        Ok(())
    }

    /// Starts an app of `tests/apps` in a pod, and waits until it listens.
    pub(crate) fn app(&mut self, pod: &Pod, program: &str, args: &[&str], port: u16) -> Result<()> {
        let mut command = pod.command(PYTHON);
        command.arg(source(program)).args(args);
        self.apps.push(serve(&mut command, pod, port, program)?);
        Ok(())
    }

    pub(crate) fn waypoint(&self) -> Result<&Agent> {
        self.waypoint.as_ref().context("the waypoint was not started")
    }

    /// A connection of the client's to the service.
    pub(crate) fn requests(&self) -> Result<Requests> {
        Requests::open(&self.client, SERVICE.parse()?, &self.app)
    }

    /// Waits until a request is answered like this: the mesh takes a moment to arrive.
    pub(crate) fn wait_for(&self, target: &str, status: u16) -> Result<()> {
        wait_until(&format!("{target} to be answered with {status}"), LIMIT, || {
            let answer = self.requests().ok()?.get(target).ok()?;
            (answer.status == status).then_some(())
        })
    }
}

/// The text of a manifest: a seed by the beginning of its name, anything else is one already.
fn manifest(text: &str) -> Result<String> {
    if text.contains('\n') {
        return Ok(text.to_owned());
    }
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(text);
    fs::read_to_string(&seed).with_context(|| format!("read {}", seed.display()))
}

//! Probes: processes of the node that belong to no pod, such as the kubelet, reach its pods in STRICT too. Pods that share the
//! node's network do not, and neither does another node.

#[path = "common/mod.rs"]
mod common;

use anyhow::Result;
use common::{echoed, refused_at_once};
use serde_json::json;
use weft_tests::{AgentOptions, Host, Pod, PodSpec, Server, World, app::echo, with_world};

fn strict_web(world: &mut World) -> Result<Pod> {
    let web = PodSpec::new("web").service_account("web").label("app", "web");
    let web = world.pod("a", web)?;
    world.mesh_mut().mtls("demo", "STRICT");
    Ok(web)
}

#[test]
fn the_kubelet_reaches_a_strict_pod_and_nobody_else_without_an_identity() {
    with_world(|world| {
        let web = strict_web(world)?;
        let on_the_host = world.pod("a", PodSpec::new("on-the-host").host_network().outside())?;
        let agents = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        for to in [web.addr(8080), web.addr6(8080)] {
            let kubelet: &Host = world.node("a");
            let own = echoed(kubelet, to)?;
            assert_eq!(server.peers().last(), Some(&own), "the app sees the node");
            let accepted = server.accepted();
            refused_at_once(&on_the_host, to)?;
            refused_at_once(world.node("b"), to)?;
            assert_eq!(server.accepted(), accepted);
        }
        // Policies are not the kubelet's either.
        world.mesh_mut().policy("nobody", "DENY", "web", json!([{}]));
        world.apply()?;
        echoed(world.node("a"), web.addr(8080))?;
        // And without the agent as with it: a pod must not be restarted because weft is.
        agents[0].kill()?;
        echoed(world.node("a"), web.addr(8080))?;
        Ok(())
    });
}

/// kind's and k3d's nodes: nobody sees there how deep the node's cgroups lie, but the kernel.
#[test]
fn the_kubelet_of_a_node_that_is_a_container_reaches_a_strict_pod_too() {
    with_world(|world| {
        let web = strict_web(world)?;
        let on_the_host = world.pod("a", PodSpec::new("on-the-host").host_network().outside())?;
        world.start_agent_with("a", AgentOptions::default().in_container())?;
        let server = Server::start(web.listen(8080)?, echo)?;
        echoed(world.node("a"), web.addr(8080))?;
        refused_at_once(&on_the_host, web.addr(8080))?;
        assert_eq!(server.accepted(), 1);
        Ok(())
    });
}

#[test]
fn where_pods_cannot_be_told_from_the_node_nobody_is_let_in() {
    with_world(|world| {
        let web = strict_web(world)?;
        // A cgroup that is not where the pods are: as with cgroup v1, in which no pod is found.
        let options = AgentOptions::default().without("--pods-cgroup");
        world.start_agent_with("a", options)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        refused_at_once(world.node("a"), web.addr(8080))
    });
}

//! The arguments that agents and waypoints of the test world are started with.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::AgentOptions;
use crate::{
    pod::Pod,
    topology::{Node, World},
};

/// The arguments of `weft` for a node's agent.
pub(super) fn of_agent(world: &World, node: &Node, options: &AgentOptions) -> Result<Vec<String>> {
    let ca = match &options.ca {
        Some(dir) => dir.clone(),
        None => world.ca()?.to_owned(),
    };
    let pairs = [
        ("--node", PathBuf::from(node.node_name())),
        ("--mesh-file", world.mesh_file(node.node_name())),
        ("--ca-cert", ca.join("root.pem")),
        ("--ca-key", ca.join("root-key.pem")),
        ("--cgroup-root", node.cgroup_root().to_owned()),
        ("--pods-cgroup", node.pods_cgroup()),
        ("--node-netns", node.netns().path()),
        ("--pin-dir", node.pin_dir().to_owned()),
        ("--nri-socket", world.nri_socket(node.node_name())),
    ];
    let mut args = vec!["agent".to_owned()];
    args.extend(
        pairs
            .into_iter()
            .filter(|(flag, _)| !options.without.contains(flag))
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]),
    );
    if options.json_log {
        args.extend(["--log-format", "json"].map(str::to_owned));
    }
    args.extend(options.args.iter().cloned());
    Ok(args)
}

/// The arguments of `weft` for a waypoint.
pub(super) fn of_waypoint(world: &World, pod: &Pod, options: &AgentOptions) -> Result<Vec<String>> {
    let ca = match &options.ca {
        Some(dir) => dir.clone(),
        None => world.ca()?.to_owned(),
    };
    let addresses = pod.addresses().map(|address| address.to_string()).join(",");
    let pairs = [
        ("--gateway", pod.gateway()),
        ("--address", addresses),
        ("--mesh-file", path(&world.mesh_file(pod.node()))),
        ("--ca-cert", path(&ca.join("root.pem"))),
        ("--ca-key", path(&ca.join("root-key.pem"))),
    ];
    let pairs = pairs
        .into_iter()
        .filter(|(flag, _)| !options.without.contains(flag));
    let mut args = vec!["waypoint".to_owned()];
    args.extend(pairs.flat_map(|(flag, value)| [flag.to_owned(), value]));
    if options.json_log {
        args.extend(["--log-format", "json"].map(str::to_owned));
    }
    args.extend(options.args.iter().cloned());
    Ok(args)
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

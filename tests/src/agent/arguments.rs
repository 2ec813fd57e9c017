//! The arguments that agents and waypoints of the test world are started with.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::AgentOptions;
use crate::{
    machine,
    pod::Pod,
    topology::{Node, World},
};

/// The arguments of `weft` for a node's agent.
pub(super) fn of_agent(world: &World, node: &Node, options: &AgentOptions) -> Result<Vec<String>> {
    let ca = match &options.ca {
        Some(dir) => dir.clone(),
        None => world.ca()?.to_owned(),
    };
    // A node that is a container is the root of what its agent sees.
    let seen = |path: &Path| -> Result<PathBuf> {
        Ok(match options.in_container {
            true => machine::cgroup2_root()?.join(path.strip_prefix(node.cgroup_root())?),
            false => path.to_owned(),
        })
    };
    let pairs = [
        ("--node", PathBuf::from(node.node_name())),
        ("--mesh-file", world.mesh_file(node.node_name())),
        ("--ca-cert", ca.join("root.pem")),
        ("--ca-key", ca.join("root-key.pem")),
        ("--cgroup-root", seen(node.cgroup_root())?),
        ("--pods-cgroup", seen(&node.pods_cgroup())?),
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

/// The words before the program's, for an agent in a container of a node that is a container itself. Its own view of cgroup2 begins
/// with the node, at the path at which the machine's is mounted.
pub(super) fn in_container(node: &Node) -> Result<Vec<String>> {
    const SCRIPT: &str = r#"
        set -e
        echo $$ > "$1/cgroup.procs"
        exec unshare --cgroup --mount sh -ec '
            mount --bind "$1" "$0"; shift
            mkdir -p "$0/pods/agent"
            echo $$ > "$0/pods/agent/cgroup.procs"
            exec "$@"' "$2" "$1" "${@:3}"
    "#;
    let (root, mounted) = (node.cgroup_root(), machine::cgroup2_root()?);
    Ok(["bash", "-c", SCRIPT, "bash", &path(root), &path(&mounted)]
        .map(str::to_owned)
        .to_vec())
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

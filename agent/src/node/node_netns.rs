//! Which network namespace is the node's own, where a node is a namespace of a larger machine: the one that has the node's
//! address. It is found by a process in it, the kubelet for one.

use std::{
    collections::HashSet,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::net::{netlink, netns::Netns};

/// Processes that are looked at.
const MOST: usize = 100_000;

/// `given`, where it has the node's address or none is known; or that of a process that has it.
pub(super) fn find(given: &Path, node_ip: Option<IpAddr>) -> PathBuf {
    let Some(node_ip) = node_ip.map(|ip| ip.to_canonical()) else {
        return given.to_owned();
    };
    if has(given, node_ip) {
        return given.to_owned();
    }
    match search(node_ip) {
        Some(found) => {
            tracing::info!(%node_ip, netns = %found.display(), "the node's own network namespace is that of a process that has its address");
            found
        }
        None => {
            tracing::warn!(%node_ip, given = %given.display(), "no process has the node's address: has the pod hostPID?");
            given.to_owned()
        }
    }
}

/// One process of each namespace is enough. The oldest first: that of the node comes before its pods'.
fn search(node_ip: IpAddr) -> Option<PathBuf> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(MOST)
        .collect();
    pids.sort_unstable();
    let mut seen = HashSet::new();
    pids.into_iter()
        .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
        .find(|path| {
            let is_new = fs::metadata(path).is_ok_and(|it| seen.insert((it.dev(), it.ino())));
            is_new && has(path, node_ip)
        })
}

fn has(path: &Path, address: IpAddr) -> bool {
    let addresses = Netns::open(path).and_then(|netns| netns.enter(netlink::addresses));
    addresses.is_ok_and(|all| all.contains(&address))
}

//! A kubelet: for each pod that is bound to its node, one task that brings it up, looks after it and ends it ([`Worker`]).

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde_json::Value;
use tokio::sync::watch;

use super::{node::Node, spec::text, worker::Worker};
use crate::kube::{StandIn, WantedLog};

/// Watches the pods of a node until the API is gone.
pub(super) async fn run(api: Arc<StandIn>, node: Arc<Node>) {
    let mut changes = api.changes();
    let mut pods: HashMap<String, watch::Sender<Option<Value>>> = HashMap::new();
    loop {
        let found = api.list("pods", "");
        let own = found
            .into_iter()
            .filter(|pod| pod["spec"]["nodeName"] == node.name.as_str());
        let mut own: HashMap<String, Value> = own
            .map(|pod| (text(&pod["metadata"]["uid"]).to_owned(), pod))
            .collect();
        pods.retain(|uid, pod| {
            let now = own.remove(uid);
            pod.send_if_modified(|before| {
                let differs = *before != now;
                before.clone_from(&now);
                differs
            });
            // Its task ends when it has seen that it is gone.
            now.is_some() || !pod.is_closed()
        });
        for (uid, pod) in own {
            let (sender, receiver) = watch::channel(Some(pod.clone()));
            let worker = Worker::new(api.clone(), node.clone(), pod, receiver);
            tokio::spawn(worker.run());
            pods.insert(uid, sender);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Where the containers of a pod write.
pub(super) fn log_dir(node: &Node, pod: &Value) -> PathBuf {
    let of = |field: &str| text(&pod["metadata"][field]);
    let dir = format!("{}_{}_{}", of("namespace"), of("name"), of("uid"));
    node.dir.join("logs").join(dir)
}

/// What a container has written since then, of its last start or the one before; lines are taken out of the runtime's own form: time, stream,
/// F for a whole line or P for a part of one, text.
pub(super) fn log(node: &Node, pod: &Value, wanted: WantedLog<'_>) -> anyhow::Result<Vec<u8>> {
    let WantedLog {
        container,
        since,
        previous,
    } = wanted;
    let dir = log_dir(node, pod).join(container);
    let last = std::fs::read_dir(&dir).ok().and_then(|files| {
        let numbers = files.flatten().filter_map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.strip_suffix(".log")?.parse::<u32>().ok()
        });
        numbers.max()
    });
    let wanted = last.and_then(|last| last.checked_sub(previous.into()));
    let Some(wanted) = wanted else {
        anyhow::bail!("container \"{container}\" is waiting to start, or has no start before")
    };
    let content = std::fs::read(dir.join(format!("{wanted}.log")))?;
    let content = String::from_utf8_lossy(&content);
    let mut out = Vec::new();
    // Not `lines`: a carriage return is the container's.
    for line in content.split('\n') {
        let mut parts = line.splitn(4, ' ');
        let (Some(at), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        // Whole seconds, as the API takes them.
        if !since.is_empty() && at.get(..19) < since.get(..19) {
            continue;
        }
        out.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
        if tag == "F" {
            out.push(b'\n');
        }
    }
    Ok(out)
}

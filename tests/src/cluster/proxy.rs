//! Services' addresses: each node's packet filter sends connections to them on to one of their endpoints, as kube-proxy has it
//! done. What has no endpoint is refused.

use std::{
    collections::BTreeMap, fmt::Write as _, io::Write as _, process::Stdio, sync::Arc, time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    node::Node,
    spec::{items, text},
};
use crate::kube::StandIn;

/// Works until the API is gone.
pub(super) async fn run(api: Arc<StandIn>, nodes: Vec<Arc<Node>>) {
    let mut changes = api.changes();
    let mut last = String::new();
    loop {
        let rules = rules(&api);
        if rules != last {
            for node in nodes.clone() {
                let rules = rules.clone();
                let restored = tokio::task::spawn_blocking(move || restore(&node, &rules)).await;
                if let Ok(Err(error)) = restored {
                    eprintln!("proxy: {error:#}");
                }
            }
            last = rules;
        }
        if changes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn restore(node: &Node, rules: &str) -> Result<()> {
    let mut child = node
        .host
        .command("iptables-restore")
        .stdin(Stdio::piped())
        .spawn()
        .context("run iptables-restore")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "iptables-restore: {status}, given:\n{rules}");
    Ok(())
}

/// All rules, for `iptables-restore`.
fn rules(api: &StandIn) -> String {
    let (mut nat, mut filter) = (String::new(), String::new());
    let slices = api.list("endpointslices", "");
    for service in api.list("services", "") {
        let address = text(&service["spec"]["clusterIP"]);
        if ["", "None"].contains(&address) || !address.contains('.') {
            continue;
        }
        for port in items(&service["spec"]["ports"]) {
            if port["protocol"] != "TCP" {
                continue;
            }
            let number = port["port"].as_u64().unwrap_or(0);
            let target = format!("-d {address}/32 -p tcp -m tcp --dport {number}");
            let endpoints = endpoints(&slices, &service, text(&port["name"]));
            if endpoints.is_empty() {
                let _ = writeln!(
                    filter,
                    "-A SERVICES {target} -j REJECT --reject-with icmp-port-unreachable"
                );
            }
            let count = endpoints.len();
            for (at, endpoint) in endpoints.iter().enumerate() {
                let share = match count - at {
                    1 => String::new(),
                    left => format!(
                        " -m statistic --mode random --probability {:.6}",
                        1.0 / left as f64
                    ),
                };
                let _ = writeln!(
                    nat,
                    "-A SERVICES {target}{share} -j DNAT --to-destination {endpoint}"
                );
            }
        }
    }
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n{nat}COMMIT\n\
         *filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:SERVICES - [0:0]\n-A FORWARD -j SERVICES\n-A OUTPUT -j SERVICES\n{filter}COMMIT\n"
    )
}

/// Ready endpoints of one port; where none is, those that still serve.
fn endpoints(slices: &[Value], service: &Value, port: &str) -> Vec<String> {
    let of = &service["metadata"];
    let own = slices.iter().filter(|slice| {
        slice["metadata"]["namespace"] == of["namespace"]
            && slice["metadata"]["labels"]["kubernetes.io/service-name"] == of["name"]
    });
    let mut found: BTreeMap<bool, Vec<String>> = BTreeMap::new();
    for slice in own {
        let Some(number) = items(&slice["ports"]).find(|one| text(&one["name"]) == port) else {
            continue;
        };
        for endpoint in items(&slice["endpoints"]) {
            let conditions = &endpoint["conditions"];
            if conditions["ready"] == false && conditions["serving"] != true {
                continue;
            }
            let ready = conditions["ready"] != false;
            let address = text(&endpoint["addresses"][0]);
            found
                .entry(ready)
                .or_default()
                .push(format!("{address}:{}", number["port"]));
        }
    }
    found
        .remove(&true)
        .or_else(|| found.remove(&false))
        .unwrap_or_default()
}

//! Under Kubernetes: a controller that compiles what a stand-in API server says, and two nodes' agents that have their mesh, their
//! pods and their certificates from it.

#[path = "kubernetes/cluster.rs"]
mod cluster;
mod common;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use common::{MARKER, addr, refused_at_once};
use serde_json::{Value, json};
use weft_tests::{
    LIMIT, Pod, PodSpec, Server,
    app::{echo, round_trip},
    capture::contains,
    wait_until, with_world,
};

const SERVICE: &str = "10.96.0.20:80";

/// A pod `client` on node a, `web` on node b, and the service in front of it, as Kubernetes has them.
fn client_and_web(cluster: &mut Cluster<'_>) -> Result<(Pod, Pod)> {
    let client = cluster.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = PodSpec::new("web").service_account("web").label("app", "web");
    let web = cluster.pod("b", web)?;
    cluster.api.apply_yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec:\n  clusterIP: 10.96.0.20\n  clusterIPs: [10.96.0.20]\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080, protocol: TCP}]\n",
    )?;
    Ok((client, web))
}

/// Speaks until it is answered: pods and policies take a moment to arrive.
fn speaks(client: &Pod, to: &str) -> Result<()> {
    wait_until(&format!("an answer of {to}"), LIMIT, || {
        let mut stream = client.connect(addr(to)).ok()?;
        round_trip(&mut stream, MARKER).ok()
    })
}

/// Until it is refused.
fn is_refused(client: &Pod, to: &str) -> Result<()> {
    wait_until(&format!("{to} to be refused"), LIMIT, || {
        let Ok(mut stream) = client.connect(addr(to)) else {
            return Some(());
        };
        round_trip(&mut stream, MARKER).err().map(drop)
    })
}

#[test]
fn pods_of_two_nodes_talk_under_mutual_tls_once_their_namespace_has_the_label() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (client, web) = client_and_web(&mut cluster)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let [a, b] = cluster.start_agents()?;
        // Not enrolled: as without weft.
        round_trip(&mut client.connect(web.addr(8080))?, MARKER)?;
        cluster.enroll("demo")?;
        // Both are captured; now everybody has to hear of it.
        wait_until("an identity in b's log", LIMIT, || {
            speaks(&client, SERVICE).ok()?;
            let lines = b.access_lines();
            lines
                .iter()
                .any(|line| !line.field("src.identity").is_empty())
                .then_some(())
        })?;
        let capture = cluster.world.capture_link()?;
        speaks(&client, SERVICE)?;
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear");
        let line = b.wait_for_access("the connection", |line| !line.field("src.identity").is_empty())?;
        ensure!(line.field("src.identity") == client.identity(), "{line:?}");
        ensure!(line.field("dst.identity") == web.identity(), "{line:?}");
        let status = a.status()?;
        ensure!(
            status["mesh"]["source"]
                .as_str()
                .is_some_and(|it| it.contains("15012")),
            "{status:#}"
        );
        Ok(())
    });
}

#[test]
fn policies_and_strict_arrive_and_go() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (client, web) = client_and_web(&mut cluster)?;
        let outside = cluster.pod(
            "a",
            PodSpec::new("outside").label("istio.io/dataplane-mode", "none"),
        )?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        cluster.start_agents()?;
        cluster.enroll("demo")?;
        speaks(&client, SERVICE)?;
        speaks(&outside, &web.addr(8080).to_string())?;
        cluster.api.apply_yaml(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: demo}\nspec: {mtls: {mode: STRICT}}\n",
        )?;
        is_refused(&outside, &web.addr(8080).to_string())?;
        // The agent refuses from the moment it knows; the kernel, which spares the handshake, right after.
        wait_until("the kernel to refuse outsiders", LIMIT, || {
            refused_at_once(&outside, web.addr(8080)).ok()
        })?;
        speaks(&client, SERVICE)?;
        cluster.api.apply_yaml(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-client, namespace: demo}\nspec:\n  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}]}]\n",
        )?;
        is_refused(&client, SERVICE)?;
        cluster
            .api
            .delete("authorizationpolicies.security.istio.io", "demo", "no-client");
        cluster
            .api
            .delete("peerauthentications.security.istio.io", "demo", "strict");
        speaks(&client, SERVICE)?;
        speaks(&outside, &web.addr(8080).to_string())
    });
}

#[test]
fn the_mesh_outlives_the_controller_and_the_api() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (client, web) = client_and_web(&mut cluster)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let [a, _b] = cluster.start_agents()?;
        cluster.enroll("demo")?;
        speaks(&client, SERVICE)?;
        let connected =
            |agent: &weft_tests::Agent| agent.metrics().map(|it| it.sum("weft_controller_connected", &[]));
        ensure!(connected(&a)? == 1.0);
        cluster.stop_controller()?;
        cluster.api.faults().hang();
        let mesh = |agent: &weft_tests::Agent| agent.status().ok().map(|it| it["mesh"].clone());
        wait_until("the agent to say that it is alone", LIMIT, || {
            let error = mesh(&a)?["lastError"].as_str()?.to_owned();
            error.contains("no controller").then_some(())
        })?;
        ensure!(connected(&a)? == 0.0);
        speaks(&client, SERVICE).context("the last mesh stays in force")?;
        cluster.api.faults().recover();
        cluster.start_controller()?;
        // What is new is known soon after.
        let late = cluster.pod("a", PodSpec::new("late").service_account("late"))?;
        cluster.wait_for_capture("demo")?;
        speaks(&late, SERVICE)?;
        wait_until("the agent to be content again", LIMIT, || {
            mesh(&a)?["lastError"].is_null().then_some(())
        })
    });
}

#[test]
fn a_pod_that_is_no_agent_sees_no_mesh_and_has_no_neighbours_certificate() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (_client, _web) = client_and_web(&mut cluster)?;
        // It calls as an agent does, with its own token.
        let token = cluster
            .api
            .token("demo", "client", &["weft-ca"], Some("client"))?;
        let stranger = cluster.agent_with_token("a", &token)?;
        stranger.spawn()?;
        stranger.wait_for_log("the refusal", |line| {
            line.contains("only agents may") && line.contains("demo/client")
        })?;
        // Nor with a token for somebody else's audience.
        let token = cluster
            .api
            .token("weft-system", "weft-agent", &["vault"], Some("weft-agent-b"))?;
        let other = cluster.agent_with_token("b", &token)?;
        other.spawn()?;
        other.wait_for_log("the refusal", |line| line.contains("token is not accepted"))?;
        Ok(())
    });
}

#[test]
fn a_root_is_made_given_out_and_replaced_without_cutting_anybody_off() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (client, web) = client_and_web(&mut cluster)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        cluster.start_agents()?;
        cluster.enroll("demo")?;
        speaks(&client, SERVICE)?;
        let mut open = client.connect(addr(SERVICE))?;
        round_trip(&mut open, MARKER)?;
        let roots = |cluster: &Cluster<'_>| {
            let map = cluster
                .api
                .get("configmaps", "weft-system", "weft-ca-root-cert")?;
            Some(map["data"]["root-cert.pem"].as_str()?.to_owned())
        };
        let old = roots(&cluster).context("the ConfigMap")?;
        ensure!(old.matches("BEGIN CERTIFICATE").count() == 1, "{old}");
        // Somebody removes the ConfigMap: it is written again.
        cluster
            .api
            .delete("configmaps", "weft-system", "weft-ca-root-cert");
        wait_until("the ConfigMap to be back", LIMIT, || {
            roots(&cluster).filter(|it| *it == old)
        })?;
        // Another root signs, and both are trusted.
        let (cert, key) = cluster.new_root()?;
        let both = format!("{cert}{old}");
        let data = json!({"tls.crt": base64(&cert), "tls.key": base64(&key), "ca.crt": base64(&both)});
        cluster
            .api
            .merge("secrets", "weft-system", "weft-ca", &json!({"data": data}))?;
        wait_until("both roots to be given out", LIMIT, || {
            let now = roots(&cluster)?;
            (now.contains(cert.trim()) && now.contains(old.trim())).then_some(())
        })?;
        let late = cluster.pod("a", PodSpec::new("late").service_account("late"))?;
        cluster.wait_for_capture("demo")?;
        speaks(&late, SERVICE).context("a pod whose certificate is of the new root")?;
        speaks(&client, SERVICE).context("one whose certificate is of the old root")?;
        round_trip(&mut open, MARKER).context("what was open goes on")?;
        Ok(())
    });
}

fn base64(text: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

/// A condition of an object, once there is one of this type and status.
fn condition(cluster: &Cluster<'_>, what: [&str; 3], type_: &str, status: &str) -> Result<Value> {
    let [plural, namespace, name] = what;
    wait_until(&format!("{type_}={status} on {plural} {name}"), LIMIT, || {
        let object = cluster.api.get(plural, namespace, name)?;
        let conditions = object["status"]["conditions"].as_array()?;
        let is = |it: &&Value| it["type"] == type_ && it["status"] == status;
        conditions.iter().find(is).cloned()
    })
}

#[test]
fn what_is_in_force_is_said_on_each_object() {
    with_world(|world| {
        let mut cluster = Cluster::start(world)?;
        let (_client, _web) = client_and_web(&mut cluster)?;
        let policy = |network: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: demo}}\nspec:\n  rules: [{{from: [{{source: {{ipBlocks: [{network}]}}}}]}}]\n"
            )
        };
        let what = ["authorizationpolicies.security.istio.io", "demo", "p"];
        cluster.api.apply_yaml(&policy("nonsense"))?;
        let wrong = condition(&cluster, what, "ZtunnelAccepted", "False")?;
        ensure!(
            wrong["reason"] == "InvalidField" && wrong["observedGeneration"] == 1,
            "{wrong}"
        );
        // Another controller's condition stays, and ours is one.
        let theirs = json!({"type": "Theirs", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut object = cluster.api.get(what[0], what[1], what[2]).context("the policy")?;
        if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
            conditions.push(theirs.clone());
        }
        cluster
            .api
            .merge(what[0], what[1], what[2], &json!({"status": object["status"]}))?;
        cluster.api.apply_yaml(&policy("10.0.0.0/8"))?;
        let right = condition(&cluster, what, "ZtunnelAccepted", "True")?;
        ensure!(right["observedGeneration"] == 2, "{right}");
        let object = cluster.api.get(what[0], what[1], what[2]).context("the policy")?;
        let conditions = object["status"]["conditions"].as_array().context("conditions")?;
        ensure!(
            conditions.len() == 2 && conditions.contains(&theirs),
            "{conditions:?}"
        );
        // Nobody captures anything yet.
        let label = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "none-such"}}});
        cluster.api.merge("namespaces", "", "demo", &label)?;
        let missing = condition(
            &cluster,
            ["namespaces", "", "demo"],
            "weft.dev/PodsCaptured",
            "False",
        )?;
        ensure!(
            missing["message"]
                .as_str()
                .is_some_and(|it| it.contains("no agent has seen it")),
            "{missing}"
        );
        let bound = condition(
            &cluster,
            ["services", "demo", "web"],
            "istio.io/WaypointBound",
            "False",
        )?;
        ensure!(bound["reason"] == "WaypointMissing", "{bound}");
        cluster.start_agents()?;
        condition(
            &cluster,
            ["namespaces", "", "demo"],
            "weft.dev/PodsCaptured",
            "True",
        )?;
        // What is not to be said any more is taken away.
        let none = json!({"metadata": {"labels": {"istio.io/use-waypoint": null}}});
        cluster.api.merge("namespaces", "", "demo", &none)?;
        wait_until("the service to be bound no more", LIMIT, || {
            let service = cluster.api.get("services", "demo", "web")?;
            let conditions = service["status"]["conditions"].as_array().map_or(0, Vec::len);
            (conditions == 0).then_some(())
        })
    });
}

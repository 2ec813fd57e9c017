//! `weft enroll`: puts a namespace's pods in the mesh by its label, or takes them out, and waits until the agents have done it.
//!
//! The label is all that it writes; the agents write on each pod whether it is captured, and that is what it waits for.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::exit_code;
use crate::cluster::{
    client::{Access, connect, explain, is_not_found},
    enrolment::{AMBIENT, Candidate, DATAPLANE_MODE, Labels, REDIRECTION, Verdict, verdict},
};

mod table;
#[cfg(test)]
mod tests;

/// How often the pods are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Pods of one answer of the API.
const PAGE: u32 = 500;

/// The flags of `weft enroll`.
#[derive(Clone, Debug, Args)]
#[command(after_help = ENROLL_HELP)]
pub struct EnrollArgs {
    /// The namespace
    pub namespace: String,
    /// Take its pods out of the mesh: connections that are open go on
    #[arg(long)]
    pub undo: bool,
    /// Seconds to wait until every running pod is captured, or released; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub wait: u64,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
    /// The cluster [default: as kubectl has it; in a pod, its service account's]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

const ENROLL_HELP: &str = "\
Examples:
  weft enroll shop
  weft enroll shop --wait 300 -o json | jq '.pods[] | select(.state == \"waiting\")'
  weft enroll shop --undo

It sets the label istio.io/dataplane-mode=ambient on the namespace. A pod's own label goes before its namespace's: with `none`
it stays out. Pods need no restart.

Exit codes: 0 every selected pod is captured (with --undo: none is), 1 not all of them in that time, 2 the cluster did not
answer or refused, or has no such namespace.";

/// How it is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Progress, and a line for each pod.
    #[default]
    Table,
    /// One object at the end, for scripts.
    Json,
}

/// What it ends with.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    namespace: String,
    /// Whether the namespace has the label.
    enrolled: bool,
    /// Whether every pod is as it should be.
    complete: bool,
    pods: Vec<Row>,
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    node: String,
    state: State,
    /// Why it is not captured, or is although its namespace is not in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    /// In the mesh.
    Captured,
    /// It should be in the mesh, and is not yet.
    Waiting,
    /// Not in the mesh, and should not be.
    Outside,
    /// It should not be in the mesh any more, and still is.
    Leaving,
}

impl State {
    fn is_settled(self) -> bool {
        matches!(self, Self::Captured | Self::Outside)
    }
}

/// Runs `weft enroll`.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(args: EnrollArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let progress = args.output == Output::Table && stdout.is_terminal();
    match enroll(&args, progress).await {
        Ok(outcome) => {
            let printed = print(&args, &outcome, &mut stdout.lock());
            let code = ExitCode::from(u8::from(!outcome.complete));
            exit_code(printed.map(|()| code), "cannot print the pods")
        }
        Err(error) => {
            eprintln!("weft: {error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

async fn enroll(args: &EnrollArgs, progress: bool) -> anyhow::Result<Outcome> {
    let access = Access {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
    };
    let client = connect(&access).await?;
    set_label(&client, &args.namespace, args.undo).await?;
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    let mut last = String::new();
    loop {
        let rows = look(&client, &args.namespace).await?;
        let complete = rows.iter().all(|row| row.state.is_settled());
        if complete || Instant::now() >= deadline {
            return Ok(Outcome {
                namespace: args.namespace.clone(),
                enrolled: !args.undo,
                complete,
                pods: rows,
            });
        }
        let line = table::progress(&rows);
        if progress && line != last {
            eprintln!("{line}");
            last = line;
        }
        sleep(LOOK).await;
    }
}

async fn set_label(client: &Client, namespace: &str, undo: bool) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = match namespaces.get(namespace).await {
        Err(error) if is_not_found(&error) => {
            bail!("there is no namespace {namespace}: `kubectl get namespaces` lists them")
        }
        found => found.map_err(|error| anyhow::anyhow!(explain(&error)))?,
    };
    let is = found.labels().get(DATAPLANE_MODE).map(String::as_str);
    let wanted = (!undo).then_some(AMBIENT);
    // Another value is another data plane's, or keeps the namespace out: as good as taken out.
    if is == wanted || undo && is != Some(AMBIENT) {
        return Ok(());
    }
    let patch = json!({"metadata": {"labels": {DATAPLANE_MODE: wanted}}});
    let patched = namespaces
        .patch_metadata(namespace, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    let labelled = patched.map_err(|error| anyhow::anyhow!(explain(&error)));
    labelled
        .map(drop)
        .with_context(|| format!("label the namespace {namespace}"))
}

/// The namespace's pods that run.
async fn look(client: &Client, namespace: &str) -> anyhow::Result<Vec<Row>> {
    let failed = |error: kube::Error| anyhow::anyhow!(explain(&error));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labels = namespaces.get(namespace).await.map_err(failed)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut rows = BTreeMap::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = pods.list(&page).await.map_err(failed)?;
        let found = list.items.iter().filter_map(|pod| row(pod, labels.labels()));
        rows.extend(found.map(|row| (row.name.clone(), row)));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(rows.into_values().collect()),
        }
    }
}

/// Where a pod stands; none for one that does not run.
fn row(pod: &Pod, namespace: &Labels) -> Option<Row> {
    let spec = pod.spec.as_ref();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let verdict = verdict(Candidate {
        labels: pod.labels(),
        annotations: pod.annotations(),
        namespace: Some(namespace),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        ended: false,
    });
    let captured = pod
        .annotations()
        .get(REDIRECTION)
        .is_some_and(|state| state == "enabled");
    let (state, reason) = match (verdict, captured) {
        (Verdict::Outside(why), false) => (State::Outside, Some(why.to_string())),
        (Verdict::Outside(_), true) => (State::Leaving, None),
        (Verdict::ByPod | Verdict::ByNamespace, false) => (State::Waiting, Some(waits_for(pod))),
        (Verdict::ByNamespace, true) => (State::Captured, None),
        (Verdict::ByPod, true) => (State::Captured, Some("by its own label".to_owned())),
    };
    Some(Row {
        name: pod.name_any(),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        state,
        reason,
    })
}

fn waits_for(pod: &Pod) -> String {
    if pod.annotations().contains_key(REDIRECTION) {
        "its node's agent captures it: `weft status` there says what it waits for".to_owned()
    } else {
        "no agent has seen it: does weft run on its node?".to_owned()
    }
}

fn print(args: &EnrollArgs, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, outcome)?;
            writeln!(out)?;
        }
        Output::Table => out.write_all(table::render(outcome).as_bytes())?,
    }
    out.flush()
}

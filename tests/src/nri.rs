//! The container runtime's half of NRI: the library that containerd and CRI-O use, in a small program of its own
//! (`tests/nri-runtime`, in Go). Pods are the test world's; the runtime only says that they start, and waits for the answers.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{LIMIT, Pod, process::Process, wait_until};

/// A running one. It ends with this.
#[derive(Debug)]
pub struct Runtime {
    process: Process,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// The program; none where it was not built: `cargo xtask setup` does, where Debian's packages are to be had.
pub fn program() -> Option<PathBuf> {
    let given = env::var_os("WEFT_NRI_RUNTIME").map(PathBuf::from);
    // Tests run from target/debug/deps.
    let exe = env::current_exe().ok()?;
    let built = exe.ancestors().nth(3)?.join("nri/weft-nri-runtime");
    given.or(Some(built)).filter(|path| path.is_file())
}

/// A sandbox of a pod, as the kubelet asks for one.
pub fn sandbox(id: &str, uid: &str, pod: &Pod) -> Value {
    let name = pod.namespaced_name();
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    json!({
        "id": id,
        "uid": uid,
        "namespace": namespace,
        "name": name,
        "labels": {
            "io.kubernetes.pod.uid": uid,
            "io.kubernetes.pod.namespace": namespace,
            "io.kubernetes.pod.name": name,
        },
        "annotations": {"kubernetes.io/config.source": "api"},
        "netns": pod.netns().path(),
    })
}

impl Runtime {
    /// Listens at this path, and waits for plug-ins.
    pub fn start(program: &Path, socket: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, "weft-nri-runtime")?;
        let (asks, answers) = process.pipes().context("its pipes")?;
        wait_until("the runtime to listen", LIMIT, || socket.exists())?;
        Ok(Self {
            process,
            asks,
            answers: BufReader::new(answers),
        })
    }

    /// A sandbox runs. Answers when every plug-in has answered, with how long that took: its containers may start.
    pub fn run(&mut self, sandbox: &Value) -> Result<Duration> {
        let mut asked = sandbox.clone();
        asked["op"] = "run".into();
        self.ask(&asked)
    }

    /// A sandbox has stopped, and is gone.
    pub fn stop(&mut self, id: &str) -> Result<Duration> {
        self.ask(&json!({"op": "stop", "id": id}))
    }

    /// Ends it without a word to anybody.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    fn ask(&mut self, asked: &Value) -> Result<Duration> {
        writeln!(self.asks, "{asked}").context("ask the runtime")?;
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .context("the runtime's answer")?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("the runtime says {line:?}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("the runtime: {error}");
        }
        let millis = answer["millis"].as_f64().context("how long it took")?;
        Ok(Duration::from_secs_f64(millis / 1000.0))
    }
}

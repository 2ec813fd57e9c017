//! Starts the image as containers, with containerd and runc of their own in a folder of their own: nothing of the machine's
//! runtime is used or changed. What must hold: it prints its version, as nobody and with a read-only root; the controller
//! without a cluster ends with an error that says so; and `weft release` works under the runtime's usual seccomp profile. No
//! agent is started: it needs a cluster, or files of a mesh.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{shell, test::step};

/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(30);

/// Imports the archive and starts the image.
///
/// # Errors
/// A container does not behave as it should, or there is no runtime.
pub(super) fn check(archive: &Path, name: &str) -> Result<()> {
    step("the image as containers");
    let runtime = Runtime::start()?;
    runtime.ctr(&[
        "images",
        "import",
        "--snapshotter",
        "native",
        &archive.display().to_string(),
    ])?;
    for case in cases() {
        let said = runtime.run(name, &case).with_context(|| case.title)?;
        ensure!(
            said.code == case.code && case.says.iter().all(|text| said.text.contains(text)),
            "{}: it ended with {:?} and said {:?}; expected {:?} and {:?}",
            case.title,
            said.code,
            said.text,
            case.code,
            case.says
        );
        println!("✓ {}", case.title);
    }
    Ok(())
}

/// One container.
struct Case {
    title: &'static str,
    /// Arguments of `ctr run` before the image.
    options: &'static [&'static str],
    args: &'static [&'static str],
    code: Option<i32>,
    says: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            title: "it prints its version, as nobody, with a read-only root",
            options: &["--read-only"],
            args: &["--version"],
            code: Some(0),
            says: &["weft ", env!("CARGO_PKG_VERSION")],
        },
        Case {
            title: "the controller says that it is in no cluster",
            options: &["--read-only"],
            args: &["controller"],
            code: Some(1),
            says: &["weft: "],
        },
        Case {
            title: "release has nothing to do, under the runtime's usual seccomp profile",
            options: &["--read-only", "--seccomp"],
            args: &["release", "--pin-dir", "/sys/fs/bpf/weft-nobody"],
            code: Some(0),
            says: &["nothing to release"],
        },
    ]
}

struct Said {
    code: Option<i32>,
    text: String,
}

/// containerd, and the folder that it lives in.
struct Runtime {
    dir: PathBuf,
    daemon: Child,
}

impl Runtime {
    fn start() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("weft-{}-containerd", std::process::id()));
        fs::create_dir_all(&dir)?;
        let shown = dir.display();
        // Only what runs containers: no CRI, which wants the machine's network.
        let config = format!(
            "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{shown}/socket\"\n"
        );
        fs::write(dir.join("config.toml"), config)?;
        let log = fs::File::create(dir.join("log"))?;
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run containerd")?;
        let runtime = Self { dir, daemon };
        let deadline = Instant::now() + START;
        while shell::ask("ctr", &["--address", &runtime.socket(), "version"]).is_none() {
            if Instant::now() > deadline {
                bail!(
                    "containerd does not answer: {}",
                    fs::read_to_string(runtime.dir.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(runtime)
    }

    fn socket(&self) -> String {
        self.dir.join("socket").display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", &self.socket(), "--namespace", "weft-image"])
            .args(args);
        ctr
    }

    fn ctr(&self, args: &[&str]) -> Result<()> {
        shell::run(&mut self.command(args))
    }

    fn run(&self, image: &str, case: &Case) -> Result<Said> {
        let mut ctr = self.command(&["run", "--rm", "--snapshotter", "native"]);
        ctr.args(case.options);
        ctr.args([image, "weft-image", "/usr/bin/weft"]).args(case.args);
        let output = ctr.stdin(Stdio::null()).output().context("cannot run ctr")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Said {
            code: output.status.code(),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

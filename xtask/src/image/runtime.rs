//! containerd and runc of this process's own, in a folder of their own: nothing of the machine's runtime is used or changed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(30);
/// How long a container may take to end when it is told to.
const END: Duration = Duration::from_secs(20);
/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What a program of a container ended with.
pub(super) struct Said {
    pub(super) code: Option<i32>,
    /// Both of its outputs.
    pub(super) text: String,
}

/// containerd, and the folder that it lives in.
pub(super) struct Runtime {
    dir: PathBuf,
    daemon: Child,
}

impl Runtime {
    pub(super) fn start() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("weft-{}-containerd", std::process::id()));
        fs::create_dir_all(&dir)?;
        let shown = dir.display();
        // Only what runs containers: no CRI, which wants the machine's network.
        let config = format!(
            "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{shown}/socket\"\n"
        );
        fs::write(dir.join("config.toml"), config)?;
        let log = File::create(dir.join("log"))?;
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
            std::thread::sleep(PAUSE);
        }
        Ok(runtime)
    }

    /// A path in its folder, which is removed with it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn socket(&self) -> String {
        self.file("socket").display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", &self.socket(), "--namespace", "weft-image"])
            .args(args)
            .stdin(Stdio::null());
        ctr
    }

    /// Does something with ctr that says nothing where it works.
    pub(super) fn ctr(&self, args: &[&str]) -> Result<()> {
        let said = said(&mut self.command(args))?;
        if said.code != Some(0) {
            bail!("`ctr {}` failed: {}", args.join(" "), said.text.trim());
        }
        Ok(())
    }

    /// Makes the image of an archive known.
    pub(super) fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", "--snapshotter", "native", &archive])
    }

    /// Runs a container until it ends.
    pub(super) fn run(&self, image: &str, options: &[String], args: &[String]) -> Result<Said> {
        // In no folder of cgroups, which runc would leave behind.
        let options = [&["--cgroup".to_owned(), String::new()], options].concat();
        said(self.container(image, "once", &options).args(args))
    }

    /// Starts a container that goes on.
    pub(super) fn spawn(
        &self,
        image: &str,
        id: &str,
        options: &[String],
        args: &[String],
    ) -> Result<Container<'_>> {
        let log = self.file(&format!("{id}.log"));
        let file = File::create(&log)?;
        let ctr = self
            .container(image, id, options)
            .args(args)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run ctr")?;
        Ok(Container {
            runtime: self,
            id: id.to_owned(),
            log,
            ctr,
        })
    }

    fn container(&self, image: &str, id: &str, options: &[String]) -> Command {
        let mut ctr = self.command(&["run", "--rm", "--snapshotter", "native", "--read-only"]);
        ctr.args(options).args([image, id, "/usr/bin/weft"]);
        ctr
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A container that goes on until it is told to end, or this is dropped.
pub(super) struct Container<'a> {
    runtime: &'a Runtime,
    id: String,
    log: PathBuf,
    ctr: Child,
}

impl Container<'_> {
    /// Runs weft once more inside.
    pub(super) fn exec(&self, name: &str, args: &[&str]) -> Result<Said> {
        let mut ctr = self.runtime.command(&["task", "exec", "--exec-id", name]);
        said(ctr.args([&self.id, "/usr/bin/weft"]).args(args))
    }

    /// What it has said until now.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has not ended.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.ctr.try_wait(), Ok(None))
    }

    /// As the kubelet ends it: SIGTERM, and time.
    ///
    /// # Errors
    /// It goes on.
    pub(super) fn end(mut self) -> Result<Said> {
        self.signal("SIGTERM")?;
        let deadline = Instant::now() + END;
        while self.runs() {
            if Instant::now() > deadline {
                bail!("{} s after SIGTERM it still runs: {}", END.as_secs(), self.log());
            }
            std::thread::sleep(PAUSE);
        }
        let code = self.ctr.wait()?.code();
        let text = self.log();
        Ok(Said { code, text })
    }

    fn signal(&self, name: &str) -> Result<()> {
        self.runtime.ctr(&["task", "kill", "--signal", name, &self.id])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.signal("SIGKILL");
            let _ = self.ctr.wait();
        }
    }
}

fn said(command: &mut Command) -> Result<Said> {
    let output = command.output().context("cannot run ctr")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Said {
        code: output.status.code(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

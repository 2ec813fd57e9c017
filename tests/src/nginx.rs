//! A real nginx in a pod.

use std::{
    fmt,
    fs::{self, File},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};

use crate::{
    pod::Pod,
    process::Process,
    topology::World,
    wait::{LIMIT, wait_until},
};

/// An nginx that runs until it is dropped. It answers `/` with its body, and `/peer` with the address it sees its
/// client at.
pub struct Nginx {
    process: Process,
    dir: PathBuf,
}

impl Nginx {
    /// Starts it in the pod, as the pod's user, and waits until it listens on `port`, IPv4 and IPv6.
    pub fn start(world: &World, pod: &Pod, port: u16, body: &str) -> Result<Self> {
        Self::start_with(world, pod, port, None, body)
    }

    /// The same, which speaks HTTP/2 from the first byte on at another port.
    pub fn start_with(world: &World, pod: &Pod, port: u16, http2: Option<u16>, body: &str) -> Result<Self> {
        let uid = pod.place().uid;
        let dir = world
            .dir()
            .join(format!("nginx-{}-{}-{port}", pod.node(), pod.name()));
        make_dir(&dir, uid)?;
        make_dir(&dir.join("html"), uid)?;
        fs::write(dir.join("html/index.html"), body).context("write the page")?;
        let conf = dir.join("nginx.conf");
        fs::write(&conf, config(&dir, port, http2, uid)).context("write nginx.conf")?;
        let stderr = File::create(dir.join("stderr.log")).context("create nginx's stderr.log")?;
        let mut command = pod.command("nginx");
        command
            .arg("-e")
            .arg(dir.join("error.log"))
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(&conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = Process::spawn(&mut command, "nginx")?;
        let nginx = Self { process, dir };
        wait_until("nginx to listen", LIMIT, || pod.netns().listens_on(port))
            .with_context(|| nginx.complaints())?;
        Ok(nginx)
    }

    /// One more page, `/name`.
    pub fn add_page(&self, name: &str, body: &str) -> Result<()> {
        let path = self.dir.join("html").join(name);
        fs::write(&path, body).with_context(|| format!("write {}", path.display()))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its access log: a line for each request, which begins with the client's address.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.dir.join("access.log")).unwrap_or_default()
    }

    fn complaints(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        format!("nginx said: {}{}", read("stderr.log"), read("error.log"))
    }
}

impl fmt::Debug for Nginx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nginx in {}", self.dir.display())
    }
}

fn make_dir(dir: &Path, uid: u32) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    chown(dir, Some(uid), Some(uid)).with_context(|| format!("give {} to user {uid}", dir.display()))
}

fn config(dir: &Path, port: u16, http2: Option<u16>, uid: u32) -> String {
    let http2 = http2.map_or_else(String::new, |port| format!("listen 0.0.0.0:{port} http2;"));
    // Only root may name a user; any other would be warned.
    let user = if uid == 0 { "user root;" } else { "" };
    let temp =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};"));
    format!(
        "daemon off; {user} worker_processes 1; pid nginx.pid;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log access.log; default_type text/plain; keepalive_requests 1000000000; {temp}\n\
           server {{\n\
             listen 0.0.0.0:{port} backlog=4096; listen [::]:{port} backlog=4096; {http2}\n\
             root {dir}/html;\n\
             location = /peer {{ return 200 \"$remote_addr\"; }}\n\
           }}\n\
         }}\n",
        temp = temp.join(" "),
        dir = dir.display(),
    )
}

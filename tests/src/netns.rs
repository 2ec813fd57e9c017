//! Named network namespaces: made, configured with `ip -batch` and `/proc/sys/net`, looked into, deleted.
//!
//! Work inside one is done on a thread that enters it and ends there, so no caller ever finds itself elsewhere.
//! `ip netns exec` is never used: it remounts `/sys` and hides the cgroups.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{
    mount::{UnmountFlags, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::run::NETNS_DIR;

/// One named network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes namespaces of these names with one `ip -batch`, and opens them.
    pub fn create(names: &[String]) -> Result<Vec<Self>> {
        let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        ip_batch(&batch).context("make network namespaces")?;
        names.iter().map(|name| Self::open(name)).collect()
    }

    fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Moves the calling thread in, for good. One system call, no allocation: it is also called between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// Does `work` inside, on a thread of its own. Its sockets are in this namespace, but in the caller's cgroup.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })
    }

    /// Runs `ip -batch` inside; a line that fails is named.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.run(|| ip_batch(batch))
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("configure namespace {}", self.name))
    }

    /// Sets values below `/proc/sys/net`, which shows a thread the settings of its own namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("set {key} to {value} in {}", self.name))
            })
        })?
    }

    /// A connection made inside, seen by no eBPF program of a node: the socket is in the caller's cgroup.
    pub fn connect(&self, addr: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&addr, limit))?
    }

    /// A UDP socket made inside, in the caller's cgroup.
    pub fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        self.run(|| UdpSocket::bind(local))?
    }

    /// How many TCP connections to `port` are established in there. A socket that is being closed is none.
    pub fn connections_to(&self, port: u16) -> usize {
        let lines = self.tcp_tables();
        lines.iter().filter(|line| is_connection(line, port)).count()
    }

    fn tcp_tables(&self) -> Vec<String> {
        let read =
            || ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
        let tables = self.run(read).into_iter().flatten().flatten();
        tables
            .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// Whether some TCP socket listens on `port` in there, on any address. Sends nothing.
    pub fn listens_on(&self, port: u16) -> bool {
        self.tcp_tables().iter().any(|line| is_listener(line, port))
    }
}

/// A line of `/proc/net/tcp`: slot, local address and port in hex, remote, state; 0A is LISTEN.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|local| local.rsplit_once(':'));
    let local_port = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
    local_port == Some(port) && fields.nth(1) == Some("0A")
}

/// 01 is ESTABLISHED.
fn is_connection(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(2);
    let remote = fields.next().and_then(|remote| remote.rsplit_once(':'));
    let remote_port = remote.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
    remote_port == Some(port) && fields.next() == Some("01")
}

/// Deletes a named namespace, as `ip netns del` does; one that is gone already is fine.
pub fn delete(name: &str) -> Result<()> {
    let path = path_of(name);
    // Not a mount any more: only the name is left.
    let _ = unmount(&path, UnmountFlags::DETACH);
    match fs::remove_file(&path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Hands a batch to `ip`, in the namespace of the calling thread.
fn ip_batch(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip: is iproute2 installed?")?;
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| anyhow!("ip has no standard input"))?;
    stdin.write_all(batch.as_bytes()).context("write to ip")?;
    drop(stdin);
    let output = child.wait_with_output().context("wait for ip")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip -batch: {}\nin this batch:\n{batch}",
        complaint.trim()
    );
    Ok(())
}

//! A node: a network namespace and a cgroup, and in them a containerd of its own. The kubelet's cgroup root is the node's, in a
//! tree that it shares with other nodes. Nothing of the machine's runtime is used or changed.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::cri::Runtime;
use crate::{
    cgroup::Cgroup,
    host::Host,
    netns::Netns,
    network,
    process::{Place, Process},
    wait::wait_until,
};

/// How the node's first process begins: a mount namespace, the unified hierarchy where nodes have it,
/// and folders of its own where the runtime and CNI keep what outlives them.
const BEGIN: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /var/lib/cni /run/netns
mount -t tmpfs tmpfs /var/lib/cni
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$2/system/containerd"
echo $$ > "/sys/fs/cgroup/$2/system/containerd/cgroup.procs"
exec containerd --config "$1"
"#;

/// runc, without the shares of CPU that containerd gives every sandbox: the unified hierarchy has no controller for them where it
/// is beside the old ones.
const RUNC: &str = r#"#!/bin/sh
case " $* " in
*" create "*)
    for word; do
        [ "$last" = --bundle ] && sed -i -E 's/,"(cpu|memory)":\{[^}]*\}//g' "$word/config.json"
        last=$word
    done ;;
esac
exec runc "$@"
"#;

/// What the sandbox image is called.
pub(super) const PAUSE: &str = "docker.io/library/weft-pause:1";

/// One node of a [`super::Cluster`].
pub(super) struct Node {
    pub(super) name: String,
    pub(super) number: u8,
    pub(super) runtime: Runtime,
    /// A process of the node that is in no pod, as its kubelet is.
    pub(super) host: Host,
    /// Files of the node: volumes, logs.
    pub(super) dir: PathBuf,
    cgroup: Cgroup,
    socket: PathBuf,
    // In the order in which they are to end.
    _pause: Process,
    _containerd: Process,
}

impl Node {
    /// Starts it; `cgroup` is its own.
    pub(super) fn start(
        name: String,
        number: u8,
        netns: Netns,
        cgroup: PathBuf,
        dir: PathBuf,
    ) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let cgroup = Cgroup::create(cgroup)?;
        let netns = Arc::new(netns);
        let socket = dir.join("containerd.sock");
        let containerd = containerd(&cgroup, &netns, number, &dir)?;
        let place = Place {
            netns: Arc::clone(&netns),
            cgroup: Arc::new(Cgroup::create(cgroup.path().join("kubelet"))?),
            uid: 0,
        };
        let (host, pause) = Host::start(&name, network::node_v4(number), network::node_v6(number), place)?;
        Ok(Self {
            name,
            number,
            runtime: Runtime::new(socket.clone()),
            host,
            dir,
            cgroup,
            socket,
            _pause: pause,
            _containerd: containerd,
        })
    }

    /// Its own address.
    pub(super) fn address(&self) -> String {
        network::node_v4(self.number).to_string()
    }

    /// Gives it an image.
    pub(super) fn import(&self, archive: &Path) -> Result<()> {
        let socket = self.socket.display().to_string();
        wait_until("containerd to answer", Duration::from_secs(30), || {
            let version = Command::new("ctr")
                .args(["--address", &socket, "version"])
                .output()
                .ok()?;
            version.status.success().then_some(())
        })
        .with_context(|| fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default())?;
        let imported = Command::new("ctr")
            .args(["--address", &socket, "--namespace", "k8s.io", "images", "import"])
            .arg(archive)
            .output()
            .context("run ctr")?;
        ensure!(
            imported.status.success(),
            "ctr images import {}: {}",
            archive.display(),
            String::from_utf8_lossy(&imported.stderr)
        );
        Ok(())
    }

    /// The cgroup of a pod, which a kubelet makes; its path in the tree.
    pub(super) fn pod_cgroup(&self, uid: &str, quality: &str) -> Result<String> {
        let parent = match quality {
            "Burstable" => "kubepods/burstable",
            "BestEffort" => "kubepods/besteffort",
            _ => "kubepods",
        };
        let path = format!("{parent}/pod{uid}");
        fs::create_dir_all(self.cgroup.path().join(&path))?;
        let root = self.cgroup.path().file_name().unwrap_or_default();
        Ok(format!("/{}/{path}", root.to_string_lossy()))
    }

    /// Removes a pod's cgroup; what is in it has ended.
    pub(super) fn remove_pod_cgroup(&self, path: &str) {
        let tree = self.cgroup.path().parent().unwrap_or(Path::new("/"));
        let _ = crate::cgroup::remove_tree(&tree.join(path.trim_start_matches('/')));
    }

    /// The answer's status to `GET path` from the node itself, or why there is none.
    pub(super) fn get(&self, address: SocketAddr, path: &str, limit: Duration) -> Result<u16> {
        use std::io::{Read, Write};
        let mut stream = self.host.connect_within(address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )?;
        let mut head = [0; 64];
        let mut read = 0;
        while read < 12 {
            match stream.read(&mut head[read..])? {
                0 => break,
                more => read += more,
            }
        }
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let Some(status) = head.split(' ').nth(1).and_then(|status| status.parse().ok()) else {
            bail!("{address} answers {head:?}")
        };
        Ok(status)
    }
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn containerd(cgroup: &Cgroup, netns: &Arc<Netns>, number: u8, dir: &Path) -> Result<Process> {
    let shown = dir.display();
    let config = format!(
        r#"version = 2
root = "{shown}/root"
state = "{shown}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{shown}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_apparmor = true
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{shown}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{shown}/runc"
"#
    );
    write_program(&dir.join("runc"), RUNC)?;
    fs::write(dir.join("config.toml"), config)?;
    fs::create_dir_all(dir.join("net.d"))?;
    let network = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "ptp", "ipMasq": false,
            "ipam": {{"type": "host-local", "subnet": "10.244.{number}.0/24", "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
    );
    fs::write(dir.join("net.d/10-pods.conflist"), network)?;
    let place = Place {
        netns: Arc::clone(netns),
        cgroup: Arc::new(Cgroup::open(cgroup.path().to_owned())?),
        uid: 0,
    };
    let log = fs::File::create(dir.join("containerd.log"))?;
    let mut command = place.command("unshare");
    command
        .args(["--mount", "sh", "-c", BEGIN, "begin"])
        .arg(dir.join("config.toml"))
        .arg(cgroup.path().file_name().unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::spawn(&mut command, "containerd")
}

//! A real DNS server in a pod: dnsmasq with a zone `outside.test` of its own, which knows nothing of the mesh.

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result};
use weft_tests::{LIMIT, Pod, World, process::Process, wait_until};

/// What every server of these tests answers. Names of `outside.test` that are not here are NXDOMAIN; of every other name
/// it knows nothing, and says REFUSED.
const ZONE: &str = "\
no-resolv
no-hosts
keep-in-foreground
user=root
pid-file
cache-size=0
edns-packet-max=4096
local=/outside.test/
local=/cluster.local/
host-record=host.outside.test,192.0.2.1,2001:db8::1
host-record=v4.outside.test,192.0.2.4
txt-record=host.outside.test,written outside
mx-host=host.outside.test,mail.outside.test,10
srv-host=web.demo.svc.cluster.local,web-1.outside.test,8080
cname=alias.outside.test,host.outside.test
";

/// A running dnsmasq; it ends when it is dropped.
pub(crate) struct Dnsmasq {
    _process: Process,
    log: PathBuf,
}

impl Dnsmasq {
    /// Starts one in `pod`, on port 53 of every address, with some lines of configuration besides the zone.
    pub(crate) fn start(world: &World, pod: &Pod, more: &str) -> Result<Self> {
        let dir = world.dir().join(format!("dnsmasq-{}", pod.name()));
        fs::create_dir(&dir).context("create dnsmasq's folder")?;
        let (conf, log) = (dir.join("dnsmasq.conf"), dir.join("queries.log"));
        // Larger than any datagram that a client takes.
        let big: String = (0..40)
            .map(|n| format!("txt-record=big.outside.test,\"{n:03} {}\"\n", "x".repeat(120)))
            .collect();
        let text = format!(
            "{ZONE}{big}{more}\nlog-queries=extra\nlog-facility={}\n",
            log.display()
        );
        fs::write(&conf, text).context("write dnsmasq.conf")?;
        let mut command = pod.command("dnsmasq");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.arg(format!("--conf-file={}", conf.display()));
        let process = Process::spawn(&mut command, "dnsmasq")?;
        wait_until("dnsmasq to listen", LIMIT, || pod.netns().listens_on(53))?;
        Ok(Self {
            _process: process,
            log,
        })
    }

    /// The lines of its log about queries: `query[A] name from address`.
    pub(crate) fn queries(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let query = |line: &str| line.find("query[").map(|at| line[at..].to_owned());
        log.lines().filter_map(query).collect()
    }
}

//! A recording of every packet on the link between the nodes, by tcpdump: the proof of what leaves a node in clear.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};

use crate::{
    network::LINK,
    process::{Place, Process},
    wait::{LIMIT, wait_until},
};

/// What is sent over the link when the recording ends. Finding it proves that the recording was complete until then.
const END: &[u8] = b"the end of this recording of the link";

/// A running recording.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    place: Place,
    /// The other node, where nobody listens.
    far: SocketAddr,
    file: PathBuf,
}

impl Capture {
    /// Starts tcpdump on the link in `place`, a node's namespace, and waits until it records. `far` is where the end
    /// mark is sent.
    pub(crate) fn start(place: Place, far: SocketAddr, dir: &Path) -> Result<Self> {
        let serial = (1..)
            .find(|serial| !pcap(dir, *serial).exists())
            .context("no free name for a recording")?;
        let file = pcap(dir, serial);
        let log = file.with_extension("log");
        let mut command = place.command("tcpdump");
        // -U with immediate mode writes each packet as it comes; -Z keeps root, whose directory the file is in.
        command
            .args([
                "-i",
                LINK,
                "-n",
                "-U",
                "--immediate-mode",
                "-B",
                "16384",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).with_context(|| format!("create {}", log.display()))?);
        let tcpdump = Process::spawn(&mut command, "tcpdump")?;
        let says = || fs::read_to_string(&log).unwrap_or_default();
        wait_until("tcpdump to listen on the link", LIMIT, || {
            says().contains("listening on")
        })
        .with_context(|| format!("tcpdump said: {}", says()))?;
        Ok(Self {
            tcpdump,
            place,
            far,
            file,
        })
    }

    /// The file that it writes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether these bytes have been seen so far, in one packet.
    pub fn contains(&self, marker: &[u8]) -> bool {
        fs::read(&self.file).is_ok_and(|packets| contains(&packets, marker))
    }

    /// Ends the recording and hands back the whole file. Everything that was on the link before this call is in it.
    pub fn stop(mut self) -> Result<Vec<u8>> {
        let socket = self
            .place
            .netns
            .udp((Ipv4Addr::UNSPECIFIED, 0).into())
            .context("make a socket for the end mark")?;
        socket.send_to(END, self.far).context("send the end mark")?;
        wait_until("the end mark in the recording", LIMIT, || self.contains(END))?;
        self.tcpdump.terminate(LIMIT)?;
        fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))
    }
}

/// Whether `needle` is somewhere in `haystack`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let starts = haystack.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts
        .map(|(at, _)| at)
        .any(|at| haystack[at..].starts_with(needle))
}

fn pcap(dir: &Path, serial: u32) -> PathBuf {
    dir.join(format!("link-{serial}.pcap"))
}

//! Sockets that belong to a pod.
//!
//! A socket keeps the network namespace and the cgroup of the process that made it, and a cgroup is a matter of whole
//! processes. So each pod has one small process (`weft-pause`) that makes sockets on request and passes them to the
//! test (`SCM_RIGHTS`), where they are ordinary `std::net` sockets. `connect` is called over there too, so that the
//! eBPF programs see a process of the pod.
//!
//! One request and one reply are one packet each on a `SOCK_SEQPACKET` pair; the pair's end is the process's end.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Stdio,
    sync::Mutex,
};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    machine,
    process::{Place, Process},
};

/// Longer than any request.
const PACKET_MAX: usize = 512;

/// The socket that a test asks for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SocketSpec {
    domain: i32,
    kind: i32,
    protocol: i32,
    bind: Option<SocketAddr>,
    connect: Option<SocketAddr>,
}

impl SocketSpec {
    /// A socket as `socket(2)` makes it.
    pub fn new(domain: Domain, kind: Type, protocol: Option<Protocol>) -> Self {
        let protocol = protocol.map_or(0, i32::from);
        Self {
            domain: domain.into(),
            kind: kind.into(),
            protocol,
            bind: None,
            connect: None,
        }
    }

    /// Binds it to this address first.
    pub fn bind(self, addr: Option<SocketAddr>) -> Self {
        Self { bind: addr, ..self }
    }

    /// Begins to connect it, without waiting for the outcome: the socket comes back non-blocking.
    pub fn connect(self, addr: SocketAddr) -> Self {
        Self {
            connect: Some(addr),
            ..self
        }
    }

    /// Makes the socket in the calling process.
    fn make(self) -> io::Result<Socket> {
        let protocol = (self.protocol != 0).then(|| Protocol::from(self.protocol));
        let socket = Socket::new(Domain::from(self.domain), Type::from(self.kind), protocol)?;
        if let Some(addr) = self.bind {
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
        }
        if let Some(addr) = self.connect {
            begin_connect(&socket, addr)?;
        }
        Ok(socket)
    }
}

fn begin_connect(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&addr.into()) {
        Err(err) if err.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// The test's end: asks one `weft-pause` for sockets.
#[derive(Debug)]
pub struct Sockets {
    control: Mutex<OwnedFd>,
}

impl Sockets {
    /// Starts a `weft-pause` in `place`. The caller keeps the process; the sockets end with it.
    pub fn start(place: &Place) -> Result<(Self, Process)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("make a socket pair")?;
        // It starts as root and changes user itself: another user may not be able to reach the binary.
        let root = Place {
            uid: 0,
            ..place.clone()
        };
        let mut command = root.command(machine::binary("weft-pause", "WEFT_PAUSE_BIN")?);
        command
            .arg(place.uid.to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        let process = Process::spawn(&mut command, "weft-pause")?;
        Ok((
            Self {
                control: Mutex::new(ours),
            },
            process,
        ))
    }

    /// A socket of the pod, or the error that `socket`, `bind` or `connect` met there.
    pub fn socket(&self, spec: SocketSpec) -> io::Result<Socket> {
        let request = serde_json::to_vec(&spec).map_err(io::Error::other)?;
        let control = self
            .control
            .lock()
            .map_err(|_| io::Error::other("a request for a socket panicked"))?;
        send(control.as_fd(), &request, None)?;
        let (reply, fd) = receive(control.as_fd())?;
        match (fd, reply.try_into().map(i32::from_le_bytes)) {
            (Some(fd), _) => Ok(Socket::from(fd)),
            (None, Ok(errno)) => Err(io::Error::from_raw_os_error(errno)),
            (None, Err(_)) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the pod's weft-pause is gone",
            )),
        }
    }
}

/// The pod's end: makes sockets until the other end closes.
pub fn serve(control: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        let (request, _) = receive(control)?;
        if request.is_empty() {
            return Ok(());
        }
        let spec: SocketSpec = serde_json::from_slice(&request).map_err(io::Error::other)?;
        match spec.make() {
            Ok(socket) => send(control, &0i32.to_le_bytes(), Some(socket.as_fd()))?,
            Err(err) => send(
                control,
                &err.raw_os_error().unwrap_or(libc::EIO).to_le_bytes(),
                None,
            )?,
        }
    }
}

fn send(control: BorrowedFd<'_>, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    sendmsg(
        control,
        &[IoSlice::new(packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// One packet, and the file descriptor that came with it. An empty packet means that the other end is gone.
fn receive(control: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut packet = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        control,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    packet.truncate(received.bytes);
    let mut rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = rights.next().and_then(|mut fds| fds.next());
    Ok((packet, fd))
}

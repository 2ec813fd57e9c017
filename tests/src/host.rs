//! A place with sockets and programs: what pods and nodes have in common.

use std::{
    ffi::OsStr,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::Netns,
    pause::{SocketSpec, Sockets},
    process::{Place, Process},
};

/// How long a connect may take unless a test says otherwise.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a read or write on a connection made here may block: longer than anything should take, so that a test that
/// would hang fails instead.
const IO_LIMIT: Duration = Duration::from_secs(30);

/// A network namespace and a cgroup with one process in them. Sockets made here belong to that process.
pub struct Host {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    place: Place,
    sockets: Sockets,
}

impl Host {
    /// Starts the process that lends sockets in `place`; it is handed back for its owner to end.
    pub fn start(name: &str, v4: Ipv4Addr, v6: Ipv6Addr, place: Place) -> Result<(Self, Process)> {
        let (sockets, process) = Sockets::start(&place)?;
        Ok((
            Self {
                name: name.to_owned(),
                v4,
                v6,
                place,
                sockets,
            },
            process,
        ))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// `port` at its IPv4 address.
    pub fn addr(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// `port` at its IPv6 address.
    pub fn addr6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.place.netns
    }

    /// Where it is: for processes of one's own.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The directory of its cgroup.
    pub fn cgroup(&self) -> PathBuf {
        self.place.cgroup.path().to_owned()
    }

    /// A command that will run here, as the user of the place: a real program such as curl.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.place.command(program)
    }

    /// A bare socket.
    pub fn socket(&self, spec: SocketSpec) -> io::Result<Socket> {
        self.sockets.socket(spec)
    }

    /// A TCP connection, blocking, or the error that a program here would have met. Reads and writes that take longer
    /// than 30 s fail.
    pub fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.connect_with(None, addr, CONNECT_LIMIT)
    }

    /// The same from a given local address.
    pub fn connect_from(&self, local: SocketAddr, addr: SocketAddr) -> io::Result<TcpStream> {
        self.connect_with(Some(local), addr, CONNECT_LIMIT)
    }

    /// The same, giving up after `limit`.
    pub fn connect_within(&self, addr: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        self.connect_with(None, addr, limit)
    }

    fn connect_with(
        &self,
        local: Option<SocketAddr>,
        addr: SocketAddr,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        let spec = SocketSpec::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP));
        let socket = self.sockets.socket(spec.bind(local).connect(addr))?;
        finish_connect(&socket, limit)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(IO_LIMIT))?;
        socket.set_write_timeout(Some(IO_LIMIT))?;
        Ok(socket.into())
    }

    /// A listener on every address, IPv4 and IPv6; port 0 takes a free one.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.listen_on((Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// A listener on one address.
    pub fn listen_on(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = self
            .sockets
            .socket(SocketSpec::new(Domain::for_address(addr), Type::STREAM, None))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    }

    /// A UDP socket bound to `local`; reads that take longer than 30 s fail.
    pub fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let spec = SocketSpec::new(Domain::for_address(local), Type::DGRAM, None);
        let socket = self.sockets.socket(spec.bind(Some(local)))?;
        socket.set_read_timeout(Some(IO_LIMIT))?;
        Ok(socket.into())
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.v4, self.v6)
    }
}

/// Waits until a connect that was begun has its outcome.
fn finish_connect(socket: &Socket, limit: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut events = [PollFd::new(socket, PollFlags::OUT)];
    if poll(&mut events, Some(&timeout))? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer to connect within {limit:?}"),
        ));
    }
    socket.take_error()?.map_or(Ok(()), Err)
}

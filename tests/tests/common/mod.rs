//! What several files of promises need: a client and a server on two nodes, and the questions that are asked of a
//! connection. Each file uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, bail, ensure};
use weft_tests::{AccessLine, Agent, Host, Pod, PodSpec, World};

pub mod ends;

/// Must never be on the link in clear.
pub const MARKER: &[u8] = b"WEFT-PLAINTEXT-MARKER-7d1f";

/// The service that leads to `web`.
pub const SERVICE4: &str = "10.96.0.10:80";
/// The same in IPv6.
pub const SERVICE6: &str = "[fd00:96::10]:80";

/// A pod `client` on node a and a pod `web` on node b, reached as a service on port 80, which leads to 8080.
pub fn client_and_web(world: &mut World) -> Result<(Pod, Pod)> {
    let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = PodSpec::new("web").service_account("web").label("app", "web");
    let web = world.pod("b", web)?;
    let vips = ["10.96.0.10", "fd00:96::10"];
    world.mesh_mut().service("web", &vips, 80, 8080, "web");
    Ok((client, web))
}

/// The address that this text names. Panics where it names none: a test's own mistake.
pub fn addr(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|err| panic!("{text:?} is no address and port: {err}"))
}

/// The four ways to `web`: by service and by its own address, IPv4 and IPv6.
pub fn ways(web: &Host) -> [SocketAddr; 4] {
    [addr(SERVICE4), addr(SERVICE6), web.addr(8080), web.addr6(8080)]
}

/// The line that `agent` wrote of the connection from `client` in one direction, once the connection has ended.
pub fn line_of(agent: &Agent, direction: &str, client: SocketAddr) -> Result<AccessLine> {
    let wanted = [("direction", direction), ("src.addr", &client.to_string())];
    agent.wait_for_access(&format!("{direction} from {client}"), |line| {
        line.matches(&wanted)
    })
}

/// Where a connection was to lead: through a tunnel, what its CONNECT asked for.
pub fn destination(line: &AccessLine) -> &str {
    let tunnelled = line.field("dst.hbone_addr");
    if tunnelled.is_empty() {
        line.field("dst.addr")
    } else {
        tunnelled
    }
}

/// The line that `agent` wrote of a connection to `to` that did not come about or broke, with `error` in its reason.
pub fn error_line(agent: &Agent, direction: &str, to: SocketAddr, error: &str) -> Result<AccessLine> {
    agent.wait_for_access(&format!("{direction} to {to}: {error}"), |line| {
        !line.is_ok()
            && line.field("direction") == direction
            && destination(line) == to.to_string()
            && line.field("error").contains(error)
    })
}

/// Dials, writes and reads back; the address of the client's socket.
pub fn echoed(from: &Host, to: SocketAddr) -> Result<SocketAddr> {
    let mut stream = from.connect(to).with_context(|| format!("{from:?} dials {to}"))?;
    weft_tests::app::round_trip(&mut stream, MARKER).with_context(|| format!("{from:?} speaks to {to}"))?;
    Ok(stream.local_addr()?)
}

/// Dials, and fails unless the app is told by a reset or a refusal that there is nobody: not by a clean end, not by
/// silence.
pub fn reset_or_refused(from: &Host, to: SocketAddr) -> Result<()> {
    match from.connect(to).and_then(|mut stream| read_some(&mut stream)) {
        Err(err) if [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&err.kind()) => {
            Ok(())
        }
        other => bail!("{from:?} dials {to}: neither reset nor refused, but {other:?}"),
    }
}

/// Dials, and fails unless connect(2) itself says that it is refused.
pub fn refused_at_once(from: &Host, to: SocketAddr) -> Result<()> {
    match from.connect(to).map(|mut stream| stream.write_all(MARKER)) {
        Err(err) if err.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{from:?} dials {to}: not refused, but {other:?}"),
    }
}

/// What one read gives.
pub fn read_some(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    let size = stream.read(&mut buffer)?;
    buffer.truncate(size);
    Ok(buffer)
}

/// Fails unless the next read says that the connection was reset.
pub fn ensure_reset(stream: &mut TcpStream) -> Result<()> {
    let read = read_some(stream);
    let reset = read
        .as_ref()
        .is_err_and(|err| err.kind() == ErrorKind::ConnectionReset);
    ensure!(reset, "not a reset, but {read:?}");
    Ok(())
}

/// Fails unless the next read says that the kernel has ended the socket (ECONNABORTED) or the peer has (ECONNRESET).
pub fn ensure_ended(stream: &mut TcpStream) -> Result<()> {
    let read = read_some(stream);
    let kinds = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
    let ended = read.as_ref().is_err_and(|err| kinds.contains(&err.kind()));
    ensure!(ended, "not ended, but {read:?}");
    Ok(())
}

/// How many connections are open, by an agent's own status.
pub fn open_connections(agent: &Agent) -> Option<u64> {
    agent.status().ok()?.pointer("/connections/open")?.as_u64()
}

//! Whatever kind of socket an app dials with or listens on, it is carried, and both ends have the addresses that they
//! would have without a mesh: the client its own and the one that it dialled, the server its own and the client's.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket};
use weft_tests::{
    Agent, LIMIT, Pod, Server, World,
    app::{round_trip, witness},
    with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, addr, client_and_web,
    ends::{
        canonical, check_ends, check_to_the_end, client_ends, dial, mapped, server_ends, socket_for,
        stream_socket,
    },
    ways,
};

/// A client on node a, a witness on node b that listens on every address, and both agents.
struct Scene {
    client: Pod,
    web: Pod,
    agents: [Agent; 2],
    server: Server,
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        let (client, web) = client_and_web(world)?;
        let agents = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, witness)?;
        Ok(Self {
            client,
            web,
            agents,
            server,
        })
    }

    /// The whole check for one connected socket, which it closes.
    fn check(&self, socket: Socket, to: SocketAddr) -> Result<()> {
        check_to_the_end(socket, &self.client, to, &self.web, &self.agents)
    }
}

#[test]
fn sockets_that_are_bound_to_an_address() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let client = &scene.client;
        for (number, to) in (4440..).zip(ways(&scene.web)) {
            let own = if to.is_ipv4() {
                client.addr(0)
            } else {
                client.addr6(0)
            };
            let socket = socket_for(client, to)?;
            socket.bind(&own.into())?;
            dial(&socket, to)?;
            scene.check(socket, to)?;
            // And to a port, which the server sees too.
            let socket = socket_for(client, to)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(own.ip(), number).into())?;
            dial(&socket, to)?;
            let port = client_ends(&socket)?.own.port();
            ensure!(port == number, "bound to port {number}, dials from {port}");
            scene.check(socket, to)?;
            // To a port alone.
            let any = if to.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = socket_for(client, to)?;
            socket.bind(&SocketAddr::new(any, number + 10).into())?;
            dial(&socket, to)?;
            let port = client_ends(&socket)?.own.port();
            ensure!(
                port == number + 10,
                "bound to port {}, dials from {port}",
                number + 10
            );
            scene.check(socket, to)?;
        }
        Ok(())
    });
}

#[test]
fn sockets_that_are_bound_to_a_device() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        for to in ways(&scene.web) {
            for bound in [false, true] {
                let socket = socket_for(&scene.client, to)?;
                socket.bind_device(Some(b"eth0"))?;
                if bound {
                    let own = if to.is_ipv4() {
                        scene.client.addr(0)
                    } else {
                        scene.client.addr6(0)
                    };
                    socket.bind(&own.into())?;
                }
                dial(&socket, to)?;
                ensure!(
                    socket.device()?.as_deref() == Some(b"eth0".as_slice()),
                    "{:?}",
                    socket.device()
                );
                scene.check(socket, to)?;
            }
        }
        Ok(())
    });
}

#[test]
fn connects_that_do_not_wait() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        for to in ways(&scene.web) {
            let socket = socket_for(&scene.client, to)?;
            begin(&socket, to)?;
            ensure!(
                wait_for(&socket)?.contains(PollFlags::OUT),
                "{to} is not writable"
            );
            ensure!(socket.take_error()?.is_none(), "{:?}", socket.take_error());
            // Asked a second time connect says that it is done.
            let again = socket.connect(&to.into()).map_err(|error| error.raw_os_error());
            ensure!(matches!(again, Ok(()) | Err(Some(libc::EISCONN))), "{again:?}");
            socket.set_nonblocking(false)?;
            scene.check(socket, to)?;
        }
        // Nobody is there: the socket says so when it is asked, and was never connected.
        scene.agents[0].kill()?;
        for to in ways(&scene.web) {
            let socket = socket_for(&scene.client, to)?;
            begin(&socket, to)?;
            wait_for(&socket)?;
            let error = socket.take_error()?.and_then(|error| error.raw_os_error());
            ensure!(
                error == Some(libc::ECONNREFUSED),
                "SO_ERROR is {error:?} for {to}"
            );
            ensure!(socket.peer_addr().is_err(), "{:?}", socket.peer_addr());
        }
        Ok(())
    });
}

/// Begins to connect, which must not wait.
fn begin(socket: &Socket, to: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => bail!("a connect to {to} that does not wait: {other:?}"),
    }
}

/// Waits until a socket has the outcome of its connect, and says what poll says.
fn wait_for(socket: &impl AsFd) -> Result<PollFlags> {
    let limit = Timespec::try_from(LIMIT)?;
    let mut events = [PollFd::new(socket, PollFlags::OUT)];
    ensure!(poll(&mut events, Some(&limit))? == 1, "poll waits in vain");
    Ok(events[0].revents())
}

/// `MSG_FASTOPEN` of linux/socket.h: sendto(2) connects, and the SYN may carry data.
const FAST_OPEN: i32 = 0x2000_0000;

#[test]
fn fast_open_by_sendto_and_by_connect() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        // 1: with a cookie of the server's only. 5: data in the SYN without one.
        for setting in ["1", "5"] {
            scene.client.netns().sysctl(&[("ipv4/tcp_fastopen", setting)])?;
            for to in ways(&scene.web) {
                let socket = socket_for(&scene.client, to)?;
                let sent = socket.send_to_with_flags(MARKER, &to.into(), FAST_OPEN)?;
                ensure!(sent == MARKER.len(), "{sent} bytes were sent to {to}");
                check_fast_opened(&scene, socket, to)?;
                // The same for a client that knows nothing of it: connect returns at once, the first write connects.
                let socket = socket_for(&scene.client, to)?;
                set_fast_open_connect(&socket)?;
                dial(&socket, to)?;
                (&socket).write_all(MARKER)?;
                check_fast_opened(&scene, socket, to)?;
            }
        }
        let accepted = scene.server.accepted();
        ensure!(accepted == 16, "{accepted} instead of 16 connections");
        Ok(())
    });
}

/// The bytes that came with the connect are echoed behind the witness's line, once.
fn check_fast_opened(scene: &Scene, socket: Socket, to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::from(socket.try_clone()?);
    let (seen, told) = (client_ends(&socket)?, server_ends(&mut stream)?);
    ensure!(
        seen.peer == to && canonical(told.peer) == seen.own,
        "{seen:?}, {told:?}"
    );
    let mut answer = vec![0; MARKER.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == MARKER, "{answer:?}");
    round_trip(&mut stream, MARKER)?;
    drop((stream, socket));
    let line = common::line_of(&scene.agents[0], "outbound", seen.own)?;
    let twice = (2 * MARKER.len()).to_string();
    ensure!(line.is_ok() && line.field("bytes_sent") == twice, "{line}");
    Ok(())
}

/// `TCP_FASTOPEN_CONNECT` (linux/tcp.h).
fn set_fast_open_connect(socket: &Socket) -> Result<()> {
    const TCP_FASTOPEN_CONNECT: libc::c_int = 30;
    let on: libc::c_int = 1;
    // SAFETY: the value is a c_int and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn multipath_tcp_clients() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        for to in ways(&scene.web) {
            let socket = stream_socket(&scene.client, Domain::for_address(to), Protocol::MPTCP)?;
            dial(&socket, to)?;
            scene.check(socket, to)?;
            let socket = stream_socket(&scene.client, Domain::for_address(to), Protocol::MPTCP)?;
            begin(&socket, to)?;
            wait_for(&socket)?;
            ensure!(socket.take_error()?.is_none(), "{:?}", socket.take_error());
            socket.set_nonblocking(false)?;
            scene.check(socket, to)?;
        }
        for to in [addr(SERVICE4), scene.web.addr(8080)].map(mapped) {
            let socket = stream_socket(&scene.client, Domain::IPV6, Protocol::MPTCP)?;
            dial(&socket, to)?;
            scene.check(socket, to)?;
        }
        // Inside the pod it is multipath TCP as ever, also on a socket that was steered before.
        let own = Server::start(scene.client.listen(8080)?, witness)?;
        let socket = stream_socket(&scene.client, Domain::IPV4, Protocol::MPTCP)?;
        dial(&socket, addr(SERVICE4))?;
        check_ends(&socket, &scene.client, addr(SERVICE4), &scene.web)?;
        rustix::net::connect_unspec(&socket)?;
        let to = addr("127.0.0.1:8080");
        dial(&socket, to)?;
        let seen = client_ends(&socket)?;
        ensure!(seen.peer == to && seen.own.ip() == to.ip(), "{seen:?}");
        let mut stream = TcpStream::from(socket);
        let told = server_ends(&mut stream)?;
        ensure!(canonical(told.peer) == seen.own, "{told:?} instead of {seen:?}");
        round_trip(&mut stream, MARKER)?;
        ensure!(own.accepted() == 1, "{own:?}");
        Ok(())
    });
}

#[test]
fn multipath_tcp_servers() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents = world.start_agents()?;
        let listener = stream_socket(&web, Domain::IPV6, Protocol::MPTCP)?;
        listener.set_read_timeout(None)?;
        listener.set_only_v6(false)?;
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)).into())?;
        listener.listen(64)?;
        let server = Server::start(listener.into(), witness)?;
        for to in ways(&web) {
            for protocol in [Protocol::TCP, Protocol::MPTCP] {
                let socket = stream_socket(&client, Domain::for_address(to), protocol)?;
                dial(&socket, to)?;
                check_to_the_end(socket, &client, to, &web, &agents)?;
            }
        }
        let peers = server.peers();
        ensure!(peers.len() == 8, "{peers:?}");
        ensure!(
            peers.iter().all(|peer| client.addresses().contains(&peer.ip())),
            "accept says {peers:?}"
        );
        Ok(())
    });
}

#[test]
fn listeners_of_either_family_and_of_both() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents = world.start_agents()?;
        let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
        for listens in [any4, any6, web.addr(8080), web.addr6(8080)] {
            let server = Server::start(web.listen_on(listens)?, witness)?;
            for to in ways(&web) {
                let (dual, same) = (listens == any6, listens.is_ipv4() == to.is_ipv4());
                if !dual && !same {
                    continue;
                }
                let socket = socket_for(&client, to)?;
                dial(&socket, to)?;
                // The server's socket shows an IPv4 client in the form of its own family.
                let told = server_ends(&mut TcpStream::from(socket.try_clone()?))?;
                ensure!(
                    told.peer.is_ipv6() == listens.is_ipv6() && told.own.is_ipv6() == listens.is_ipv6(),
                    "a listener on {listens} has {told:?}"
                );
                drop(socket);
                let socket = socket_for(&client, to)?;
                dial(&socket, to)?;
                check_to_the_end(socket, &client, to, &web, &agents)
                    .with_context(|| format!("a listener on {listens}"))?;
            }
            let accepted = server.accepted();
            ensure!(accepted == if listens == any6 { 8 } else { 4 }, "{accepted}");
        }
        Ok(())
    });
}

#[test]
fn sockets_of_ipv6_that_dial_ipv4() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        for to in [addr(SERVICE4), scene.web.addr(8080)].map(mapped) {
            for bound in [None, Some(scene.client.addr(0)), Some(scene.client.addr(4450))] {
                let socket = socket_for(&scene.client, to)?;
                socket.set_reuse_address(true)?;
                if let Some(own) = bound {
                    socket.bind(&mapped(own).into())?;
                }
                dial(&socket, to)?;
                scene.check(socket, to)?;
            }
            let socket = socket_for(&scene.client, to)?;
            socket.bind_device(Some(b"eth0"))?;
            dial(&socket, to)?;
            scene.check(socket, to)?;
        }
        Ok(())
    });
}

#[test]
fn connects_by_io_uring() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let mut ring = IoUring::new(8).context(
            "this machine gives no io_uring (sysctl kernel.io_uring_disabled?), so this promise cannot be tried here",
        )?;
        // In the caller's own thread, and in one of the kernel's workers.
        for how in [squeue::Flags::empty(), squeue::Flags::ASYNC] {
            for to in ways(&scene.web) {
                let socket = socket_for(&scene.client, to)?;
                let result = uring_connect(&mut ring, &socket, to, how)?;
                ensure!(result == 0, "connect to {to} by io_uring: {result}");
                scene.check(socket, to)?;
            }
        }
        // With nobody there it is refused, as ever.
        scene.agents[0].kill()?;
        for to in ways(&scene.web) {
            let socket = socket_for(&scene.client, to)?;
            let result = uring_connect(&mut ring, &socket, to, squeue::Flags::empty())?;
            ensure!(
                result == -libc::ECONNREFUSED,
                "connect to {to} by io_uring: {result}"
            );
        }
        Ok(())
    });
}

/// `IORING_OP_CONNECT`, waited for: 0, or an error's number below it.
fn uring_connect(ring: &mut IoUring, socket: &Socket, to: SocketAddr, how: squeue::Flags) -> Result<i32> {
    let to = socket2::SockAddr::from(to);
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), to.as_ptr().cast(), to.len())
        .build()
        .flags(how);
    // SAFETY: the address and the socket live until the completion, which is waited for below.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    ring.submit_and_wait(1).context("wait for the ring")?;
    let completion = ring.completion().next().context("the ring has no completion")?;
    Ok(completion.result())
}

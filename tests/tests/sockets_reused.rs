//! Sockets that live on are carried as new ones are: those that are connected again, that go from process to process,
//! that share a port, or that were there before their pod was captured.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    net::{Ipv6Addr, SocketAddr, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, connect_unspec, sendmsg};
use socket2::{Domain, Protocol, Socket};
use weft_tests::{
    Host, LIMIT, Membership, PodSpec, Server,
    app::{round_trip, witness},
    program::{self, PYTHON},
    wait_until, with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, SERVICE6, addr, client_and_web,
    ends::{
        Ends, canonical, check_ends, check_to_the_end, client_ends, dial, mapped, own_address, parse,
        server_ends, socket_for, stream_socket,
    },
    ensure_reset, line_of, ways,
};

/// Fails unless a connected socket is shown `to` as its peer and comes from the same address, and the witness at the
/// other end sees it: a connection that stays in the pod.
fn check_local(socket: &Socket, to: SocketAddr) -> Result<()> {
    let seen = client_ends(socket)?;
    ensure!(seen.peer == to && seen.own.ip() == to.ip(), "{seen:?} for {to}");
    let mut stream = TcpStream::from(socket.try_clone()?);
    let told = server_ends(&mut stream)?;
    ensure!(canonical(told.peer) == canonical(seen.own), "{told:?}, {seen:?}");
    Ok(round_trip(&mut stream, MARKER)?)
}

#[test]
fn a_socket_that_is_connected_again_has_the_addresses_of_its_new_connection() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _own = Server::start(client.listen(8080)?, witness)?;
        let _web = Server::start(web.listen(8080)?, witness)?;
        let (v4, v6) = (addr(SERVICE4), addr(SERVICE6));
        let (local4, local6) = (addr("127.0.0.1:8080"), addr("[::1]:8080"));
        let rounds = [
            (
                Domain::IPV4,
                [v4, web.addr(8080), local4, client.addr(8080), local4, v4],
            ),
            (
                Domain::IPV6,
                [v6, web.addr6(8080), local6, client.addr6(8080), local6, v6],
            ),
            (
                Domain::IPV6,
                [v4, web.addr(8080), local4, v4, local4, client.addr(8080)].map(mapped),
            ),
        ];
        for (domain, round) in rounds {
            for protocol in [Protocol::TCP, Protocol::MPTCP] {
                let socket = stream_socket(&client, domain, protocol)?;
                for (number, to) in round.into_iter().enumerate() {
                    let told = format!("{protocol:?}, connection {number} of {round:?}");
                    dial(&socket, to).with_context(|| told.clone())?;
                    let ip = canonical(to).ip();
                    if ip.is_loopback() || client.addresses().contains(&ip) {
                        check_local(&socket, to).with_context(|| told)?;
                    } else {
                        check_ends(&socket, &client, to, &web).with_context(|| told)?;
                    }
                    connect_unspec(&socket).context("disconnect")?;
                }
            }
        }
        wait_until("each of them in the access log", LIMIT, || {
            a.access_lines().len() == 18
        })
        .with_context(|| format!("{}", a.access_lines().len()))?;
        Ok(())
    });
}

#[test]
fn a_socket_may_be_connected_after_a_refusal() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, witness)?;
        for to in ways(&web) {
            let socket = socket_for(&client, to)?;
            // By the pod itself, by the programs while there is no agent, and by the mesh.
            let nobody = SocketAddr::new(
                if to.is_ipv4() {
                    client.v4().into()
                } else {
                    client.v6().into()
                },
                81,
            );
            refused(&socket, nobody)?;
            agents[0].kill()?;
            refused(&socket, to)?;
            agents[0].start()?;
            let no_such_port = SocketAddr::new(to.ip(), 9);
            dial(&socket, no_such_port)?;
            ensure_reset(&mut TcpStream::from(socket.try_clone()?))?;
            connect_unspec(&socket).context("disconnect")?;
            dial(&socket, to)?;
            check_to_the_end(socket, &client, to, &web, &agents)?;
        }
        ensure!(server.accepted() == 4, "{server:?}");
        Ok(())
    });
}

fn refused(socket: &Socket, to: SocketAddr) -> Result<()> {
    match socket.connect(&to.into()).map_err(|error| error.raw_os_error()) {
        Err(Some(libc::ECONNREFUSED)) => Ok(()),
        other => bail!("{to} is not refused but {other:?}"),
    }
}

#[test]
fn a_connection_is_inherited_by_fork_and_by_exec() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let mut serving = web.command(PYTHON);
        serving.arg(program::source("inherit.py")).args(["serve", "8080"]);
        let _serving = program::serve(&mut serving, &web, 8080, "inherit.py serve")?;
        for to in ways(&web) {
            let mut dialling = client.command(PYTHON);
            dialling.arg(program::source("inherit.py"));
            dialling.args(["dial", &to.ip().to_string(), &to.port().to_string()]);
            let said = program::run(&mut dialling, "inherit.py dial")?;
            let lines: Vec<_> = said.lines().collect();
            ensure!(lines.len() == 3, "{said}");
            let mut own = None;
            for (line, name) in lines.into_iter().zip(["child", "parent", "program"]) {
                own = Some(check_spoken(line, name, &client, to, &web)?);
            }
            let line = line_of(&a, "outbound", own.context("nobody spoke")?)?;
            let spoken = "child\nparent\nprogram\n".len().to_string();
            ensure!(
                line.is_ok() && line.matches(&[("bytes_sent", &spoken), ("src.workload", "client")]),
                "{line}"
            );
        }
        Ok(())
    });
}

/// Checks a line of `inherit.py`: name, own address, peer, and what the witness said if this one heard it. The client's
/// own address.
fn check_spoken(line: &str, name: &str, client: &Host, to: SocketAddr, server: &Host) -> Result<SocketAddr> {
    let words: Vec<_> = line.splitn(4, ' ').collect();
    let [spoke, own, peer, heard] = words.as_slice() else {
        bail!("{line:?} has not four parts")
    };
    let seen: Ends = parse(&format!("{peer} {own}"))?;
    ensure!(
        *spoke == name && seen.peer == to,
        "{line} instead of {name} and {to}"
    );
    ensure!(seen.own.ip() == own_address(client, to).ip(), "{line}");
    if !heard.is_empty() {
        let told = parse(heard)?;
        let at = SocketAddr::new(own_address(server, to).ip(), 8080);
        ensure!(
            canonical(told.peer) == seen.own && canonical(told.own) == at,
            "the server says {told:?}: {line}"
        );
    }
    Ok(seen.own)
}

#[test]
fn a_socket_belongs_to_the_pod_that_made_it_whoever_dials_with_it() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let other = world.pod("a", PodSpec::new("other").service_account("other"))?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let [a, _] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, witness)?;
        // A socket of the client's goes to a process of another pod, in the mesh or not, which dials.
        for process in [&other, &stranger] {
            for to in ways(&web) {
                let (ours, theirs) = UnixStream::pair()?;
                let mut receiving = process.command(PYTHON);
                receiving.arg(program::source("inherit.py"));
                receiving.args(["receive", &to.ip().to_string(), &to.port().to_string()]);
                receiving.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
                receiving.stdout(Stdio::piped()).stderr(Stdio::piped());
                let receiving = receiving.spawn().context("start inherit.py receive")?;
                pass(&ours, &socket_for(&client, to)?)?;
                let said = program::succeeded(receiving.wait_with_output()?, "inherit.py receive")?;
                let own = check_spoken(said.trim_end_matches('\n'), "receiver", &client, to, &web)?;
                let line = line_of(&a, "outbound", own)?;
                ensure!(
                    line.is_ok() && line.matches(&[("src.identity", &client.identity())]),
                    "{line}"
                );
            }
        }
        Ok(())
    });
}

/// Passes a socket on by SCM_RIGHTS.
fn pass(passage: &UnixStream, socket: &Socket) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for a file descriptor"
    );
    sendmsg(
        passage,
        &[IoSlice::new(b".")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[test]
fn listeners_that_share_a_port_share_its_connections() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let _agents = world.start_agents()?;
        let servers = (0..3)
            .map(|_| {
                let listener = stream_socket(&web, Domain::IPV6, Protocol::TCP)?;
                listener.set_read_timeout(None)?;
                listener.set_only_v6(false)?;
                listener.set_reuse_port(true)?;
                listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)).into())?;
                listener.listen(128)?;
                Ok(Server::start(listener.into(), witness)?)
            })
            .collect::<Result<Vec<_>>>()?;
        for to in ways(&web).into_iter().cycle().take(80) {
            let socket = socket_for(&client, to)?;
            dial(&socket, to)?;
            check_ends(&socket, &client, to, &web)?;
        }
        let accepted: Vec<_> = servers.iter().map(Server::accepted).collect();
        ensure!(
            accepted.iter().sum::<u64>() == 80 && accepted.iter().all(|accepted| *accepted > 0),
            "{accepted:?}"
        );
        Ok(())
    });
}

#[test]
fn a_listener_with_a_short_queue_loses_nobody() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let _agents = world.start_agents()?;
        let listener = stream_socket(&web, Domain::IPV6, Protocol::TCP)?;
        listener.set_read_timeout(None)?;
        listener.set_only_v6(false)?;
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)).into())?;
        listener.listen(1)?;
        // More than wait in the queue, before anybody is accepted.
        let sockets = ways(&web).map(|to| (to, socket_for(&client, to)));
        let mut dialled = Vec::new();
        for (to, socket) in sockets {
            let socket = socket?;
            dial(&socket, to)?;
            dialled.push((to, socket));
        }
        let _server = Server::start(listener.into(), witness)?;
        thread::scope(|scope| {
            let checks: Vec<_> = dialled
                .iter()
                .map(|(to, socket)| scope.spawn(|| check_ends(socket, &client, *to, &web).map(drop)))
                .collect();
            checks
                .into_iter()
                .try_for_each(|check| check.join().unwrap_or_else(|_| bail!("a check panicked")))
        })
    });
}

#[test]
fn sockets_that_were_there_before_the_pod_was_captured() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        for pod in [&client, &web] {
            world.set_membership(pod, Membership::Outside);
        }
        let agents = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, witness)?;
        let mut connected = Vec::new();
        let mut unconnected = Vec::new();
        for to in ways(&web) {
            for protocol in [Protocol::TCP, Protocol::MPTCP] {
                if to.port() == 8080 {
                    let socket = stream_socket(&client, Domain::for_address(to), protocol)?;
                    dial(&socket, to)?;
                    check_ends(&socket, &client, to, &web)?;
                    connected.push((to, socket));
                }
                unconnected.push((to, stream_socket(&client, Domain::for_address(to), protocol)?));
                let bound = stream_socket(&client, Domain::for_address(to), protocol)?;
                bound.bind(&own_address(&client, to).into())?;
                unconnected.push((to, bound));
            }
        }
        for pod in [&client, &web] {
            world.set_membership(pod, Membership::Mesh);
        }
        world.apply()?;
        // Those that were connected go on as they are; connected again they are carried, as are the others.
        for (to, socket) in connected {
            ensure!(client_ends(&socket)?.peer == to, "{:?}", client_ends(&socket));
            round_trip(&mut TcpStream::from(socket.try_clone()?), MARKER)?;
            connect_unspec(&socket).context("disconnect")?;
            unconnected.push((to, socket));
        }
        for (to, socket) in unconnected {
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            dial(&socket, to)?;
            check_to_the_end(socket, &client, to, &web, &agents)?;
        }
        Ok(())
    });
}

//! Between the SYN and the accept the kernel must remember who is really there. What it cannot remember is refused: an
//! app is never shown the agent's loopback address, which it might trust.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use agent_common::{Address, Handshake, Tuple};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use socket2::{Domain, Protocol, Socket};
use weft_tests::{
    Agent, Host, LIMIT, Node, Server,
    app::{reset, witness},
    wait_until, with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, addr, client_and_web,
    ends::{check_ends, dial, server_ends, socket_for, stream_socket},
    error_line, refused_at_once, reset_or_refused, ways,
};

/// One of the maps that a node's programs keep handshakes in.
type Handshakes = HashMap<MapData, Tuple, Handshake>;

/// More than the map holds.
const FULL: u32 = 70_000;

fn behalf(node: &Node) -> Result<Handshakes> {
    let pin = find(node.pin_dir(), "BEHALF").context("no map BEHALF is pinned")?;
    Ok(HashMap::try_from(Map::HashMap(MapData::from_pin(pin)?))?)
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find_map(|path| match path.file_name() {
            Some(found) if found == name => Some(path),
            _ if path.is_dir() => find(&path, name),
            _ => None,
        })
}

fn count(map: &Handshakes) -> usize {
    map.keys().filter_map(Result::ok).count()
}

fn clear(map: &mut Handshakes) {
    for key in map.keys().filter_map(Result::ok).collect::<Vec<_>>() {
        let _ = map.remove(&key);
    }
}

/// A connection that nobody has.
fn made_up(number: u32) -> Tuple {
    Tuple {
        local: Address::from(IpAddr::from((0xcb00_7100 | number >> 16).to_be_bytes())),
        local_port: number as u16,
        ..Tuple::default()
    }
}

/// Waits until nothing of a finished connection is left.
fn wait_until_empty(map: &Handshakes) -> Result<()> {
    wait_until("the map to be empty", LIMIT, || count(map) == 0)
}

#[test]
fn a_client_that_the_kernel_cannot_note_is_reset_and_the_app_never_sees_anybody() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [_, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, witness)?;
        let mut map = behalf(world.node("b"))?;
        let full = (0..FULL).find(|number| map.insert(made_up(*number), Handshake::default(), 0).is_err());
        ensure!(full.is_some(), "{FULL} entries do not fill the map");
        for to in ways(&web) {
            reset_or_refused(&client, to)?;
            let at = if to.is_ipv4() {
                web.addr(8080)
            } else {
                web.addr6(8080)
            };
            error_line(&b, "inbound", at, "BEHALF")?;
        }
        // In plaintext too, and from the pod to itself by its service.
        reset_or_refused(&web, addr(SERVICE4))?;
        error_line(&b, "outbound", web.addr(8080), "BEHALF")?;
        ensure!(server.accepted() == 0, "{server:?}: {:?}", server.peers());
        clear(&mut map);
        for to in ways(&web) {
            let socket = socket_for(&client, to)?;
            dial(&socket, to)?;
            check_ends(&socket, &client, to, &web)?;
        }
        wait_until_empty(&map)
    });
}

#[test]
fn nobody_is_dialled_from_the_agents_addresses_but_by_the_agent() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let _agents = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, witness)?;
        for number in [1, 2, 254] {
            let from = SocketAddr::new(Address::behalf_source(number).into(), 0);
            for to in [web.addr(8080), addr("127.0.0.1:8080")] {
                match web.connect_from(from, to) {
                    Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                    other => bail!("{to} from {from}: not refused, but {other:?}"),
                }
            }
        }
        ensure!(server.accepted() == 0, "{:?}", server.peers());
        // As little as anybody comes to where only steered sockets go, though an app may listen there.
        let trap = Server::start(client.listen(15001)?, witness)?;
        refused_at_once(&client, addr("127.64.0.1:15001"))?;
        refused_at_once(&client, addr("127.127.255.253:15001"))?;
        ensure!(trap.accepted() == 0, "{:?}", trap.peers());
        answers_on_loopback(&client)?;
        Ok(())
    });
}

/// What an app does on loopback by habit goes on.
fn answers_on_loopback(client: &Host) -> Result<()> {
    let mut stream = client.connect(addr("127.0.0.1:15001"))?;
    let told = server_ends(&mut stream)?;
    ensure!(
        told.peer.ip().to_canonical() == IpAddr::from([127, 0, 0, 1]),
        "{told:?}"
    );
    Ok(())
}

/// A listener whose sockets come to be with the client's first bytes (`TCP_DEFER_ACCEPT`), as nginx's `deferred`.
fn deferred_listener(pod: &Host) -> Result<Socket> {
    let listener = stream_socket(pod, Domain::IPV6, Protocol::TCP)?;
    listener.set_read_timeout(None)?;
    listener.set_only_v6(false)?;
    let seconds: libc::c_int = 60;
    // SAFETY: the value is a c_int and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)).into())?;
    listener.listen(64)?;
    Ok(listener)
}

#[test]
fn a_note_lasts_as_long_as_the_app_takes_to_accept_and_no_longer_than_the_agents_socket() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents: [Agent; 2] = world.start_agents()?;
        let server = Server::start(deferred_listener(&web)?.into(), witness)?;
        let map = behalf(world.node("b"))?;
        for to in ways(&web) {
            let mut stream = client.connect(to)?;
            wait_until("a note of a connection that is not accepted", LIMIT, || {
                count(&map) == 1
            })?;
            stream.write_all(MARKER)?;
            let told = server_ends(&mut stream)?;
            let own = stream.local_addr()?;
            ensure!(
                SocketAddr::new(told.peer.ip().to_canonical(), told.peer.port()) == own,
                "{told:?} instead of {own}"
            );
            ensure!(count(&map) == 0, "{} notes are left", count(&map));
        }
        // Given up before it was accepted, by the client and by the death of the agent.
        let given_up = client.connect(addr(SERVICE4))?;
        wait_until("a note", LIMIT, || count(&map) == 1)?;
        reset(given_up)?;
        wait_until_empty(&map)?;
        let _open = client.connect(addr(SERVICE4))?;
        wait_until("a note", LIMIT, || count(&map) == 1)?;
        agents[1].kill()?;
        wait_until_empty(&map)?;
        agents[1].start()?;
        // Nobody listens there.
        let nobody = SocketAddr::new(web.v4().into(), 8079);
        reset_or_refused(&client, nobody)?;
        let nobody = SocketAddr::new(web.v6().into(), 8079);
        reset_or_refused(&client, nobody)?;
        wait_until_empty(&map)?;
        ensure!(server.accepted() == 4, "{server:?}");
        Ok(())
    });
}

#[test]
fn a_client_whose_note_is_taken_away_is_nobody_to_the_app() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let _agents = world.start_agents()?;
        let server = Server::start(deferred_listener(&web)?.into(), |_| Ok(()))?;
        let mut map = behalf(world.node("b"))?;
        let mut stream = client.connect(addr(SERVICE4))?;
        wait_until("a note of a connection that is not accepted", LIMIT, || {
            count(&map) == 1
        })?;
        clear(&mut map);
        stream.write_all(MARKER)?;
        wait_until("the app to accept", LIMIT, || server.accepted() == 1)?;
        let peers = server.peers();
        ensure!(
            peers
                .iter()
                .all(|peer| peer.ip().is_unspecified() && peer.port() == 0),
            "the app sees {peers:?}"
        );
        Ok(())
    });
}

#[test]
fn a_flood_of_handshakes_shows_nobody_a_wrong_peer() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let _agents = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, witness)?;
        let (on_a, on_b) = (behalf(world.node("a"))?, behalf(world.node("b"))?);
        let floods = ["a", "b"].map(|node| find(world.node(node).pin_dir(), "HANDSHAKES"));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for pin in floods {
                let pin = pin.context("no map HANDSHAKES is pinned")?;
                let mut map: Handshakes = HashMap::try_from(Map::LruHashMap(MapData::from_pin(pin)?))?;
                let done = &done;
                scope.spawn(move || {
                    let mut numbers = (0..u32::MAX).cycle();
                    while !done.load(Ordering::Relaxed) {
                        let _ = map.insert(made_up(numbers.next().unwrap_or(0)), Handshake::default(), 0);
                    }
                });
            }
            let checked = (0..50).try_for_each(|_| {
                ways(&web).into_iter().try_for_each(|to| {
                    let socket = socket_for(&client, to)?;
                    // A lost note is a refusal, never a wrong peer.
                    match dial(&socket, to) {
                        Ok(()) => check_ends(&socket, &client, to, &web).map(drop),
                        Err(_) => Ok(()),
                    }
                })
            });
            done.store(true, Ordering::Relaxed);
            checked
        })?;
        ensure!(server.accepted() > 100, "{server:?}");
        for map in [&on_a, &on_b] {
            wait_until_empty(map)?;
        }
        Ok(())
    });
}

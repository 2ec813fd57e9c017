//! The test world itself, with no agent in it: what it promises to every other test.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_tests::{
    Membership, Nginx, PodSpec, Server, World, app, curl, machine, network::LINK, pattern, run::RunId, sweep,
    with_world,
};

const MARKER: &[u8] = b"plaintext-marker-0123456789";

/// A client on node a and a server on node b.
fn two_pods(world: &mut World) -> Result<[weft_tests::Pod; 2]> {
    let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = world.pod(
        "b",
        PodSpec::new("web").service_account("web").label("app", "web"),
    )?;
    Ok([client, web])
}

#[test]
fn pods_on_two_nodes_talk_directly() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        for (addr, own) in [
            (web.addr(8080), client.addr(0)),
            (web.addr6(8080), client.addr6(0)),
        ] {
            let mut stream = client.connect(addr)?;
            app::round_trip(&mut stream, MARKER)?;
            assert_eq!(stream.peer_addr()?, addr);
            assert_eq!(stream.local_addr()?.ip(), own.ip());
            let seen = server.peers().pop().context("the server saw nobody")?;
            assert_eq!(
                seen,
                stream.local_addr()?,
                "the network must not translate addresses"
            );
        }
        Ok(())
    });
}

#[test]
fn pods_on_one_node_and_the_node_itself_talk() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let web = world.pod("a", PodSpec::new("web"))?;
        let shared = world.pod("a", PodSpec::new("shared").host_network())?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        let node = world.node("a");
        for addr in [web.addr(8080), web.addr6(8080)] {
            for from in [&*client, node, &*shared] {
                app::round_trip(&mut from.connect(addr)?, MARKER)
                    .with_context(|| format!("{from:?} to {addr}"))?;
                let seen = server.peers().pop().context("the server saw nobody")?;
                ensure!(
                    from.addresses().contains(&seen.ip()),
                    "{from:?} was seen as {seen}"
                );
            }
        }
        assert_ne!(shared.cgroup(), node.cgroup());
        Ok(())
    });
}

#[test]
fn udp_is_carried_and_connect_errors_arrive() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let (ours, theirs) = (client.udp(client.addr(0))?, web.udp(web.addr(5000))?);
        ours.send_to(MARKER, web.addr(5000))?;
        let mut buffer = [0; 64];
        let (size, from) = theirs.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..size], from), (MARKER, ours.local_addr()?));

        let refused = client.connect(web.addr(81)).expect_err("nobody listens");
        assert_eq!(refused.raw_os_error(), Some(libc_refused()), "{refused}");
        let local = (client.v4(), 4321).into();
        let taken = client.listen_on(local)?;
        let in_use = client
            .connect_from(local, web.addr(81))
            .expect_err("the address is taken");
        assert_eq!(in_use.kind(), std::io::ErrorKind::AddrInUse, "{in_use}");
        drop(taken);
        Ok(())
    });
}

fn libc_refused() -> i32 {
    rustix::io::Errno::CONNREFUSED.raw_os_error()
}

#[test]
fn servers_behave_as_they_say() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let count = Server::start(web.listen(1)?, app::count)?;
        assert_eq!(app::ask(client.connect(web.addr(1))?, b"12345")?, b"5");
        assert_eq!(count.accepted(), 1);

        let _banner = Server::start(web.listen(2)?, app::banner(b"220 hello\r\n"))?;
        assert_eq!(app::ask(client.connect(web.addr6(2))?, b"x")?, b"220 hello\r\nx");

        let _finish = Server::start(web.listen(3)?, app::finish_first(b"bye"))?;
        assert_eq!(app::ask(client.connect(web.addr(3))?, b"")?, b"bye");

        let _sink = Server::start(web.listen(4)?, app::sink(7))?;
        let mut stream = client.connect(web.addr(4))?;
        pattern::send(&mut stream, 7, 1 << 24)?;
        assert_eq!(app::ask(stream, b"")?, (1u64 << 24).to_string().as_bytes());

        let _source = Server::start(web.listen(5)?, app::source(9, (1 << 24) + 5))?;
        assert_eq!(
            pattern::check(&mut client.connect(web.addr(5))?, 9)?,
            (1 << 24) + 5
        );

        let _reset = Server::start(web.listen(6)?, app::reset_after_first_byte)?;
        let reset = app::ask(client.connect(web.addr(6))?, b"x").expect_err("the server resets");
        assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset, "{reset}");
        Ok(())
    });
}

#[test]
fn a_server_that_is_dropped_listens_no_more() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        let mut stream = client.connect(web.addr(8080))?;
        app::round_trip(&mut stream, MARKER)?;
        drop(server);
        assert!(
            app::round_trip(&mut stream, MARKER).is_err(),
            "its connections end"
        );
        assert!(client.connect(web.addr(8080)).is_err(), "it accepts no more");
        Ok(())
    });
}

#[test]
fn nginx_and_curl_run_in_pods_as_any_user() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").uid(65535))?;
        let web = world.pod("b", PodSpec::new("web"))?;
        let other = world.pod("b", PodSpec::new("other").uid(65535))?;
        for pod in [&web, &other] {
            let nginx = Nginx::start(world, pod, 8080, "hello from nginx")?;
            for host in [format!("{}", pod.v4()), format!("[{}]", pod.v6())] {
                let got = curl(&client, &[&format!("http://{host}:8080/")])?;
                assert_eq!(
                    (got.status, &*got.body, got.exit),
                    (200, "hello from nginx", 0),
                    "{}",
                    got.stderr
                );
            }
            let peer = curl(&client, &[&format!("http://{}:8080/peer", pod.v4())])?;
            assert_eq!(peer.body, client.v4().to_string());
            assert!(nginx.access_log().starts_with(&client.v4().to_string()));
            let status = fs::read_to_string(format!("/proc/{}/status", nginx.pid()))?;
            assert!(
                status.contains(&format!("\nUid:\t{}\t", pod.place().uid)),
                "{status}"
            );
            let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", nginx.pid()))?;
            let own = pod
                .cgroup()
                .file_name()
                .context("a cgroup has a name")?
                .to_string_lossy()
                .into_owned();
            assert!(cgroup.contains(&own), "nginx is not in {own}: {cgroup}");
        }
        let nobody = curl(&client, &[&format!("http://{}:81/", web.v4())])?;
        assert_eq!((nobody.exit, nobody.status), (7, 0));
        Ok(())
    });
}

#[test]
fn a_capture_of_the_link_sees_plaintext() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let neighbour = world.pod("b", PodSpec::new("neighbour"))?;
        let _server = Server::start(web.listen(8080)?, app::echo)?;

        let capture = world.capture_link()?;
        app::round_trip(&mut client.connect(web.addr(8080))?, MARKER)?;
        let packets = capture.stop()?;
        assert!(
            weft_tests::capture::contains(&packets, MARKER),
            "plaintext between nodes must be seen"
        );

        let capture = world.capture_link()?;
        app::round_trip(&mut neighbour.connect(web.addr(8080))?, MARKER)?;
        let packets = capture.stop()?;
        assert!(
            !weft_tests::capture::contains(&packets, MARKER),
            "what stays on node b is not on the link"
        );
        Ok(())
    });
}

#[test]
fn the_mesh_file_tells_what_the_pods_are() {
    with_world(|world| {
        let [client, web] = two_pods(world)?;
        let plain = world.pod("a", PodSpec::new("plain").outside())?;
        world.pod("a", PodSpec::new("stranger").unlisted())?;
        world
            .mesh_mut()
            .service("web", &["10.96.0.10"], 80, 8080, "web")
            .mtls("demo", "STRICT");
        world.apply()?;
        let read = |world: &World| -> Result<serde_json::Value> {
            Ok(serde_json::from_str(&fs::read_to_string(world.mesh_file("b"))?)?)
        };
        let mesh = read(world)?;
        let names: Vec<_> = mesh["workloads"]
            .as_array()
            .context("workloads")?
            .iter()
            .map(|pod| &pod["name"])
            .collect();
        assert_eq!(names, ["client", "web", "plain"]);
        assert_eq!(
            mesh["workloads"][0]["netns"],
            client.netns().path().to_string_lossy().as_ref()
        );
        assert_eq!(mesh["workloads"][1]["addresses"][1], web.v6().to_string());
        assert_eq!(mesh["workloads"][2]["tunnelProtocol"], "NONE");
        assert_eq!(mesh["services"][0]["ports"][0]["targetPort"], 8080);

        world.set_membership(&plain, Membership::Mesh);
        world.remove_pod(&client)?;
        world.apply()?;
        let mesh = read(world)?;
        assert_eq!(mesh["workloads"][1]["tunnelProtocol"], "HBONE");
        assert!(
            client.connect(web.addr(8080)).is_err(),
            "a removed pod has no processes"
        );
        Ok(())
    });
}

/// What carries a run's name, anywhere.
fn left_of(run: &str) -> Result<Vec<String>> {
    let cgroups = machine::cgroup2_root()?;
    let places = [
        cgroups.as_path(),
        Path::new("/run/netns"),
        Path::new("/sys/fs/bpf"),
        Path::new("/tmp"),
    ];
    let mut left = Vec::new();
    for place in places {
        for entry in fs::read_dir(place)? {
            let path = entry?.path();
            left.extend(
                path.to_string_lossy()
                    .contains(run)
                    .then(|| path.display().to_string()),
            );
        }
    }
    Ok(left)
}

#[test]
fn nothing_is_left_of_a_world() -> Result<()> {
    let mut world = World::two_nodes()?;
    let run = world
        .dir()
        .file_name()
        .context("a directory has a name")?
        .to_string_lossy()
        .into_owned();
    let [_, web] = two_pods(&mut world)?;
    // What a test may leave running: a program nobody waits for, a pin, a recording.
    let mut child = web.command("sleep").arg("1000").spawn()?;
    fs::create_dir(world.node("a").pin_dir())?;
    let capture = world.capture_link()?;
    assert!(left_of(&run)?.len() >= 7, "{:?}", left_of(&run)?);
    assert!(
        !sweep()?.iter().any(|removed| removed.contains(&run)),
        "a living world is not swept"
    );
    assert!(left_of(&run)?.len() >= 7, "a living world is not swept");
    drop(world);
    child.wait()?;
    drop(capture);
    assert_eq!(left_of(&run)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_a_dead_process_left_is_swept() -> Result<()> {
    machine::mount_bpffs()?;
    // No process can have this id.
    let run = "weft-4194999-1-1";
    assert!(!RunId::parse(run).context("a run's name")?.alive());
    let cgroup = machine::cgroup2_root()?.join(run);
    fs::create_dir_all(cgroup.join("node-a/pod-x"))?;
    let pins = Path::new(machine::BPFFS).join(format!("{run}-a"));
    fs::create_dir(&pins)?;
    let files = Path::new("/tmp").join(run);
    fs::create_dir_all(files.join("ca"))?;
    let netns = weft_tests::netns::Netns::create(&[format!("{run}-a")])?;
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn()?;
    fs::write(cgroup.join("node-a/pod-x/cgroup.procs"), sleeper.id().to_string())?;

    // Another test's sweep may come first and take some of it; together they take it all.
    sweep()?;
    let ended = sleeper.wait()?;
    assert!(!ended.success(), "a process of a dead world is ended");
    weft_tests::wait_until("everything to be swept", Duration::from_secs(5), || {
        left_of(run).is_ok_and(|l| l.is_empty())
    })?;
    assert!(!netns.iter().any(|netns| netns.path().exists()));
    Ok(())
}

#[test]
fn a_failed_test_keeps_its_files() -> Result<()> {
    let mut world = World::two_nodes()?;
    let run = world
        .dir()
        .file_name()
        .context("a directory has a name")?
        .to_string_lossy()
        .into_owned();
    fs::write(world.dir().join("evidence"), "here")?;
    world.keep_files();
    drop(world);
    assert_eq!(left_of(&run)?, Vec::<String>::new());
    let kept = RunId::parse(&run).context("a run's name")?.kept_dir();
    assert_eq!(fs::read_to_string(kept.join("evidence"))?, "here");
    Ok(fs::remove_dir_all(kept)?)
}

#[test]
fn worlds_do_not_see_each_other() -> Result<()> {
    let (mut one, mut two) = (World::two_nodes()?, World::two_nodes()?);
    let ([client, web], [_, other]) = (two_pods(&mut one)?, two_pods(&mut two)?);
    assert_eq!(web.v4(), other.v4(), "equal addresses, different networks");
    let _server = Server::start(other.listen(8080)?, app::echo)?;
    assert!(client.connect(web.addr(8080)).is_err());
    Ok(())
}

#[test]
fn the_machine_itself_is_left_alone() -> Result<()> {
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    let mut world = World::two_nodes()?;
    let [_, web] = two_pods(&mut world)?;
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?, before);
    let (routes, devices) = (
        fs::read_to_string("/proc/self/net/route")?,
        fs::read_to_string("/proc/self/net/dev")?,
    );
    for text in [routes, devices] {
        assert!(!text.contains("pod10") && !text.contains(LINK), "{text}");
    }
    assert_eq!(web.v4(), Ipv4Addr::new(10, 244, 2, 10));
    assert_eq!(web.v6(), "fd00:244:2::a".parse::<Ipv6Addr>()?);
    Ok(())
}

//! Pods ask DNS for the mesh's services and are told their addresses, whichever server they ask: it need not know them.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod names {
    pub(crate) mod dig;
    pub(crate) mod dnsmasq;
    pub(crate) mod libc;
    pub(crate) mod scene;
    pub(crate) mod wire;
}

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use names::{
    dig::{Dug, dig},
    libc::{Library, Lookup, with_resolv_conf},
    scene::{SEARCH, Scene, database},
    wire,
};
use weft_tests::with_world;

const WEB: &str = "web.demo.svc.cluster.local";

#[test]
fn a_service_has_its_virtual_addresses_and_the_server_is_not_asked() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        for server in scene.servers() {
            for how in ["", "+tcp"] {
                for (record_type, expect) in [("A", "10.96.0.10"), ("AAAA", "fd00:96::10")] {
                    let dug = dig(&scene.client, server, &format!("{how} {WEB} {record_type}"))?;
                    let record = format!("{WEB}. 30 IN {record_type} {expect}");
                    ensure!(dug.status == "NOERROR" && dug.answer == [record], "{}", dug.text);
                    ensure!(
                        dug.has("aa") && dug.has("ra") && dug.has("rd") && !dug.has("tc"),
                        "{}",
                        dug.text
                    );
                }
            }
        }
        let any = dig(&scene.client, scene.servers()[0], &format!("{WEB} ANY +notcp"))?;
        ensure!(
            any.records("A") == ["10.96.0.10"] && any.records("AAAA") == ["fd00:96::10"],
            "{}",
            any.text
        );
        // Whatever the case, and it is repeated as it was asked.
        let mixed = dig(&scene.client, scene.servers()[0], "Web.DEMO.svc.cluster.LOCAL A")?;
        ensure!(
            mixed.answer == ["Web.DEMO.svc.cluster.LOCAL. 30 IN A 10.96.0.10"],
            "{}",
            mixed.text
        );
        ensure!(
            scene.dnsmasq.queries().is_empty(),
            "{:?}",
            scene.dnsmasq.queries()
        );
        let labels = [
            ("request_query_type", "a"),
            ("source_canonical_service", "client"),
            ("source_canonical_revision", "latest"),
        ];
        let metrics = scene.agent.metrics()?;
        for (protocol, count) in [("udp", 3.0), ("tcp", 2.0)] {
            let labels = [&labels[..], &[("request_protocol", protocol)]].concat();
            let counted = metrics.sum("istio_dns_requests_total", &labels);
            ensure!(counted == count, "{counted} queries over {protocol}");
        }
        ensure!(
            metrics.sum("istio_dns_upstream_requests_total", &[]) == 0.0,
            "some were passed on"
        );
        Ok(())
    });
}

/// NOERROR without records, and with what makes it one that may be kept.
fn ensure_no_data(dug: &Dug, zone: &str) -> Result<()> {
    let soa = format!("{zone}. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5");
    ensure!(
        dug.status == "NOERROR" && dug.records("A").is_empty() && dug.records("AAAA").is_empty(),
        "{}",
        dug.text
    );
    ensure!(dug.authority == [soa], "{}", dug.text);
    Ok(())
}

#[test]
fn the_family_that_a_service_has_not_is_no_data_with_an_soa() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        for (name, has, record, has_not) in [
            ("four.demo.svc.cluster.local", "A", "10.96.0.4", "AAAA"),
            ("six.demo.svc.cluster.local", "AAAA", "fd00:96::6", "A"),
        ] {
            let dug = dig(&scene.client, server, &format!("{name} {has}"))?;
            ensure!(
                dug.records(has) == [record] && dug.authority.is_empty(),
                "{}",
                dug.text
            );
            for how in ["", "+tcp"] {
                ensure_no_data(
                    &dig(&scene.client, server, &format!("{how} {name} {has_not}"))?,
                    name,
                )?;
            }
        }
        // Both at once, as programs ask: the one address, and no error.
        let conf = format!("nameserver {server}\n{SEARCH}");
        for library in [Library::Glibc, Library::Musl] {
            let lookup = Lookup::build(world, library)?;
            let found = lookup.ask(world, &scene.client, &conf, "four.demo.svc.cluster.local")?;
            ensure!(found == ["10.96.0.4"], "{library:?}: {found:?}");
            let found = lookup.ask(world, &scene.client, &conf, "six")?;
            ensure!(found == ["fd00:96::6"], "{library:?}: {found:?}");
        }
        ensure!(
            scene.dnsmasq.queries().is_empty(),
            "{:?}",
            scene.dnsmasq.queries()
        );
        Ok(())
    });
}

#[test]
fn a_headless_service_has_its_healthy_pods_each_first_in_turn() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        let db = "db.demo.svc.cluster.local";
        ensure_no_data(&dig(&scene.client, server, &format!("{db} A"))?, db)?;
        world.mesh_mut().workloads = vec![database(1, true), database(2, true), database(3, false)];
        world.apply()?;
        let mut first = BTreeSet::new();
        for _ in 0..2 {
            let dug = dig(&scene.client, server, &format!("{db} A"))?;
            ensure!(dug.records("A") == ["10.244.9.1", "10.244.9.2"], "{}", dug.text);
            first.extend(dug.answer.first().cloned());
        }
        ensure!(first.len() == 2, "always the same one first: {first:?}");
        let dug = dig(&scene.client, server, &format!("{db} AAAA"))?;
        ensure!(
            dug.records("AAAA") == ["fd00:244:9::1", "fd00:244:9::2"],
            "{}",
            dug.text
        );
        world.mesh_mut().workloads = vec![database(1, false), database(2, true), database(3, true)];
        world.apply()?;
        let dug = dig(&scene.client, server, &format!("+tcp {db} A"))?;
        ensure!(dug.records("A") == ["10.244.9.2", "10.244.9.3"], "{}", dug.text);
        Ok(())
    });
}

#[test]
fn the_longest_wildcard_that_fits_answers() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        for (name, address) in [
            ("api.example.com", "10.96.1.1"),
            ("www.example.com", "10.96.1.2"),
            ("a.b.example.com", "10.96.1.2"),
            ("a.eu.example.com", "10.96.1.3"),
        ] {
            let dug = dig(&scene.client, server, &format!("{name} A"))?;
            ensure!(
                dug.answer == [format!("{name}. 30 IN A {address}")],
                "{}",
                dug.text
            );
        }
        ensure_no_data(
            &dig(&scene.client, server, "a.eu.example.com AAAA")?,
            "eu.example.com",
        )?;
        ensure!(
            scene.dnsmasq.queries().is_empty(),
            "{:?}",
            scene.dnsmasq.queries()
        );
        // The zone itself is not below itself: its own server's.
        let dug = dig(&scene.client, server, "example.com A")?;
        ensure!(
            dug.status == "REFUSED" && scene.dnsmasq.queries().len() == 1,
            "{}",
            dug.text
        );
        Ok(())
    });
}

#[test]
fn search_domains_lead_to_services_and_other_hosts_of_the_mesh() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        for domain in ["demo.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
            let dug = dig(&scene.client, server, &format!("api.example.com.{domain} A"))?;
            let chain = [
                format!("api.example.com.{domain}. 30 IN CNAME api.example.com."),
                "api.example.com. 30 IN A 10.96.1.1".to_owned(),
            ];
            ensure!(dug.answer == chain, "{}", dug.text);
            let dug = dig(&scene.client, server, &format!("api.example.com.{domain} AAAA"))?;
            ensure!(dug.answer == chain[..1], "{}", dug.text);
            ensure_no_data(&dug, "api.example.com")?;
        }
        // Another namespace's search domain is none of ours: there the name is the server's to know.
        let dug = dig(&scene.client, server, "api.example.com.shop.svc.cluster.local A")?;
        ensure!(dug.status == "NXDOMAIN", "{}", dug.text);

        let conf = format!("nameserver {server}\n{SEARCH}");
        for library in [Library::Glibc, Library::Musl] {
            let lookup = Lookup::build(world, library)?;
            for (name, expect) in [
                ("web", &["10.96.0.10", "fd00:96::10"][..]),
                ("web.demo", &["10.96.0.10", "fd00:96::10"]),
                ("web.demo.svc", &["10.96.0.10", "fd00:96::10"]),
                (WEB, &["10.96.0.10", "fd00:96::10"]),
                ("api.example.com", &["10.96.1.1"]),
                ("www.example.com", &["10.96.1.2"]),
                ("host.outside.test", &["192.0.2.1", "2001:db8::1"]),
                ("alias.outside.test", &["192.0.2.1", "2001:db8::1"]),
                ("nobody.outside.test", &["no such name"]),
            ] {
                let found = lookup.ask(world, &scene.client, &conf, name)?;
                ensure!(found == expect, "{library:?}: {name}: {found:?}");
            }
        }
        let hosts = with_resolv_conf(world, &scene.client, &conf, &["getent", "ahostsv4", "web"])?;
        ensure!(hosts.starts_with("10.96.0.10 "), "{hosts}");
        Ok(())
    });
}

#[test]
fn other_records_of_a_mesh_host_are_its_servers_but_never_that_it_does_not_exist() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        let dug = dig(&scene.client, server, &format!("{WEB} SRV"))?;
        ensure!(
            dug.records("SRV") == ["0 0 8080 web-1.outside.test."],
            "{}",
            dug.text
        );
        // The server knows no such name, which a cache would believe of the addresses too.
        ensure_no_data(
            &dig(&scene.client, server, "four.demo.svc.cluster.local TXT")?,
            "four.demo.svc.cluster.local",
        )?;
        let asked = scene.dnsmasq.queries().len();
        ensure!(asked == 2, "{:?}", scene.dnsmasq.queries());
        // Their hints are addresses, and those are the mesh's to say.
        for record_type in ["HTTPS", "SVCB"] {
            ensure_no_data(&dig(&scene.client, server, &format!("{WEB} {record_type}"))?, WEB)?;
        }
        ensure!(
            scene.dnsmasq.queries().len() == asked,
            "{:?}",
            scene.dnsmasq.queries()
        );
        Ok(())
    });
}

#[test]
fn an_answer_that_the_client_cannot_take_is_truncated_and_whole_over_tcp() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.servers()[0];
        world.mesh_mut().workloads = (1..=100).map(|number| database(number, true)).collect();
        world.apply()?;
        let db = "db.demo.svc.cluster.local";
        let count = |args: &str| {
            let dug = dig(&scene.client, server, &format!("{db} A {args}"))?;
            anyhow::Ok((dug.records("A").len(), dug.has("tc")))
        };
        // Each record has 16 bytes; the header and the question have 43, EDNS 11.
        ensure!(
            count("+noedns +ignore")? == ((512 - 43) / 16, true),
            "{:?}",
            count("+noedns +ignore")
        );
        ensure!(
            count("+bufsize=1232 +ignore")? == ((1232 - 54) / 16, true),
            "{:?}",
            count("+bufsize=1232 +ignore")
        );
        ensure!(
            count("+bufsize=4096 +ignore")? == (100, false),
            "{:?}",
            count("+bufsize=4096 +ignore")
        );
        ensure!(
            count("+noedns")? == (100, false),
            "dig asked again over TCP, and got {:?}",
            count("+noedns")
        );
        ensure!(count("+tcp +noedns")? == (100, false), "{:?}", count("+tcp"));
        let conf = format!("nameserver {server}\n{SEARCH}");
        // musl before 1.2.4 does not ask again over TCP: it has what fits into 512 bytes, of A and of AAAA.
        for (library, expect) in [
            (Library::Glibc, 200),
            (Library::Musl, (512 - 43) / 16 + (512 - 43) / 28),
        ] {
            let lookup = Lookup::build(world, library)?;
            let found = lookup.ask(world, &scene.client, &conf, "db")?;
            ensure!(found.len() >= expect, "{library:?}: {} addresses", found.len());
        }
        Ok(())
    });
}

#[test]
fn a_malformed_query_is_a_format_error_and_noise_is_not_answered() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.dns.addr(53);
        let socket = scene.client.udp(scene.client.addr(0))?;
        let good = wire::query(7, WEB, wire::A);
        let two_questions = [&[0, 7, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0], &good[12..], &good[12..]].concat();
        let no_question = vec![0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let cut = good[..20].to_vec();
        let mut two_opts = good.clone();
        two_opts[11] = 2;
        two_opts.extend([[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]; 2].concat());
        let mut tcp = scene.client.connect(server)?;
        for malformed in [two_questions, no_question, cut, two_opts] {
            let (answer, from) = wire::exchange(&socket, server, &malformed)?;
            let seen = wire::seen(&answer)?;
            ensure!(
                from == server && seen.id == 7 && seen.is_response && seen.rcode == 1,
                "{seen:?}"
            );
            wire::write_frame(&mut tcp, &malformed)?;
            let seen = wire::seen(&wire::read_frame(&mut tcp)?)?;
            ensure!(seen.id == 7 && seen.is_response && seen.rcode == 1, "{seen:?}");
        }
        // A response, and what is not even a header: the next answer is to the next question.
        for noise in [
            wire::response(&good, 0, Some([192, 0, 2, 9])),
            vec![1, 2, 3],
            Vec::new(),
        ] {
            socket.send_to(&noise, server)?;
        }
        let (answer, _) = wire::exchange(&socket, server, &wire::query(8, WEB, wire::A))?;
        let seen = wire::seen(&answer)?;
        ensure!(
            seen.id == 8 && seen.rcode == 0 && seen.tail == [10, 96, 0, 10],
            "{seen:?}"
        );
        // EDNS of a later version.
        let dug = dig(&scene.client, server.ip(), &format!("{WEB} A +edns=1 +noednsneg"))?;
        ensure!(dug.status == "BADVERS", "{}", dug.text);
        ensure!(
            scene.dnsmasq.queries().is_empty(),
            "{:?}",
            scene.dnsmasq.queries()
        );
        Ok(())
    });
}

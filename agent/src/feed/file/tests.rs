//! What mesh files mean, and what is said about those that mean nothing. (`watch` has tests of its own.)

use std::path::Path;

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::mesh::{
    Action, IpFamilies, LoadBalancing, MtlsMode, Scope, StringMatch, TunnelProtocol, Workload, WorkloadType,
};

/// Every section, every field.
const WHOLE: &str = r#"
trustDomain: example.org
cluster: blue
rootNamespace: root
clusterCidrs: [10.244.0.0/16, "fd00:96::/112"]
workloads:
- name: curl-1
  namespace: demo
  serviceAccount: curl
  node: node-a
  addresses: [10.244.1.10, "fd00:244:1::10"]
  tunnelProtocol: HBONE
  netns: /run/netns/curl-1
  labels: {app: curl, version: v2}
- name: web-1
  namespace: demo
  node: node-b
  addresses: ["::ffff:10.244.2.10"]
  tunnelProtocol: HBONE
  netns: /run/netns/web-1
  dnsCapture: false
  labels: {app: web}
  workloadName: web
  workloadType: deployment
  canonicalName: www
  canonicalRevision: v1
  region: eu
  zone: eu-1
  subzone: rack-7
  healthy: false
  waypoint: {address: 10.96.0.99}
- {name: node-exporter, namespace: demo, node: node-a, addresses: [192.168.77.1], hostNetwork: true, labels: {app: web}}
- {name: gate-1, namespace: demo, addresses: [10.244.3.1], labels: {gate: "yes"}}
services:
- name: web
  namespace: demo
  vips: [10.96.0.10, "fd00:96::10"]
  ports: [{port: 80, targetPort: 8080}, {port: 443}]
  selector: {app: web}
  waypoint: {service: demo/gate, port: 15009}
- {name: gate, namespace: demo, vips: [10.96.0.99], selector: {gate: "yes"}}
- {name: listed, namespace: demo, hostname: listed.example.org, endpoints: [demo/web-1, demo/curl-1],
   ports: [{port: 1}], subjectAltNames: [example.org/ns/demo/sa/x]}
- {name: none, namespace: demo, endpoints: []}
- {name: wild, namespace: demo, hostname: "*.wild.example.org", endpoints: []}
policies:
- {name: everywhere, namespace: root, action: DENY, rules: [{}]}
- {name: here, namespace: demo}
- name: picked
  namespace: demo
  action: ALLOW
  selector: {app: web}
  dryRun: true
  rules:
  - from:
    - {principals: [spiffe://example.org/ns/demo/sa/curl, "example.org/ns/demo/*"], notNamespaces: [other]}
    - {ipBlocks: [10.0.0.1, 10.244.3.3/16], notPrincipals: ["*"], namespaces: ["*o"], notIpBlocks: ["::1/128"]}
    to: [{ports: [8080]}, {notPorts: [9090]}]
    when:
    - {key: source.ip, values: [10.0.0.0/8]}
    - {key: destination.port, notValues: [22]}
    - {key: source.namespace, values: [demo]}
    - {key: source.principal, notValues: ["*/sa/x"]}
    - {key: destination.ip, values: [10.244.2.10]}
- {name: from-root, namespace: root, selector: {app: curl}, rules: []}
peerAuthentications:
- {namespace: root, mode: STRICT}
- {name: demo, namespace: demo, mode: UNSET}
- {name: curl, namespace: demo, selector: {app: curl}, mode: PERMISSIVE, portLevelMtls: {8080: STRICT, 9090: UNSET}}
"#;

fn parsed(text: &str) -> MeshFile {
    parse(text, Path::new("mesh.yaml"), "node-a").unwrap_or_else(|err| panic!("{err}"))
}

fn workload<'a>(file: &'a MeshFile, name: &str) -> &'a Workload {
    file.mesh
        .workloads()
        .find(|workload| &*workload.name == name)
        .unwrap()
}

#[test]
fn workloads() {
    let file = parsed(WHOLE);
    let curl = workload(&file, "curl-1");
    assert_eq!(curl.uid.as_ref(), "blue//Pod/demo/curl-1");
    assert_eq!(curl.identity.as_str(), "spiffe://example.org/ns/demo/sa/curl");
    assert_eq!(
        curl.addresses,
        ["10.244.1.10", "fd00:244:1::10"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
    assert_eq!(
        (curl.tunnel_protocol, curl.workload_type),
        (TunnelProtocol::Hbone, WorkloadType::Pod)
    );
    let telemetry = [
        &curl.workload_name,
        &curl.canonical_name,
        &curl.canonical_revision,
        &curl.cluster,
        &curl.node,
    ];
    assert_eq!(
        telemetry.map(|name| &**name),
        ["curl-1", "curl", "v2", "blue", "node-a"]
    );
    assert!(curl.healthy && !curl.host_network && curl.waypoint.is_none());

    let web = workload(&file, "web-1");
    assert_eq!(web.identity.service_account(), "default");
    assert_eq!(web.addresses, ["10.244.2.10".parse::<IpAddr>().unwrap()]);
    let telemetry = [
        &web.workload_name,
        &web.canonical_name,
        &web.canonical_revision,
        &web.locality.subzone,
    ];
    assert_eq!(telemetry.map(|name| &**name), ["web", "www", "v1", "rack-7"]);
    assert_eq!(web.workload_type, WorkloadType::Deployment);
    assert!(!web.healthy && web.waypoint.is_some());
    assert!(workload(&file, "node-exporter").host_network);
    assert_eq!(workload(&file, "gate-1").tunnel_protocol, TunnelProtocol::None);
}

#[test]
fn local_pods() {
    let local = |node| parse(WHOLE, Path::new("mesh.yaml"), node).unwrap().local_pods;
    let pod = |name: &str| LocalPod {
        uid: format!("blue//Pod/demo/{name}").into(),
        netns: NetnsSource::Path(Path::new("/run/netns").join(name)),
        addresses: Vec::new(),
        dns_capture: (name == "web-1").then_some(false),
    };
    assert_eq!(local("node-a"), [pod("curl-1")]);
    assert_eq!(local("node-b"), [pod("web-1")]);
    assert_eq!(local("node-c"), []);
}

#[test]
fn services() {
    let file = parsed(WHOLE);
    let shown = |vip: &str| {
        let service = file.mesh.service_at(vip.parse().unwrap()).unwrap();
        let ports = service
            .ports
            .iter()
            .map(|port| format!("{}->{}", port.service_port, port.target_port));
        format!(
            "{} {} {:?}",
            service.key,
            ports.collect::<Vec<_>>().join(","),
            service.waypoint
        )
    };
    let web = "demo/web.demo.svc.cluster.local 80->8080,443->443 Some(GatewayAddress { destination: \
               Service(ServiceKey { namespace: \"demo\", hostname: \"gate.demo.svc.cluster.local\" }), \
               hbone_port: 15009 })";
    assert_eq!(shown("10.96.0.10"), web);
    assert_eq!(shown("fd00:96::10"), web);
    assert_eq!(shown("10.96.0.99"), "demo/gate.demo.svc.cluster.local  None");
    let backs = |name| {
        let services = workload(&file, name).services.keys();
        services
            .map(|key| key.hostname.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(backs("web-1"), "listed.example.org web.demo.svc.cluster.local");
    assert_eq!(backs("curl-1"), "listed.example.org");
    assert_eq!(backs("node-exporter"), "web.demo.svc.cluster.local");
    assert_eq!(backs("gate-1"), "gate.demo.svc.cluster.local");
    let listed = file
        .mesh
        .services()
        .find(|service| &*service.name == "listed")
        .unwrap();
    assert_eq!(listed.subject_alt_names[0].service_account(), "x");
}

#[test]
fn hostnames() {
    let hostnames = |text: &str| {
        let file = parsed(text);
        let mut hostnames: Vec<_> = file.mesh.services().map(|s| s.key.hostname.to_string()).collect();
        hostnames.sort();
        hostnames.join(" ")
    };
    let services = "services:\n- {name: s, namespace: b, endpoints: []}\n";
    assert_eq!(hostnames(services), "s.b.svc.cluster.local");
    let of_domain = format!("clusterDomain: k8s.example\n{services}");
    assert_eq!(hostnames(&of_domain), "s.b.svc.k8s.example");
    let wild = format!("{services}- {{name: w, namespace: b, hostname: \"*.example.com\", endpoints: []}}\n");
    assert_eq!(hostnames(&wild), "*.example.com s.b.svc.cluster.local");
    for hostname in ["*", "*.", "a.*.com", "*example.com", "*.*.com", "A.com"] {
        let text =
            format!("services:\n- {{name: w, namespace: b, hostname: \"{hostname}\", endpoints: []}}\n");
        let error = parse(&text, Path::new("mesh.yaml"), "node-a")
            .unwrap_err()
            .to_string();
        assert!(error.contains("services[0].hostname"), "{hostname}: {error}");
    }
}

#[test]
fn policies() {
    let file = parsed(WHOLE);
    let named = |name: &str| {
        file.mesh
            .policies()
            .find(|policy| &*policy.key.name == name)
            .unwrap()
    };
    let (everywhere, here) = (named("everywhere"), named("here"));
    assert_eq!(
        (everywhere.scope, everywhere.action, everywhere.rules.len()),
        (Scope::Mesh, Action::Deny, 1)
    );
    assert!(everywhere.rules[0].clauses.is_empty());
    assert_eq!(
        (here.scope, here.action, here.rules.len()),
        (Scope::Namespace, Action::Allow, 0)
    );
    let of = |name| {
        workload(&file, name)
            .policies
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(of("curl-1"), "root/from-root");
    // Whom a waypoint has let through, it lets in.
    let web = of("web-1");
    assert!(web.starts_with("demo/picked demo/weft_from_waypoint_"), "{web}");
    assert_eq!(of("gate-1"), "");

    let picked = named("picked");
    assert!(picked.dry_run && picked.scope == Scope::Selector);
    let clauses = &picked.rules[0].clauses;
    assert_eq!(
        clauses
            .iter()
            .map(|clause| clause.matches.len())
            .collect::<Vec<_>>(),
        [2, 2, 1, 1, 1, 1, 1]
    );
    let (first, second) = (&clauses[0].matches[0], &clauses[0].matches[1]);
    let (exact, prefix) = ("example.org/ns/demo/sa/curl", "example.org/ns/demo/");
    assert_eq!(
        first.principals,
        [
            StringMatch::Exact(exact.into()),
            StringMatch::Prefix(prefix.into())
        ]
    );
    assert_eq!(first.not_namespaces, [StringMatch::Exact("other".into())]);
    assert_eq!(
        second
            .source_ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.1/32", "10.244.0.0/16"]
    );
    assert_eq!(second.not_source_ips.len(), 1);
    assert_eq!(second.not_principals, [StringMatch::Presence]);
    assert_eq!(second.namespaces, [StringMatch::Suffix("o".into())]);
    assert_eq!(clauses[1].matches[0].destination_ports, [8080]);
    assert_eq!(clauses[1].matches[1].not_destination_ports, [9090]);
    assert_eq!(clauses[2].matches[0].source_ips.len(), 1);
    assert_eq!(clauses[3].matches[0].not_destination_ports, [22]);
    assert_eq!(clauses[4].matches[0].namespaces.len(), 1);
    assert_eq!(clauses[5].matches[0].not_principals.len(), 1);
    assert_eq!(clauses[6].matches[0].destination_ips.len(), 1);
}

#[test]
fn peer_authentications() {
    let file = parsed(WHOLE);
    let mode = |name, port| file.mesh.mtls_mode(workload(&file, name), port);
    assert_eq!(mode("web-1", 1), MtlsMode::Strict);
    assert_eq!(mode("curl-1", 1), MtlsMode::Permissive);
    assert_eq!(mode("curl-1", 8080), MtlsMode::Strict);
    assert_eq!(mode("curl-1", 9090), MtlsMode::Permissive);
    let by = |name, port| {
        let setting = file.mesh.mtls_setting(workload(&file, name), port);
        setting.unwrap().to_string()
    };
    assert_eq!(by("web-1", 1), "peer authentication root/default (mesh)");
    assert_eq!(by("curl-1", 8080), "peer authentication demo/curl (selector)");
}

#[test]
fn defaults_and_json() {
    let file = parsed(
        r#"{"workloads": [{"name": "a", "namespace": "b", "addresses": ["10.0.0.1"], "labels": {}}]}"#,
    );
    assert_eq!(file.mesh.trust_domain().as_str(), "cluster.local");
    assert_eq!(
        (&**file.mesh.cluster(), &**file.mesh.root_namespace()),
        ("Kubernetes", "istio-system")
    );
    let pod = workload(&file, "a");
    assert_eq!(pod.identity.as_str(), "spiffe://cluster.local/ns/b/sa/default");
    assert_eq!((&*pod.canonical_name, &*pod.canonical_revision), ("a", "latest"));
    // What a program writes that has nothing to write.
    for text in [
        "workloads: []",
        "workloads:",
        "{}",
        "---\nworkloads:\n...\n",
        "services: null",
    ] {
        assert_eq!(parsed(text).mesh.workloads().len(), 0, "{text}");
    }
    // Names that YAML would like to read as something else.
    let odd = parsed("workloads:\n- {name: 1.10, namespace: 0x1, node: no, canonicalRevision: 1e3}");
    let odd = workload(&odd, "1.10");
    assert_eq!(
        [&odd.namespace, &odd.node, &odd.canonical_revision].map(|text| &**text),
        ["0x1", "no", "1e3"]
    );
}

#[test]
fn how_connections_inside_a_node_go() {
    let mesh = parsed(
        "sameNode: tunnel\nnamespaces: [{name: demo, sameNode: kernel}, {name: other}]\nworkloads:\n\
         - {name: a, namespace: demo}\n- {name: b, namespace: other}\n- {name: c, namespace: demo, sameNode: tunnel}",
    );
    let of = |name| mesh.mesh.same_node(workload(&mesh, name));
    use crate::mesh::SameNode::{Kernel, Tunnel};
    assert_eq!([of("a"), of("b"), of("c")], [Kernel, Tunnel, Tunnel]);
    check(
        "namespaces: [{name: demo, sameNode: fast}, {name: demo}, {sameNode: tunnel}]",
        &[
            "`fast` namespaces[0].sameNode: \"fast\" is not known here: write kernel or tunnel",
            "`{name: demo` namespaces[1]: there are two namespaces demo: remove one",
            "`{sameNode: tunnel` namespaces[2].name: is missing: add it",
        ],
    );
}

/// The problems of a file: what stands at the place that is named, the field, and what is said.
fn check(text: &str, expect: &[&str]) {
    let problems = parse(text, Path::new("m"), "node-a").map_or_else(|err| err.problems, |_| Vec::new());
    let shown = |problem: &Problem| {
        let line = text
            .lines()
            .nth(problem.line.saturating_sub(1) as usize)
            .unwrap_or_default();
        let at = line
            .chars()
            .skip(problem.column.saturating_sub(1) as usize)
            .collect::<String>();
        let value = at
            .split([',', ']', '}'])
            .next()
            .filter(|_| problem.line > 0)
            .unwrap_or_default();
        format!("`{value}` {}: {}", problem.field, problem.message)
    };
    assert_eq!(problems.iter().map(shown).collect::<Vec<_>>(), expect, "{text}");
}

#[test]
fn a_problem_as_people_see_it() {
    let text = "workloads:\n- name: a\n  namespace: b\n  addresses: [10.0.0.1, 10.1.2]\n";
    let err = parse(text, Path::new("dir/mesh.yaml"), "node-a").unwrap_err();
    let expect = "dir/mesh.yaml:4:25: workloads[0].addresses[1]: \"10.1.2\" is not an IP address: write four \
                  numbers, or an IPv6 address";
    assert_eq!(err.to_string(), expect);
}

/// As [`check`], for the workload `{name: a, namespace: b, ...}`.
fn check_workload(fields: &str, expect: &[&str]) {
    check(
        &format!("workloads:\n- {{name: a, namespace: b, {fields}}}"),
        expect,
    );
}

/// As [`check`], for a service, beside the workload b/a with the label app=a.
fn check_service(fields: &str, expect: &[&str]) {
    check(
        &format!("{POD}services:\n- {{name: s, namespace: b, {fields}}}"),
        expect,
    );
}

/// As [`check`], for a policy, beside the workload b/a with the label app=a.
fn check_policy(fields: &str, expect: &[&str]) {
    check(
        &format!("{POD}policies:\n- {{name: p, namespace: b, {fields}}}"),
        expect,
    );
}

/// Two lines.
const POD: &str = "workloads:\n- {name: a, namespace: b, addresses: [10.0.0.1], labels: {app: a}}\n";

#[test]
fn files_of_another_shape() {
    check(
        "",
        &["`` : is empty: for a mesh without workloads write `workloads: []`"],
    );
    check(
        " \n\n",
        &["`` : is empty: for a mesh without workloads write `workloads: []`"],
    );
    let known = "expected one of trustDomain, cluster, clusterDomain, rootNamespace, clusterCidrs, sameNode, namespaces, workloads, services, policies, \
                 peerAuthentications, manifests";
    check(
        "\nworkload: []",
        &[&format!(
            "`workload: [` workload: unknown field `workload`, {known}"
        )],
    );
    check("workloads: 5", &["`5` workloads: must be a list"]);
    check(
        "workloads: [5]",
        &["`5` workloads[0]: must be a list of fields, `name: value`"],
    );
    check(
        "workloads: [{name: [a]}]",
        &["`[a` workloads[0].name: must be a single value"],
    );
    check(
        "- workloads",
        &["`- workloads` : must be a list of fields, `name: value`"],
    );
    check(
        "cluster: a\ncluster: b",
        &["`cluster: b` cluster: is written twice: remove one of them"],
    );
    check("workloads: [", &["`[` : unclosed bracket '['"]);
    check(
        "cluster: a\n---\ncluster: b",
        &["`cluster: b` : a second document begins here (`---`): write one"],
    );
    check(
        "workloads: [{name: a, namespace: b, healthy: perhaps}]",
        &["`perhaps` workloads[0].healthy: invalid boolean"],
    );
}

#[test]
fn files_that_want_too_much() {
    let refused = |text: &str| parse(text, Path::new("m"), "node-a").unwrap_err().to_string();
    let too_large = "#".repeat(LARGEST_FILE + 1);
    assert_eq!(
        refused(&too_large),
        "m: is larger than 16 MiB, which is the limit"
    );
    // Aliases of aliases, ten times ten times ten; and lists in lists.
    let bomb = |i: usize| format!("  l{}: &l{} [{}]\n", i + 1, i + 1, format!("*l{i}, ").repeat(10));
    let bomb = format!(
        "workloads:\n- labels:\n  l0: &l0 [x]\n{}",
        (0..12).map(bomb).collect::<String>()
    );
    refused(&bomb);
    refused(&format!("workloads: {}", "[".repeat(1 << 20)));
    refused(&format!("workloads: {}", "\n - ".repeat(1 << 10)));
    refused(&format!("a{}: 1", "b".repeat(1 << 20)));
}

#[test]
fn single_values() {
    check(
        "trustDomain: Example",
        &[
            "`Example` trustDomain: `Example` is not a trust domain: use lower-case letters, digits, `.`, `-` and `_`",
        ],
    );
    let network = "is not a network: write an address and a prefix length, for example 10.244.0.0/16";
    check(
        "clusterCidrs: [10.0.0.0/8, 10.0.0.0/33]",
        &[&format!(
            "`10.0.0.0/33` clusterCidrs[1]: \"10.0.0.0/33\" {network}"
        )],
    );
    check_workload(
        "addresses: [10.1.2]",
        &[
            "`10.1.2` workloads[0].addresses[0]: \"10.1.2\" is not an IP address: write four numbers, or an IPv6 address",
        ],
    );
    check_workload(
        "addresses: [127.0.0.1]",
        &[
            "`127.0.0.1` workloads[0].addresses[0]: 127.0.0.1 is an address that no pod and no service can have",
        ],
    );
    check_workload(
        "tunnelProtocol: hbone",
        &["`hbone` workloads[0].tunnelProtocol: \"hbone\" is not known here: write HBONE or NONE"],
    );
    let name = "use at most 253 lower-case letters, digits, `-`, `.`, with a letter or a digit at both ends";
    check_workload(
        "serviceAccount: a/b",
        &[&format!(
            "`a/b` workloads[0].serviceAccount: \"a/b\" is not a name: {name}"
        )],
    );
    check_workload(
        "zone: \"a,b\"",
        &[
            "`\"a` workloads[0].zone: \"a,b\" cannot be used here: use at most 253 letters, digits, `.`, `-`, `_`, `/`, `:`",
        ],
    );
    let long = "x".repeat(300);
    let shown = &long[..64];
    check_workload(
        &format!("node: {long}"),
        &[&format!(
            "`{long}` workloads[0].node: \"{shown}\"... is not a name: {name}"
        )],
    );
    check_service(
        "endpoints: [], ports: [{port: 0}, {port: 65536}, {port: http}]",
        &[
            "`0` services[0].ports[0].port: \"0\" is not a port: write a number from 1 to 65535",
            "`65536` services[0].ports[1].port: \"65536\" is not a port: write a number from 1 to 65535",
            "`http` services[0].ports[2].port: \"http\" is not a port: write a number from 1 to 65535",
        ],
    );
}

#[test]
fn missing_values() {
    check(
        "workloads:\n- {node: x}\nservices:\n- {}\npolicies:\n- {}\npeerAuthentications:\n- {}",
        &[
            "`{node: x` workloads[0].name: is missing: add it",
            "`{node: x` workloads[0].namespace: is missing: add it",
            "`{` services[0].name: is missing: add it",
            "`{` services[0].namespace: is missing: add it",
            "`{` policies[0].name: is missing: add it",
            "`{` policies[0].namespace: is missing: add it",
            "`{` peerAuthentications[0].namespace: is missing: add it",
        ],
    );
}

#[test]
fn captured_pods() {
    let at = "`/x` workloads[0].netns:";
    check_workload(
        "netns: x, node: n, tunnelProtocol: HBONE",
        &["`x` workloads[0].netns: \"x\" is not an absolute path: write, for example, /run/netns/curl-1"],
    );
    check_workload(
        "netns: /x, node: n",
        &[&format!(
            "{at} a pod that is captured is in the mesh: add tunnelProtocol: HBONE, or remove netns"
        )],
    );
    check_workload(
        "netns: /x, tunnelProtocol: HBONE",
        &[&format!("{at} a pod that is captured is on a node: add node")],
    );
    check_workload(
        "netns: /x, hostNetwork: true",
        &[&format!(
            "{at} a pod with hostNetwork is never captured: remove netns"
        )],
    );
    check_workload(
        "hostNetwork: true, tunnelProtocol: HBONE",
        &["`HBONE` workloads[0].tunnelProtocol: a pod with hostNetwork is never in the mesh: write NONE"],
    );
    let pod = |name: &str, node: &str| {
        format!("- {{name: {name}, namespace: b, node: {node}, netns: /x, tunnelProtocol: HBONE}}\n")
    };
    check(
        &format!("workloads:\n{}{}", pod("one", "n"), pod("two", "m")),
        &[],
    );
    check(
        &format!("workloads:\n{}{}", pod("one", "n"), pod("two", "n")),
        &["`/x` workloads[1].netns: is the network namespace of b/one as well: remove it from one"],
    );
}

#[test]
fn twins() {
    check(
        &format!("{POD}- {{name: a, namespace: b}}"),
        &["`{name: a` workloads[1]: there are two workloads b/a: rename or remove one"],
    );
    check(
        &format!("{POD}- {{name: c, namespace: b, addresses: [10.0.0.2, \"::ffff:10.0.0.1\"]}}"),
        &[
            "`\"::ffff:10.0.0.1\"` workloads[1].addresses[1]: 10.0.0.1 is an address of workloads[0] as well: remove one of them",
        ],
    );
    let node = "{namespace: b, addresses: [192.168.0.1], hostNetwork: true, name:";
    check(&format!("workloads:\n- {node} a}}\n- {node} c}}"), &[]);
    check_service(
        "endpoints: [], vips: [10.0.0.1]",
        &[
            "`10.0.0.1` services[0].vips[0]: 10.0.0.1 is an address of workloads[0] as well: remove one of them",
        ],
    );
    check_service(
        "endpoints: [], ports: [{port: 80}, {port: 80}]",
        &["`{port: 80` services[0].ports[1]: the service has port 80 twice"],
    );
    check_service(
        "endpoints: []}\n- {name: t, namespace: b, hostname: s.b.svc.cluster.local, endpoints: []",
        &["`{name: t` services[1]: there are two services b/s.b.svc.cluster.local: rename or remove one"],
    );
    check_policy(
        "rules: []}\n- {name: p, namespace: b",
        &["`{name: p` policies[1]: there are two policies b/p: rename or remove one"],
    );
    let modes = "peerAuthentications:\n";
    for (one, covered) in [
        ("{namespace: istio-system}", "the mesh"),
        ("{namespace: b}", "namespace b"),
        ("{namespace: b, selector: {app: a}}", "workload b/a"),
    ] {
        let value = one.split([',', '}']).next().unwrap();
        check(
            &format!("{POD}{modes}- {one}\n- {one}"),
            &[&format!(
                "`{value}` peerAuthentications[1]: {covered} has two peerAuthentications: remove one"
            )],
        );
    }
}

#[test]
fn references() {
    check_service(
        "endpoints: [b/a, b/nobody, a]",
        &[
            "`a` services[0].endpoints[2]: \"a\" is not a pod: write <namespace>/<name>",
            "`b/nobody` services[0].endpoints[1]: there is no workload b/nobody: write <namespace>/<name> of one",
        ],
    );
    let either = "write either selector or endpoints (`endpoints: []` for a service with none)";
    check_service("vips: []", &[&format!("`{{name: s` services[0]: {either}")]);
    check_service(
        "endpoints: [], selector: {app: a}",
        &[&format!("`{{name: s` services[0]: {either}")],
    );
    check_service(
        "selector: {}",
        &["`{` services[0].selector: selects by no label: name at least one, or remove it"],
    );
    let own = "is one of weft's own ports, which no app can have: choose another (a waypoint's service does not need \
               its HBONE port)";
    check_service(
        "endpoints: [], ports: [{port: 80, targetPort: 15006}, {port: 15008, targetPort: 80}]",
        &[
            &format!("`15006` services[0].ports[0].targetPort: 15006 {own}"),
            &format!("`15008` services[0].ports[1].port: 15008 {own}"),
        ],
    );
    let nowhere = "is neither a service nor the address of a service or a workload of this file";
    check_service(
        "endpoints: [], waypoint: {service: b/gate}",
        &[&format!("`{{service: b/gate` services[0].waypoint: {nowhere}")],
    );
    check_service(
        "endpoints: [], waypoint: {address: 10.0.0.9}",
        &[&format!("`{{address: 10.0.0.9` services[0].waypoint: {nowhere}")],
    );
    check_service("endpoints: [], waypoint: {address: 10.0.0.1}", &[]);
    check_workload(
        "waypoint: {}",
        &["`{` workloads[0].waypoint: write either service: <namespace>/<name> or address: <IP address>"],
    );
}

/// What a service's fields say of its endpoints: scopes, mode, health.
fn balancing(fields: &str) -> String {
    let text = format!("services:\n- {{name: s, namespace: b, endpoints: [], {fields}}}");
    let file = parsed(&text);
    let service = file.mesh.services().next().unwrap();
    let LoadBalancing {
        routing_preference,
        mode,
        health,
    } = &service.load_balancing;
    format!("{routing_preference:?} {mode:?} {health:?}")
}

#[test]
fn endpoint_choice() {
    let close = "[Network, Region, Zone, Subzone] Failover OnlyHealthy";
    for (fields, expect) in [
        ("", "[] Any OnlyHealthy"),
        ("trafficDistribution: PreferClose", close),
        ("trafficDistribution: prefersamezone", close),
        (
            "trafficDistribution: PreferSameNode, internalTrafficPolicy: Cluster",
            "[Network, Region, Zone, Subzone, Node] Failover OnlyHealthy",
        ),
        (
            "internalTrafficPolicy: Local, trafficDistribution: PreferClose, publishNotReadyAddresses: true",
            "[Node] Strict AllowAll",
        ),
        ("publishNotReadyAddresses: false", "[] Any OnlyHealthy"),
        (
            "loadBalancing: {mode: STRICT, routingPreference: [CLUSTER, ZONE], healthPolicy: ALLOW_ALL}",
            "[Cluster, Zone] Strict AllowAll",
        ),
        ("loadBalancing: {mode: PASSTHROUGH}", "[] Passthrough OnlyHealthy"),
        (
            "loadBalancing: {healthPolicy: ONLY_HEALTHY}",
            "[] Any OnlyHealthy",
        ),
    ] {
        assert_eq!(balancing(fields), expect, "{fields}");
    }
}

#[test]
fn endpoint_choices_that_cannot_be_meant() {
    let at = "services[0].loadBalancing";
    check_service(
        "endpoints: [], loadBalancing: {routingPreference: [ZONE]}",
        &[&format!(
            "`{{routingPreference: [ZONE` {at}: has a routingPreference and no mode: add mode: FAILOVER or mode: STRICT"
        )],
    );
    check_service(
        "endpoints: [], loadBalancing: {mode: STRICT}",
        &[&format!(
            "`{{mode: STRICT` {at}: has a mode and no routingPreference: add one, for example [REGION, ZONE]"
        )],
    );
    check_service(
        "endpoints: [], loadBalancing: {mode: PASSTHROUGH, routingPreference: [ZONE]}",
        &[&format!(
            "`{{mode: PASSTHROUGH` {at}: has a routingPreference, which this mode does not ask: remove one of them"
        )],
    );
    check_service(
        "endpoints: [], loadBalancing: {mode: FAILOVER, routingPreference: [ZONE, RACK], healthPolicy: SOME}",
        &[
            &format!(
                "`RACK` {at}.routingPreference[1]: \"RACK\" is not known here: write NETWORK, REGION, ZONE, SUBZONE, NODE \
                 or CLUSTER"
            ),
            &format!("`SOME` {at}.healthPolicy: \"SOME\" is not known here: write ONLY_HEALTHY or ALLOW_ALL"),
        ],
    );
    let either = "write either loadBalancing, or trafficDistribution, internalTrafficPolicy and publishNotReadyAddresses \
                  as a Kubernetes Service has them";
    check_service(
        "endpoints: [], loadBalancing: {}, publishNotReadyAddresses: true",
        &[&format!("`{{` {at}: {either}")],
    );
    check_service(
        "endpoints: [], trafficDistribution: Close, internalTrafficPolicy: local, ipFamilies: IPV4",
        &[
            "`IPV4` services[0].ipFamilies: \"IPV4\" is not known here: write AUTOMATIC, IPV4_ONLY, IPV6_ONLY or DUAL",
            "`Close` services[0].trafficDistribution: \"Close\" is not known here: write PreferClose, PreferSameZone or \
             PreferSameNode",
            "`local` services[0].internalTrafficPolicy: \"local\" is not known here: write Local or Cluster",
        ],
    );
    check_workload(
        "capacity: -1",
        &[
            "`-1` workloads[0].capacity: \"-1\" is not a capacity: write a whole number, 0 for an endpoint that takes \
             nothing new",
        ],
    );
}

#[test]
fn virtual_addresses() {
    let text = "workloads:\n- {name: a, namespace: b, network: blue, capacity: 3, addresses: [10.9.0.7]}\n\
                services:\n- {name: s, namespace: b, endpoints: [b/a], ipFamilies: IPV6_ONLY, \
                vips: [10.96.0.1, 10.96.0.2/32, 10.97.1.2/16, \"fd00:96::/64\"]}\n\
                - {name: t, namespace: b, endpoints: [], vips: [10.97.1.0/24, 10.9.0.0/24]}";
    let file = parsed(text);
    let a = workload(&file, "a");
    assert_eq!((&*a.network, a.capacity), ("blue", 3));
    let at = |address: &str| {
        let service = file.mesh.service_at(address.parse().unwrap());
        service.map(|service| service.name.to_string())
    };
    for (address, expect) in [
        ("10.96.0.1", Some("s")),
        ("10.96.0.2", Some("s")),
        ("10.96.0.3", None),
        ("10.97.2.1", Some("s")),
        ("10.97.1.1", Some("t")),
        ("fd00:96::77", Some("s")),
        ("10.9.0.1", Some("t")),
        ("10.9.0.7", None),
    ] {
        assert_eq!(at(address).as_deref(), expect, "{address}");
    }
    let s = file.mesh.services().find(|it| &*it.name == "s").unwrap();
    assert_eq!(
        (s.vips.len(), s.vip_networks.len(), s.ip_families),
        (2, 2, IpFamilies::Ipv6Only)
    );
    check_service(
        "endpoints: [], vips: [10.96.0.0/16, 10.96.0.0/33, 127.0.0.1, 10.96.7.7/16]",
        &[
            "`10.96.0.0/33` services[0].vips[1]: \"10.96.0.0/33\" is not a network: write an address and a prefix length, \
             for example 10.244.0.0/16",
            "`127.0.0.1` services[0].vips[2]: 127.0.0.1 is an address that no pod and no service can have",
            "`10.96.7.7/16` services[0].vips[3]: 10.96.0.0/16 is a network of services[0] as well: remove one of them",
        ],
    );
}

#[test]
fn policies_that_say_too_little_or_too_much() {
    check_policy(
        "action: CUSTOM",
        &["`CUSTOM` policies[0].action: \"CUSTOM\" is not known here: write ALLOW, DENY or AUDIT"],
    );
    let at = "policies[0].rules[0]";
    check_policy(
        "rules: [{from: []}]",
        &[&format!(
            "`[` {at}.from: is an empty list: name something, or remove it"
        )],
    );
    check_policy(
        "rules: [{from: [{}]}]",
        &[&format!(
            "`{{` {at}.from[0]: says nothing: name something, or remove it"
        )],
    );
    check_policy(
        "rules: [{to: [{ports: []}]}]",
        &[&format!(
            "`[` {at}.to[0].ports: is an empty list: name something, or remove it"
        )],
    );
    check_policy(
        "rules: [{from: [{notIpBlocks: [10.0.0.0/33]}]}]",
        &[&format!(
            "`10.0.0.0/33` {at}.from[0].notIpBlocks[0]: \"10.0.0.0/33\" is not a network: write an address and a prefix \
             length, for example 10.244.0.0/16"
        )],
    );
    let identity = "is no workload's identity: write <trust domain>/ns/<namespace>/sa/<service account>, or a \
                    pattern that starts or ends with `*`";
    check_policy(
        "rules: [{from: [{principals: [b/a]}]}]",
        &[&format!("`b/a` {at}.from[0].principals[0]: \"b/a\" {identity}")],
    );
    let pattern = "is not a pattern: write a whole name, `start*`, `*end` or `*`";
    check_policy(
        "rules: [{from: [{principals: [a*b, '*b*', '', '**']}]}]",
        &[
            &format!("`a*b` {at}.from[0].principals[0]: \"a*b\" {pattern}"),
            &format!("`'*b*'` {at}.from[0].principals[1]: \"*b*\" {pattern}"),
            &format!("`''` {at}.from[0].principals[2]: \"\" {pattern}"),
            &format!("`'**'` {at}.from[0].principals[3]: \"**\" {pattern}"),
        ],
    );
    let keys = "source.ip, source.namespace, source.serviceAccount, source.principal, source.trustDomain, \
                destination.ip, destination.port or an attribute of requests, such as request.headers[x]";
    check_policy(
        "rules: [{when: [{key: request.path, values: [x]}]}]",
        &[&format!(
            "`request.path` {at}.when[0].key: \"request.path\" is not known here: write {keys}"
        )],
    );
    check_policy(
        "rules: [{when: [{key: source.ip}]}]",
        &[&format!(
            "`{{key: source.ip` {at}.when[0]: says nothing: name something, or remove it"
        )],
    );
    check_policy(
        "rules: [{when: [{key: request.auth.principal}]}]",
        &[&format!(
            "`{{key: request.auth.principal` {at}.when[0]: says nothing: name something, or remove it"
        )],
    );
    check_policy(
        "rules: [{to: [{paths: [], methods: ['']}]}]",
        &[
            &format!(
                "`''` {at}.to[0].methods[0]: \"\" is not a pattern: write a whole name, `start*`, `*end` or `*`"
            ),
            &format!("`[` {at}.to[0].paths: is an empty list: name something, or remove it"),
        ],
    );
    let name = |name: &str, longest, dot: &str| {
        format!(
            "\"{name}\" is not a name: use at most {longest} lower-case letters, digits, `-`{dot}, with a letter or a \
             digit at both ends"
        )
    };
    check_policy(
        "rules: [{from: [{serviceAccounts: [x/, '*', b/c/d]}]}]",
        &[
            &format!("`x/` {at}.from[0].serviceAccounts[0]: {}", name("", 253, ", `.`")),
            &format!(
                "`'*'` {at}.from[0].serviceAccounts[1]: {}",
                name("*", 253, ", `.`")
            ),
            &format!(
                "`b/c/d` {at}.from[0].serviceAccounts[2]: {}",
                name("c/d", 253, ", `.`")
            ),
        ],
    );
    check_policy(
        "rules: [{from: [{trustDomains: [a*b, A]}]}]",
        &[
            &format!("`a*b` {at}.from[0].trustDomains[0]: \"a*b\" {pattern}"),
            &format!(
                "`A` {at}.from[0].trustDomains[1]: `A` is not a trust domain: use lower-case letters, digits, `.`, `-` and `_`"
            ),
        ],
    );
}

/// The warnings of a good file.
fn warnings(text: &str) -> Vec<String> {
    parsed(text).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn fields_of_requests_are_noted_as_unseen_with_a_warning() {
    let text = |action: &str| {
        format!(
            "{POD}policies:\n- name: p\n  namespace: b\n  action: {action}\n  rules:\n\
             \x20 - from: [{{principals: ['*'], requestPrincipals: ['*'], notRemoteIpBlocks: [10.0.0.0/8]}}]\n\
             \x20   to: [{{ports: [80], paths: [/admin*], notMethods: [GET]}}, {{hosts: [x]}}, {{ports: [81]}}]\n\
             \x20   when: [{{key: 'request.headers[x]', values: [y]}}, {{key: source.ip, values: [10.0.0.1]}}]\n"
        )
    };
    let file = parsed(&text("DENY"));
    let policy = file.mesh.policies().next().unwrap();
    let unseen = |clause: usize| -> Vec<String> {
        let matches = policy.rules[0].clauses[clause].matches.iter();
        matches.map(|match_| match_.unseen.join(" ")).collect()
    };
    assert_eq!(unseen(0), ["requestPrincipals notRemoteIpBlocks"]);
    assert_eq!(unseen(1), ["notMethods paths", "hosts", ""]);
    assert_eq!(
        (unseen(2), unseen(3)),
        (vec!["request.headers[x]".into()], vec![String::new()])
    );
    assert_eq!(
        policy.rules[0].clauses[0].matches[0].principals,
        [StringMatch::Presence]
    );
    assert_eq!(policy.rules[0].clauses[1].matches[0].destination_ports, [80]);

    let expect = |effect: &str| {
        let places = [
            (8, "from[0]", "requestPrincipals, notRemoteIpBlocks"),
            (9, "to[0]", "notMethods, paths"),
            (9, "to[1]", "hosts"),
            (10, "when[0]", "request.headers[x]"),
        ];
        places.map(|(line, place, fields)| {
            let place = format!("line {line}: policies[0].rules[0].{place}");
            format!("{place}: no agent sees {fields}, only a waypoint does: at an agent this {effect}")
        })
    };
    let denies =
        "denies whatever they are, except what comes out of a waypoint of the workload or its service";
    assert_eq!(warnings(&text("DENY")), expect(denies));
    assert_eq!(warnings(&text("ALLOW")), expect("allows nothing"));
}

#[test]
fn service_accounts_and_trust_domains() {
    let file = parsed(&format!(
        "{POD}policies:\n- name: p\n  namespace: b\n  rules:\n\
         \x20 - from: [{{serviceAccounts: [a, c/d.e], notServiceAccounts: [f], trustDomains: [x.y, 'x*'], notTrustDomains: ['*']}}]\n\
         \x20   when:\n\
         \x20   - {{key: source.serviceAccount, values: [g]}}\n\
         \x20   - {{key: source.trustDomain, notValues: [z]}}\n"
    ));
    let clauses = &file.mesh.policies().next().unwrap().rules[0].clauses;
    let accounts = |accounts: &[crate::mesh::ServiceAccountMatch]| -> Vec<String> {
        let shown = accounts
            .iter()
            .map(|account| format!("{}/{}", account.namespace, account.name));
        shown.collect()
    };
    let from = &clauses[0].matches[0];
    assert_eq!(accounts(&from.service_accounts), ["b/a", "c/d.e"]);
    assert_eq!(accounts(&from.not_service_accounts), ["b/f"]);
    let (exact, prefix) = (StringMatch::Exact("x.y".into()), StringMatch::Prefix("x".into()));
    assert_eq!(from.trust_domains, [exact, prefix]);
    assert_eq!(from.not_trust_domains, [StringMatch::Presence]);
    assert_eq!(accounts(&clauses[1].matches[0].service_accounts), ["b/g"]);
    assert_eq!(
        clauses[2].matches[0].not_trust_domains,
        [StringMatch::Exact("z".into())]
    );
    assert!(file.warnings.is_empty(), "{:?}", file.warnings);
}

#[test]
fn peer_authentications_that_say_something_else() {
    let check =
        |fields: &str, expect: &str| check(&format!("{POD}peerAuthentications:\n- {{{fields}}}"), &[expect]);
    check(
        "namespace: b, mode: OFF",
        "`OFF` peerAuthentications[0].mode: \"OFF\" is not known here: write STRICT, PERMISSIVE or UNSET",
    );
    check(
        "namespace: b, portLevelMtls: {http: STRICT}",
        "`STRICT` peerAuthentications[0].portLevelMtls.http: \"http\" is not a port: write a number from 1 to 65535",
    );
    check(
        "namespace: istio-system, selector: {app: a}",
        "`{app: a` peerAuthentications[0].selector: is ignored in the root namespace: move this to the namespace of the \
         workloads",
    );
}

#[test]
fn mutual_tls_cannot_be_disabled() {
    let text = format!(
        "{POD}peerAuthentications:\n- {{namespace: istio-system, mode: STRICT}}\n\
         - {{namespace: b, mode: DISABLE, portLevelMtls: {{80: DISABLE, 81: PERMISSIVE}}}}\n"
    );
    let ignored = "is ignored, as if it were UNSET: write PERMISSIVE to take plaintext as well";
    assert_eq!(
        warnings(&text),
        [
            format!("line 5: peerAuthentications[1].mode: {ignored}"),
            format!("line 5: peerAuthentications[1].portLevelMtls.80: {ignored}"),
        ]
    );
    let file = parsed(&text);
    let mode = |port| file.mesh.mtls_mode(workload(&file, "a"), port);
    assert_eq!(
        [1, 80, 81].map(mode),
        [MtlsMode::Strict, MtlsMode::Strict, MtlsMode::Permissive]
    );
}

#[test]
fn a_long_list_of_problems_is_cut() {
    let text = format!("clusterCidrs: [{}]", "x, ".repeat(60));
    let err = parse(&text, Path::new("m"), "node-a").unwrap_err();
    assert_eq!(err.problems.len(), 60);
    assert_eq!(err.to_string().lines().count(), 51);
    assert!(err.to_string().ends_with("m: and 10 more"));
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text, Path::new("m"), "node-a");
    }

    /// Cuts pieces out of a good file and puts others in.
    #[test]
    fn no_damage_panics(cuts in prop::collection::vec((any::<Index>(), any::<Index>(), "[a-z0-9:{}\\[\\], \n*&-]{0,4}"), 1..4)) {
        let mut text = WHOLE.to_owned();
        for (from, to, with) in cuts {
            let (from, to) = (from.index(text.len()), to.index(text.len()));
            text.replace_range(from.min(to)..from.max(to).min(from.min(to) + 40), &with);
        }
        if let Err(err) = parse(&text, Path::new("m"), "node-a") {
            prop_assert!(!err.problems.is_empty());
        }
    }
}

#[test]
fn a_selector_that_selects_nothing_is_a_warning() {
    let text = "workloads: []\nservices:\n- {name: s, namespace: b, selector: {app: x}}\n\
                policies:\n- {name: p, namespace: b, action: DENY, selector: {app: y}, rules: [{}]}\n";
    let file = parse(text, Path::new("mesh.yaml"), "n").unwrap_or_else(|error| panic!("{error}"));
    let warnings: Vec<_> = file.warnings.iter().map(ToString::to_string).collect();
    let nothing = "selects no workload in namespace b: compare it with the workloads' labels";
    assert_eq!(
        warnings,
        [
            format!("line 3: services[0].selector: {nothing}"),
            format!("line 5: policies[0].selector: {nothing}")
        ]
    );
}

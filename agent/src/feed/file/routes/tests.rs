//! Manifests beside a mesh file: what they mean, and what is said about those that mean nothing.

use std::path::Path;

use crate::{
    feed::file::{MeshFile, MeshFileError, manifests::ManifestFile, parse_document, schema},
    mesh::{Action, MtlsMode, PolicyKey, Scope, ServiceKey, Workload, http::RouteAction},
};

/// Two versions of an app behind a waypoint, and one without.
const MESH: &str = r#"
workloads:
- {name: app-1, namespace: default, tunnelProtocol: HBONE, addresses: [10.1.0.1], labels: {app: app, version: v1}}
- {name: app-2, namespace: default, tunnelProtocol: HBONE, addresses: [10.1.0.2], labels: {app: app, version: v2}}
- {name: free-1, namespace: default, tunnelProtocol: HBONE, addresses: [10.1.0.3], labels: {app: free}}
- {name: gate-1, namespace: default, serviceAccount: gate, tunnelProtocol: HBONE, nativeTunnel: true,
   addresses: [10.1.0.4], labels: {app: gate}}
services:
- {name: gate, namespace: default, vips: [10.2.0.1], selector: {app: gate}, ports: [{port: 15008}]}
- {name: app, namespace: default, vips: [10.2.0.2], selector: {app: app}, waypoint: {service: default/gate},
   ports: [{port: 80, targetPort: 8080, appProtocol: http}, {port: 9000, appProtocol: tcp}]}
- {name: free, namespace: default, vips: [10.2.0.3], selector: {app: free}, ports: [{port: 80}]}
"#;

/// A mesh file, and the text of each of its manifests, which are called 0.yaml, 1.yaml...
fn read(mesh: &str, manifests: &[&str]) -> Result<MeshFile, MeshFileError> {
    let files = manifests.iter().enumerate().map(|(i, text)| ManifestFile {
        entry: i,
        path: Path::new(&format!("{i}.yaml")).into(),
        text: Ok((*text).to_owned()),
    });
    let files: Vec<_> = files.collect();
    parse_document(schema::read(mesh), &files, Path::new("mesh.yaml"), "node-a")
}

fn parsed(mesh: &str, manifests: &[&str]) -> MeshFile {
    read(mesh, manifests).unwrap_or_else(|err| panic!("{err}"))
}

/// A seed for the service `app`, of which it calls it something else.
fn seed(name: &str, app: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/seeds")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.replace(app, "app")
}

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "default".into(),
        hostname: format!("{name}.default.svc.cluster.local").into(),
    }
}

fn policy(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn workload<'a>(file: &'a MeshFile, name: &str) -> &'a Workload {
    let mut all = file.mesh.workloads();
    all.find(|workload| &*workload.name == name).unwrap()
}

/// The names of the policies that a workload names, without the hashes of our own.
fn policies(workload: &Workload) -> Vec<&str> {
    let own = |name: &'static str, key: &PolicyKey| key.name.starts_with(name).then_some(name);
    let name = |key| {
        let own = own("weft_waypoint_only", key).or_else(|| own("weft_from_waypoint", key));
        own.unwrap_or(if key.name.starts_with("require") {
            "require-jwt"
        } else {
            "other"
        })
    };
    workload.policies.iter().map(name).collect()
}

#[test]
fn a_canary_as_people_write_it() {
    let file = parsed(MESH, &[&seed("03-mesh-canary.yaml", "shipping-service")]);
    let routes = file.mesh.http_routes(&key("app")).unwrap().unwrap().values();
    let table = routes.http[&80].producer.as_ref().unwrap();
    let RouteAction::Forward(backends) = &table.rules[table.entries[0].rule].action else {
        panic!("{table:?}")
    };
    assert_eq!(backends.iter().map(|it| it.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!(routes.traffic.subsets.len(), 2);
    let subsets = |name| workload(&file, name).subsets.clone();
    assert_eq!(subsets("app-1"), [(key("app"), "v1".into())]);
    assert_eq!(subsets("app-2"), [(key("app"), "v2".into())]);
    assert_eq!(subsets("free-1"), []);
    assert!(file.mesh.http_routes(&key("free")).unwrap().is_none());
    assert_eq!(file.warnings, []);
}

#[test]
fn seeds_are_taken_unchanged() {
    for name in [
        "01-bookinfo-ingress.yaml",
        "02-canary-weights.yaml",
        "04-circuit-breaker.yaml",
        "05-strict-mtls.yaml",
        "06-require-jwt.yaml",
        "07-booking-ingress.yaml",
    ] {
        parsed(MESH, &[&seed(name, "app")]);
    }
}

#[test]
fn mutual_tls_of_the_mesh() {
    let file = parsed(MESH, &[&seed("05-strict-mtls.yaml", "app")]);
    assert_eq!(
        file.mesh.mtls_mode(workload(&file, "free-1"), 80),
        MtlsMode::Strict
    );
}

const JWT: &str = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt}
spec: {jwtRules: [{issuer: testing@secure.istio.io, jwks: '{"keys": []}'}], selector: {matchLabels: {app: app}}}
"#;

#[test]
fn a_policy_that_asks_for_tokens_is_the_waypoints() {
    let file = parsed(MESH, &[&seed("06-require-jwt.yaml", "booking-service"), JWT]);
    assert_eq!(
        policies(workload(&file, "app-1")),
        ["require-jwt", "weft_waypoint_only", "weft_from_waypoint"]
    );
    assert_eq!(policies(workload(&file, "free-1")), Vec::<&str>::new());
    assert_eq!(policies(workload(&file, "gate-1")), Vec::<&str>::new());
    let routes = file.mesh.http_routes(&key("app")).unwrap().unwrap().values();
    assert_eq!(routes.authentications, [policy("jwt")]);
    assert!(file.mesh.request_authentication(&policy("jwt")).is_some());
    let require = file.mesh.policy(&policy("require-jwt")).unwrap();
    assert_eq!((require.action, require.scope), (Action::Allow, Scope::Selector));
    let only = file
        .mesh
        .policies()
        .find(|it| it.key.name.starts_with("weft_from"))
        .unwrap();
    let let_in = format!("{:?}", only.rules);
    assert!(let_in.contains("cluster.local/ns/default/sa/gate"), "{let_in}");
}

/// A policy of the mesh file, of this action and rules, for the service `app` or what else is said.
fn with_policy(fields: &str) -> String {
    format!("{MESH}policies:\n- {{name: p, namespace: default, {fields}}}\n")
}

#[test]
fn a_policy_with_targets_is_the_waypoints() {
    let rules = "rules: [{to: [{methods: [GET], paths: [/a/*, '/b/{*}']}], when: [{key: 'request.headers[X]', values: [a]}]}]";
    let check = |targets: &str, named: &[&str], guards: &[&str]| {
        let file = parsed(&with_policy(&format!("targetRefs: [{targets}], {rules}")), &[]);
        let p = file.mesh.policy(&policy("p")).unwrap();
        assert_eq!(p.scope, Scope::Selector);
        let request = |clause: usize| p.rules[0].clauses[clause].matches[0].request.clone().unwrap();
        assert_eq!((request(0).methods.len(), request(0).paths.len()), (1, 2));
        assert_eq!(request(1).when.len(), 1);
        let names = |name: &str| {
            let routes = file.mesh.http_routes(&key(name)).unwrap();
            routes.is_some_and(|routes| routes.values().policies == [policy("p")])
        };
        let found: Vec<_> = ["app", "free", "gate"]
            .into_iter()
            .filter(|name| names(name))
            .collect();
        assert_eq!(found, named, "{targets}");
        assert_eq!(policies(workload(&file, "app-1")), guards, "{targets}");
        // A waypoint has to be asked, whose agents are no concern of.
        assert_eq!(file.warnings, []);
    };
    check("{kind: Service, name: app}", &["app"], &["weft_waypoint_only"]);
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: gate}";
    check(gateway, &["app", "gate"], &["weft_waypoint_only"]);
}

#[test]
fn what_only_records_guards_nobody() {
    for fields in ["action: AUDIT", "dryRun: true"] {
        let fields = format!("{fields}, targetRefs: [{{kind: Service, name: app}}], rules: [{{}}]");
        let file = parsed(&with_policy(&fields), &[]);
        assert_eq!(policies(workload(&file, "app-1")), Vec::<&str>::new());
        let routes = file.mesh.http_routes(&key("app")).unwrap().unwrap();
        assert_eq!(routes.values().policies, [policy("p")]);
    }
}

#[test]
fn an_allow_lets_the_waypoint_in() {
    let rules = "rules: [{from: [{namespaces: [default]}]}]";
    let file = parsed(&with_policy(&format!("selector: {{app: app}}, {rules}")), &[]);
    assert_eq!(
        policies(workload(&file, "app-1")),
        ["other", "weft_from_waypoint"]
    );
    let everywhere = parsed(&with_policy(rules), &[]);
    assert_eq!(policies(workload(&everywhere, "app-1")), ["weft_from_waypoint"]);
    assert_eq!(policies(workload(&everywhere, "free-1")), Vec::<&str>::new());
}

/// A manifest of this kind, for the service `app`.
fn manifest(kind: &str, spec: &str) -> String {
    let group = match kind {
        "HTTPRoute" | "ReferenceGrant" => "gateway.networking.k8s.io/v1",
        "VirtualService" | "DestinationRule" => "networking.istio.io/v1",
        _ => "security.istio.io/v1",
    };
    format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: x, namespace: default}}\nspec:\n{spec}")
}

#[test]
fn problems_name_file_line_object_and_field() {
    let check = |manifests: &[&str], expect: &str| {
        let error = read(MESH, manifests).expect_err(expect).to_string();
        assert!(error.starts_with(expect), "{error}");
    };
    check(
        &["a: 1", "a: [1\n"],
        "0.yaml:1: is no object: it has no `apiVersion`\n1.yaml:",
    );
    check(&["# nothing\n---\na: [1\n"], "0.yaml:");
    let route = manifest(
        "HTTPRoute",
        "  parentRefs:\n  - {group: '', kind: Service, name: app, port: 80}\n  rules:\n  - matches:\n    - path: {type: Nothing, value: /}\n",
    );
    check(
        &[&route],
        "0.yaml:9: HTTPRoute default/x: spec.rules[0].matches[0].path.type",
    );
    let rule = manifest("DestinationRule", "  host: app\n");
    check(
        &[&rule, &rule],
        "1.yaml:1: DestinationRule default/x: there are two of this name",
    );
    let target = "  targetRefs:\n  - {kind: Service, group: '', name: free}\n";
    check(
        &[&manifest("AuthorizationPolicy", target)],
        "0.yaml:5: AuthorizationPolicy default/x: spec.targetRefs: service default/free has no waypoint",
    );
    let strict = manifest("PeerAuthentication", "  mtls: {mode: STRICT}\n");
    let other = strict.replace("name: x", "name: z");
    check(
        &[&strict, &other],
        "1.yaml:1: PeerAuthentication default/z: namespace default has two",
    );
    let unnamed = rule.replace("name: x", "name: 'A b'");
    check(
        &[&unnamed],
        "0.yaml:1: DestinationRule default/A b: \"A b\" is not a name",
    );
}

#[test]
fn what_is_not_read_is_a_warning() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\n";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: app}\n";
    let file = parsed(MESH, &[&format!("{deployment}{service}")]);
    let warnings: Vec<_> = file.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "0.yaml:1: Deployment of apps/v1 is not read",
            "0.yaml:5: Service default/app: is not read beside a mesh file, which has workloads, services and waypoints \
             of its own",
        ]
    );
}

#[test]
fn a_grant_permits_what_it_says() {
    let mesh = format!(
        "{MESH}- {{name: far, namespace: other, vips: [10.2.0.9], endpoints: [], ports: [{{port: 80}}]}}\n"
    );
    let route = manifest(
        "HTTPRoute",
        "  parentRefs:\n  - {group: '', kind: Service, name: app, port: 80}\n  rules:\n  - backendRefs:\n    - {name: far, namespace: other, port: 80}\n",
    );
    let check = |grant: Option<&str>, reaches: bool| {
        let grant = grant.map(|spec| {
            manifest("ReferenceGrant", spec).replace("namespace: default}\nspec", "namespace: other}\nspec")
        });
        let manifests: Vec<_> = [Some(&route), grant.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let shown = match read(&mesh, &manifests) {
            Ok(file) => {
                let routes = file.mesh.http_routes(&key("app")).unwrap().unwrap();
                format!("{:?}", routes.values().http)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(shown.contains("far.other.svc"), reaches, "{grant:?}: {shown}");
    };
    let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}";
    check(None, false);
    check(
        Some(&format!(
            "  from: [{from}]\n  to: [{{group: '', kind: Service}}]\n"
        )),
        true,
    );
    check(
        Some(&format!(
            "  from: [{from}]\n  to: [{{group: '', kind: Service, name: far}}]\n"
        )),
        true,
    );
    check(
        Some(&format!(
            "  from: [{from}]\n  to: [{{group: '', kind: Service, name: near}}]\n"
        )),
        false,
    );
    let other = from.replace("namespace: default", "namespace: third");
    check(
        Some(&format!(
            "  from: [{other}]\n  to: [{{group: '', kind: Service}}]\n"
        )),
        false,
    );
    check(Some("  from: x\n"), false);
}

#[test]
fn targets_that_lead_nowhere() {
    let check = |targets: &str, expect: &str| {
        let error = read(&with_policy(&format!("targetRefs: {targets}")), &[]).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    };
    check("[]", "is an empty list");
    check(
        "[{kind: Service, name: nobody}]",
        "policies[0].targetRefs[0]: there is no service default/nobody",
    );
    check("[{kind: Service, name: free}]", "has no waypoint");
    check("[{kind: Gateway, name: app}]", "is nobody's waypoint");
    check("[{kind: Pod, name: app}]", "\"Pod\" is not known here");
    check("[{name: app}]", "kind: is missing");
    check(
        "[{kind: Service, name: app}], selector: {app: app}",
        "either a selector or targetRefs",
    );
}

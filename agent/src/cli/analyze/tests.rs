//! Manifests as people have them, from the command line to what is printed.

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::args::{Cli, Command};

const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/seeds/");

/// What `weft analyze` prints, and what it exits with.
async fn run(words: &[&str]) -> (String, String, Answer) {
    let words = ["weft", "analyze"].iter().chain(words);
    let Command::Analyze(args) = Cli::try_parse_from(words).expect("the command line").command else {
        panic!("another command");
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let answer = print(&args, false, &mut out, &mut err)
        .await
        .expect("it is printed");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(err), answer)
}

/// Each finding as `severity code kind namespace/name:line message`.
async fn findings(words: &[&str]) -> (Vec<String>, Answer) {
    let words: Vec<_> = words.iter().copied().chain(["-o", "json"]).collect();
    let (out, err, answer) = run(&words).await;
    let page: Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words:?}: {error} {out} {err}"));
    let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
    let said = page["findings"].as_array().expect("findings").iter().map(|it| {
        let (severity, code, line) = (text(it, "severity"), text(it, "code"), &it["line"]);
        let (kind, namespace, name) = (text(it, "kind"), text(it, "namespace"), text(it, "name"));
        format!(
            "{severity} {code} {kind} {namespace}/{name}:{line} {}",
            text(it, "message")
        )
    });
    (said.collect(), answer)
}

/// Those, against what each begins with.
async fn check(words: &[&str], expect: &[&str], answer: Answer) {
    let (said, answered) = findings(words).await;
    let begins = |(said, expect): (&String, &&str)| said.starts_with(*expect);
    let fits = said.len() == expect.len() && said.iter().zip(expect).all(begins);
    assert!(
        fits && answered == answer,
        "{words:?} {answered:?}\nsaid {said:#?}\nexpected {expect:#?}"
    );
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("weft-analyze-{name}-{}", std::process::id()));
        for (file, text) in files {
            let file = path.join(file);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("make the folder");
            std::fs::write(file, text).expect("write the file");
        }
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a name")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn manifests_that_people_copy_are_accepted_and_what_they_need_is_said() {
    let mut wrong = Vec::new();
    for (name, expect) in [
        (
            "01-bookinfo-ingress",
            &[
                "info WEFT0601 Gateway default/bookinfo-gateway:6 spec: stands at the edge",
                "info WEFT0602 VirtualService default/bookinfo:24 spec.gateways: binds only the gateway bookinfo-gateway",
            ][..],
        ),
        (
            "02-canary-weights",
            &[
                "info WEFT0602 VirtualService default/1388-vs:9 spec.gateways: binds only the gateway shop-gateway",
                "info WEFT0401 DestinationRule default/1388-dnr:35 spec.host: only a waypoint acts on this: the service shop has",
            ],
        ),
        (
            "03-mesh-canary",
            &[
                "info WEFT0604 VirtualService default/shipping-service:7 spec.hosts: there is no service shipping-service",
                "info WEFT0401 VirtualService default/shipping-service:8 spec.hosts[0]: only a waypoint acts on this",
                "info WEFT0401 DestinationRule default/shipping-service:25 spec.host: only a waypoint acts on this",
            ],
        ),
        (
            "04-circuit-breaker",
            &[
                "info WEFT0401 DestinationRule default/inventory-service:6 spec.host: only a waypoint acts on this",
            ],
        ),
        (
            "05-strict-mtls",
            &[
                "info WEFT0505 PeerAuthentication istio-system/default:5 metadata.namespace: istio-system is the root namespace",
            ],
        ),
        (
            "06-require-jwt",
            &[
                "info WEFT0501 AuthorizationPolicy default/require-jwt:7 spec.selector: selects no workload",
                "info WEFT0401 AuthorizationPolicy default/require-jwt:12 spec.rules[0]: no agent sees requestPrincipals",
                "warning WEFT0801 AuthorizationPolicy default/require-jwt:14 spec.rules[0].from[0].source.requestPrincipals: asks for a token",
            ],
        ),
        (
            "07-booking-ingress",
            &[
                "info WEFT0601 Gateway default/booking-gateway:5 spec: stands at the edge",
                "info WEFT0602 VirtualService default/booking:23 spec.gateways: binds only the gateway booking-gateway",
            ],
        ),
    ] {
        let (said, answer) = findings(&[&format!("{SEEDS}{name}.yaml")]).await;
        let is_there = |expect: &&&str| said.iter().any(|said| said.starts_with(**expect));
        let all = expect.iter().all(|it| is_there(&it));
        if !all || answer != Answer::Fine || said.len() < expect.len() {
            wrong.push(format!("{name}: {answer:?} {said:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (out, _, answer) = run(&[SEEDS]).await;
    assert_eq!(answer, Answer::Fine, "{out}");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_its_line() {
    let folder = Folder::new(
        "lines",
        &[
            (
                "a.yaml",
                "# the policy\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\nspec:\n  action: MAYBE\n---\nkind: [\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: many}]}\n",
            ),
            ("deep/b.yml", "hello: world\n"),
            (".hidden/c.yaml", "no: [\n"),
            ("notes.txt", "no: [\n"),
        ],
    );
    check(
        &[folder.path(), "-n", "shop"],
        &[
            "error WEFT0101 AuthorizationPolicy shop/p:7 spec.action: is not known here",
            "error WEFT0001  /:9 is not YAML",
            "error WEFT0002  /:11 is no Service that Kubernetes would take",
            "info WEFT0003  /:1 is no object: it has no `apiVersion`",
        ],
        Answer::Wrong,
    )
    .await;
    let (out, _, _) = run(&[folder.path()]).await;
    assert!(
        out.contains("error WEFT0101 InvalidField")
            && out.contains("a.yaml:7  AuthorizationPolicy default/p"),
        "{out}"
    );
    assert!(
        out.ends_with("✗ 3 errors, 0 warnings, 1 info in 1 object of 2 files\n"),
        "{out}"
    );
    // By its own name it is no mistake.
    check(
        &[&format!("{}/deep/b.yml", folder.path())],
        &["error WEFT0003"],
        Answer::Wrong,
    )
    .await;
}

#[tokio::test]
async fn pods_are_found_in_templates_and_objects_in_lists() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: web}}, rules: [{}]}\n";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    metadata:\n      labels:\n        app: web\n        istio.io/dataplane-mode: ambient\n    spec: {hostNetwork: true}\n";
    let both = format!("{policy}---\n{deployment}");
    let folder = Folder::new("templates", &[("a.yaml", &both)]);
    check(
        &[folder.path()],
        &["warning WEFT0201 Deployment default/web:10 is labelled"],
        Answer::Fine,
    )
    .await;
    check(&["--strict", folder.path()], &["warning"], Answer::Wrong).await;
    check(
        &["--strict", "--ignore", "weft0201", folder.path()],
        &[],
        Answer::Fine,
    )
    .await;
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n  metadata: {name: a}\n  spec:\n    mtls:\n      mode: DISABLE\n- {apiVersion: apps/v1, kind: ConfigMap}\n";
    let folder = Folder::new("lists", &[("a.yaml", list), ("b.yaml", list)]);
    check(
        &[folder.path()],
        &[
            "warning WEFT0004 PeerAuthentication default/a:4 is defined in",
            "warning WEFT0507 PeerAuthentication default/a:9 spec.mtls.mode: DISABLE",
        ],
        Answer::Fine,
    )
    .await;
}

#[tokio::test]
async fn wrong_usage_is_no_answer() {
    let (_, err, answer) = run(&["/no/such/file.yaml"]).await;
    assert!(
        answer == Answer::None && err.contains("/no/such/file.yaml: No such file"),
        "{err}"
    );
    let (_, err, answer) = run(&["--cluster", "--kubeconfig", "/no/such/file"]).await;
    assert!(answer == Answer::None && err.contains("/no/such/file"), "{err}");
    for words in [
        &["analyze"][..],
        &["analyze", "--cluster", "a.yaml"],
        &["analyze", "--context", "x", "a.yaml"],
    ] {
        let words = ["weft"].iter().chain(words);
        assert!(Cli::try_parse_from(words).is_err());
    }
}

#[tokio::test]
async fn the_codes_are_listed() {
    let (out, _, answer) = run(&["--list"]).await;
    assert!(
        answer == Answer::Fine && out.contains("WEFT0401  NeedsWaypoint"),
        "{out}"
    );
    let (out, _, _) = run(&["--list", "-o", "json"]).await;
    let codes: Value = serde_json::from_str(&out).expect("JSON");
    assert!(codes.as_array().is_some_and(|it| it.len() > 30), "{out}");
}

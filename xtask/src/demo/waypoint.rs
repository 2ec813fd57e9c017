//! The demo's last scenes: a waypoint, given manifests of Istio as people have them.
//!
//! ```text
//!   node a: curl      node b: waypoint, shop-v1 and shop-v2 (nginx), pay (fails every other request)
//! ```

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_tests::{AgentOptions, Curled, LIMIT, Nginx, PodSpec, Server, curl, tokens::Issuer, wait_until};

use super::{Evidence, Show, Stage};

/// The service address of the shop.
const SHOP: &str = "10.96.0.30";
/// The service address of the app that fails.
const PAY: &str = "10.96.0.40";
/// Requests that the canary is counted over.
const COUNTED: usize = 200;
/// Requests to the app that fails.
const PAYMENTS: usize = 20;
/// Whose tokens are believed.
const ISSUER: &str = "testing@secure.istio.io";

/// What runs for these scenes.
struct Shop {
    _versions: [Nginx; 2],
    _pay: Server,
    manifests: PathBuf,
}

/// How often the app that fails was asked.
static ASKED: AtomicUsize = AtomicUsize::new(0);

pub(super) fn play(stage: &mut Stage, show: &mut Show) {
    let mut shop = None;
    show.scene(
        "a waypoint splits requests nine to one between two versions (VirtualService, DestinationRule)",
        |it| {
            shop = Some(open(stage)?);
            canary(stage, it)
        },
    );
    show.scene(
        "it tries again what failed, so that nobody notices an app that fails every other time",
        |it| retry(stage, it),
    );
    show.scene(
        "it lets in whoever has a token of the right issuer, and nobody else (RequestAuthentication)",
        |it| token(stage, shop.as_ref().context("there is no waypoint")?, it),
    );
}

/// Two versions of a shop, an app that fails, and the waypoint that their services go through.
fn open(stage: &mut Stage) -> Result<Shop> {
    let world = &mut stage.world;
    let spec = |name: &str, app: &str| PodSpec::new(name).service_account(app).label("app", app);
    let v1 = world.pod("b", spec("shop-v1", "shop").label("version", "v1"))?;
    let v2 = world.pod("b", spec("shop-v2", "shop").label("version", "v2"))?;
    let pay = world.pod("b", spec("pay", "pay"))?;
    let gateway = world.pod("b", spec("waypoint", "waypoint").native())?;
    let versions = [
        Nginx::start(world, &v1, 8080, "shop v1\n")?,
        Nginx::start(world, &v2, 8080, "shop v2\n")?,
    ];
    let pay = Server::start(pay.listen(8080)?, fails_every_other_time)?;
    let manifests = world.dir().join("shop.yaml");
    fs::write(&manifests, CANARY).context("write the manifests")?;
    let mesh = world.mesh_mut();
    mesh.service("waypoint", &["10.96.0.50"], 15008, 15008, "waypoint");
    for (name, vip) in [("shop", SHOP), ("pay", PAY)] {
        mesh.services.push(json!({
            "name": name, "namespace": "demo", "vips": [vip],
            "ports": [{ "port": 80, "targetPort": 8080, "appProtocol": "http" }],
            "selector": { "app": name },
            "waypoint": { "service": "demo/waypoint.demo.svc.cluster.local" },
        }));
    }
    mesh.manifests.push(manifests.clone());
    world.apply()?;
    world.start_waypoint(&gateway, AgentOptions::default())?;
    wait_until("the shop to answer", LIMIT, || {
        (curl(&stage.curl, &[&format!("http://{SHOP}/")]).ok()?.status == 200).then_some(())
    })?;
    Ok(Shop {
        _versions: versions,
        _pay: pay,
        manifests,
    })
}

/// As in tutorials, and unchanged.
const CANARY: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: demo}
spec:
  hosts: [shop]
  http:
  - route:
    - destination: {host: shop, subset: v1}
      weight: 90
    - destination: {host: shop, subset: v2}
      weight: 10
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: demo}
spec:
  host: shop
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pay, namespace: demo}
spec:
  hosts: [pay]
  http:
  - retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}
    route:
    - destination: {host: pay}
";

fn canary(stage: &Stage, it: &mut Evidence) -> Result<()> {
    let url = format!("http://{SHOP}/?[1-{COUNTED}]");
    let answers = curl(&stage.curl, &[&url])?.body;
    let of = |version: &str| answers.matches(version).count();
    let (v1, v2) = (of("shop v1"), of("shop v2"));
    it.line(format!(
        "curl$ curl http://{SHOP}/  ({COUNTED} times)  ->  {v1} x v1, {v2} x v2"
    ));
    ensure!(v1 + v2 == COUNTED, "not every request was answered: {answers}");
    // Five standard deviations of what chance does: 200 * 0.1 is 20, give or take 4.2.
    ensure!((1..=41).contains(&v2), "that is not nine to one");
    Ok(())
}

fn retry(stage: &Stage, it: &mut Evidence) -> Result<()> {
    ASKED.store(0, Ordering::SeqCst);
    let url = format!("http://{PAY}/?[1-{PAYMENTS}]");
    let paid = curl(&stage.curl, &[&url])?.body.matches("paid").count();
    let asked = ASKED.load(Ordering::SeqCst);
    it.line(format!(
        "curl$ curl http://{PAY}/  ({PAYMENTS} times)  ->  {paid} x 200"
    ));
    it.line(format!(
        "the app was asked {asked} times, and answered {} times with 503",
        asked - paid
    ));
    ensure!(paid == PAYMENTS, "a failure came through");
    ensure!(asked > PAYMENTS, "nothing was tried again");
    Ok(())
}

fn fails_every_other_time(stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        let (status, body) = match ASKED.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => ("503 Service Unavailable", "sorry\n"),
            _ => ("200 OK", "paid\n"),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        reader.get_mut().write_all(answer.as_bytes())?;
    }
}

fn token(stage: &Stage, shop: &Shop, it: &mut Evidence) -> Result<()> {
    let (issuer, forger) = (Issuer::new()?, Issuer::new()?);
    let manifests = format!("{CANARY}---\n{}", with_token(&issuer.jwks()));
    fs::write(&shop.manifests, manifests).context("write the manifests")?;
    let url = format!("http://{SHOP}/");
    let ask = |token: Option<String>| -> Result<Curled> {
        let header = token.map(|token| format!("authorization: Bearer {token}"));
        let mut args = vec![url.as_str()];
        args.extend(header.iter().flat_map(|header| ["-H", header.as_str()]));
        curl(&stage.curl, &args)
    };
    wait_until("the policy to be in force", LIMIT, || {
        (ask(None).ok()?.status == 403).then_some(())
    })?;
    for (what, token, expected) in [
        ("without a token", None, 403),
        (
            "with a token of the right issuer",
            Some(issuer.of(ISSUER, "alice")?),
            200,
        ),
        (
            "with one that somebody else signed",
            Some(forger.of(ISSUER, "alice")?),
            401,
        ),
    ] {
        let answer = ask(token)?;
        it.line(format!(
            "curl$ curl {url}  {what}  ->  {} {}",
            answer.status,
            answer.body.trim()
        ));
        ensure!(answer.status == expected, "{expected} was expected");
    }
    Ok(())
}

/// Only requests with a token of this issuer.
fn with_token(jwks: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: shop, namespace: demo}}
spec:
  targetRefs: [{{kind: Service, group: '', name: shop}}]
  jwtRules:
  - issuer: {ISSUER}
    jwks: '{jwks}'
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: shop, namespace: demo}}
spec:
  targetRefs: [{{kind: Service, group: '', name: shop}}]
  action: ALLOW
  rules:
  - from: [{{source: {{requestPrincipals: ['{ISSUER}/*']}}}}]
"
    )
}

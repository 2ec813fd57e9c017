//! Who the controller believes, and whose certificates it gives out: tokens that the API knows in odd ways or not at all, and the
//! root in all the ways in which it may be kept.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use weft::{
    net::chain,
    svid::{CaClient, CertificateAuthority as _, Csr, Signed},
};
use weft_tests::{
    LIMIT,
    kube::{Fault, Rule},
    wait_until,
};

use super::world::{Controller, World};

pub(crate) const AGENT: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-agent";

/// Has a certificate of weft's agent signed with this token.
pub(crate) fn signed(world: &World, controller: &Controller, token: &str) -> Result<Result<Signed, String>> {
    let credentials = world.credentials(controller, token)?;
    world.runtime.block_on(async {
        let client = CaClient::new(credentials).await?;
        let csr = Csr::new(&AGENT.parse()?)?;
        Ok(client.sign(&csr.pem).await.map_err(|error| chain(&error)))
    })
}

/// How it is refused.
pub(crate) fn refusal(world: &World, controller: &Controller, token: &str) -> Result<String> {
    match signed(world, controller, token)? {
        Ok(_) => anyhow::bail!("{token} is believed"),
        Err(refusal) => Ok(refusal),
    }
}

#[test]
fn a_token_is_believed_only_as_far_as_the_api_vouches_for_it() -> Result<()> {
    let world = World::new("tokens")?;
    let controller = world.start("a", &[])?;
    let agent = json!({"username": "system:serviceaccount:weft-system:weft-agent"});
    let says = |token: &str, status: Value| world.api.review_as(token, status);
    says("no-audiences", json!({"authenticated": true, "user": agent}));
    says(
        "other-audiences",
        json!({"authenticated": true, "user": agent, "audiences": ["vault"]}),
    );
    says(
        "a-person",
        json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["weft-ca"]}),
    );
    says(
        "half",
        json!({"authenticated": true, "user": {"username": "system:serviceaccount:weft-system"}, "audiences": ["weft-ca"]}),
    );
    says(
        "not",
        json!({"authenticated": false, "user": agent, "audiences": ["weft-ca"]}),
    );
    says("nothing", json!({}));
    says(
        "believed",
        json!({"authenticated": true, "user": agent, "audiences": ["weft-ca"]}),
    );
    for (token, why) in [
        ("no-audiences", "not for the audience weft-ca or istio-ca"),
        ("other-audiences", "not for the audience"),
        ("a-person", "jane is no service account"),
        ("half", "is no service account"),
        ("not", "Kubernetes does not know it"),
        ("nothing", "Kubernetes does not know it"),
        ("garbage", "the token is not accepted"),
    ] {
        let refusal = refusal(&world, &controller, token)?;
        ensure!(refusal.contains(why), "{token}: {refusal}");
    }
    ensure!(signed(&world, &controller, "believed")?.is_ok());
    let token = world.agent_token()?;
    ensure!(signed(&world, &controller, &token)?.is_ok());
    // What the API cannot say is no refusal that would be remembered.
    let late = world
        .api
        .token("weft-system", "weft-agent", &["istio-ca"], Some("weft-agent-a"))?;
    world
        .api
        .faults()
        .inject(Rule::new(Fault::Fail(500)).on("tokenreviews"));
    let failed = refusal(&world, &controller, &late)?;
    ensure!(failed.contains("could not be verified"), "{failed}");
    ensure!(
        signed(&world, &controller, &token)?.is_ok(),
        "it was just believed"
    );
    world.api.faults().clear();
    ensure!(signed(&world, &controller, &late)?.is_ok());
    Ok(())
}

#[test]
fn a_flood_of_tokens_is_not_passed_on_to_the_api() -> Result<()> {
    let world = World::new("flood")?;
    let controller = world.start("a", &[])?;
    let reviews = || world.api.requests("create", "tokenreviews");
    let token = world.agent_token()?;
    for _ in 0..5 {
        ensure!(signed(&world, &controller, &token)?.is_ok());
        refusal(&world, &controller, "garbage")?;
    }
    ensure!(reviews() == 2, "{} reviews of two tokens", reviews());
    // Each another one.
    let mut last = String::new();
    for number in 0..100 {
        last = refusal(&world, &controller, &format!("garbage-{number}"))?;
    }
    ensure!(reviews() < 90, "{} reviews", reviews());
    ensure!(
        last.contains("too many tokens from 127.0.0.1 were refused"),
        "{last}"
    );
    Ok(())
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

fn secret(world: &World, data: &[(&str, &str)]) -> Result<()> {
    let data: serde_json::Map<_, _> = data
        .iter()
        .map(|(key, pem)| ((*key).to_owned(), base64(pem).into()))
        .collect();
    world.api.apply(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "weft-ca", "namespace": "weft-system"},
        "type": "kubernetes.io/tls", "data": data,
    }))
}

/// A CA of this name, signed by another or by itself.
fn authority(name: &str, by: Option<(&str, &str)>) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cert = match by {
        None => params.self_signed(&key)?,
        Some((cert, issuer)) => {
            params.signed_by(&key, &Issuer::from_ca_cert_pem(cert, KeyPair::from_pem(issuer)?)?)?
        }
    };
    Ok((cert.pem(), key.serialize_pem()))
}

/// Whom everybody is told to trust.
fn roots(world: &World) -> Option<String> {
    let map = world.api.get("configmaps", "weft-system", "weft-ca-root-cert")?;
    Some(map["data"]["root-cert.pem"].as_str()?.to_owned())
}

fn is_only(all: &str, root: &str) -> bool {
    all.matches("BEGIN CERTIFICATE").count() == 1 && all.contains(lines(root))
}

fn lines(pem: &str) -> &str {
    pem.trim().lines().nth(1).unwrap_or_default()
}

#[test]
fn an_intermediate_signs_and_its_root_is_trusted() -> Result<()> {
    let world = World::new("intermediate")?;
    let (root, root_key) = authority("root", None)?;
    let (cert, key) = authority("intermediate", Some((&root, &root_key)))?;
    secret(
        &world,
        &[("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &root)],
    )?;
    let controller = world.start("a", &[])?;
    let all = roots(&world).context("the ConfigMap")?;
    ensure!(is_only(&all, &root), "{all}");
    // Its own certificate is believed by the root alone, and so is what it signs: the intermediate comes along.
    let first = signed(&world, &controller, &world.agent_token()?)?.map_err(anyhow::Error::msg)?;
    ensure!(first.chain.len() == 2, "{} certificates", first.chain.len());
    // Another intermediate of that root changes nothing for anybody.
    let (cert, key) = authority("another intermediate", Some((&root, &root_key)))?;
    secret(
        &world,
        &[("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &root)],
    )?;
    wait_until("the other one to sign", LIMIT * 2, || {
        let second = signed(&world, &controller, &world.agent_token().ok()?)
            .ok()?
            .ok()?;
        (second.chain[1] != first.chain[1]).then_some(())
    })?;
    ensure!(roots(&world).as_ref() == Some(&all));
    Ok(())
}

#[test]
fn a_root_that_was_supplied_is_used_as_it_is() -> Result<()> {
    let world = World::new("supplied")?;
    let (root, key) = authority("root", None)?;
    secret(&world, &[("tls.crt", &root), ("tls.key", &key)])?;
    let controller = world.start("a", &[])?;
    ensure!(is_only(&roots(&world).context("the ConfigMap")?, &root));
    ensure!(signed(&world, &controller, &world.agent_token()?)?.is_ok());
    Ok(())
}

#[test]
fn a_root_that_cannot_be_used_is_waited_for() -> Result<()> {
    let world = World::new("unusable")?;
    let (root, key) = authority("root", None)?;
    let (other, other_key) = authority("other", None)?;
    // Another one's key; no key; something else for roots.
    let cases: [&[(&str, &str)]; 3] = [
        &[("tls.crt", &root), ("tls.key", &other_key)],
        &[("tls.crt", &root)],
        &[("tls.crt", &root), ("tls.key", &key), ("ca.crt", "nonsense")],
    ];
    secret(&world, cases[0])?;
    let controller = world.launch("a", &[])?;
    for case in cases {
        secret(&world, case)?;
        // It looks every two seconds.
        let before = world.api.requests("get", "secrets");
        wait_until("two looks", LIMIT, || {
            world.api.requests("get", "secrets") >= before + 2
        })?;
        ensure!(roots(&world).is_none(), "{case:?}");
        ensure!(controller.metric("weft_controller_leader").is_err(), "it serves");
    }
    ensure!(roots(&world).is_none());
    secret(&world, &[("tls.crt", &root), ("tls.key", &key)])?;
    controller.wait_until_ready()?;
    ensure!(signed(&world, &controller, &world.agent_token()?)?.is_ok());
    // Once it serves, what is not to be used changes nothing.
    secret(&world, &[("tls.crt", &other), ("tls.key", &key)])?;
    let before = world.api.requests("get", "secrets");
    wait_until("a look", LIMIT, || {
        world.api.requests("get", "secrets") >= before + 2
    })?;
    ensure!(is_only(&roots(&world).context("the ConfigMap")?, &root));
    ensure!(signed(&world, &controller, &world.agent_token()?)?.is_ok());
    Ok(())
}

#[test]
fn two_that_make_a_root_at_once_have_the_same() -> Result<()> {
    let world = World::new("at-once")?;
    // Both find none before either has made one.
    world.api.faults().inject(
        Rule::new(Fault::Slow(Duration::from_secs(1)))
            .on("secrets")
            .times(4),
    );
    let (a, b) = (world.launch("a", &[])?, world.launch("b", &[])?);
    for controller in [&a, &b] {
        controller.wait_until_ready()?;
    }
    ensure!(world.api.requests("create", "secrets") == 2, "both make one");
    let secret = world
        .api
        .get("secrets", "weft-system", "weft-ca")
        .context("the Secret")?;
    let cert = STANDARD.decode(secret["data"]["tls.crt"].as_str().unwrap_or_default())?;
    let cert = String::from_utf8(cert)?;
    ensure!(is_only(&roots(&world).context("the ConfigMap")?, &cert));
    for controller in [&a, &b] {
        let signed = signed(&world, controller, &world.agent_token()?)?.map_err(anyhow::Error::msg)?;
        ensure!(signed.trust.len() == 1 && signed.trust.to_pem().contains(lines(&cert)));
    }
    Ok(())
}

#[test]
fn at_the_end_of_a_rotation_the_old_root_is_gone() -> Result<()> {
    let world = World::new("rotation")?;
    let (old, old_key) = authority("the old root", None)?;
    secret(
        &world,
        &[("tls.crt", &old), ("tls.key", &old_key), ("ca.crt", &old)],
    )?;
    let controllers = [world.start("a", &[])?, world.start("b", &[])?];
    let (new, new_key) = authority("the new root", None)?;
    // First it is trusted, then it signs, then it is alone.
    for (data, trusted, signer) in [
        (
            [
                ("tls.crt", &old),
                ("tls.key", &old_key),
                ("ca.crt", &format!("{old}{new}")),
            ],
            vec![&old, &new],
            "the old root",
        ),
        (
            [
                ("tls.crt", &new),
                ("tls.key", &new_key),
                ("ca.crt", &format!("{new}{old}")),
            ],
            vec![&old, &new],
            "the new root",
        ),
        (
            [("tls.crt", &new), ("tls.key", &new_key), ("ca.crt", &new)],
            vec![&new],
            "the new root",
        ),
    ] {
        secret(&world, &data.map(|(key, pem)| (key, pem.as_str())))?;
        for controller in &controllers {
            wait_until("the next step of both", LIMIT * 2, || {
                let trusts = |all: &str| {
                    let count = all.matches("BEGIN CERTIFICATE").count();
                    count == trusted.len() && trusted.iter().all(|it| all.contains(lines(it)))
                };
                // Not so often that it is too often for one caller.
                sleep(Duration::from_millis(200));
                let given = roots(&world)?;
                let signed = signed(&world, controller, &world.agent_token().ok()?).ok()?;
                // In no step is anybody left without a certificate.
                let signed = signed.unwrap_or_else(|error| panic!("{error}"));
                let is_signed_by = |name: &str| {
                    let leaf = signed.chain[0].as_ref();
                    leaf.windows(name.len()).any(|it| it == name.as_bytes())
                };
                (trusts(&given) && trusts(&signed.trust.to_pem()) && is_signed_by(signer)).then_some(())
            })?;
        }
    }
    // Who trusts the old one alone believes the controller no more.
    let mut credentials = world.credentials(&controllers[0], &world.agent_token()?)?;
    credentials.roots = std::sync::Arc::new(move || {
        let old = old.clone().into_bytes();
        Box::pin(async move { Ok(old) })
    });
    let refused = world
        .runtime
        .block_on(async { weft::rpc::connect(&credentials).await.is_err() });
    ensure!(refused, "the old root is believed");
    Ok(())
}

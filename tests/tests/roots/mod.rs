//! CAs of a test's own, and agents whose files of trust the test writes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use weft::svid::LocalCa;
use weft_tests::{Agent, AgentOptions, LIMIT, Pod, World, wait_until};

/// A root and its key.
pub(crate) struct Root {
    pub(crate) cert: String,
    key: String,
}

impl Root {
    pub(crate) fn new() -> Result<Self> {
        let (cert, key) = LocalCa::create(&"cluster.local".parse()?)?;
        Ok(Self { cert, key })
    }

    /// A list that takes back the certificates of these serial numbers (in hexadecimal). It should have been replaced
    /// `ago`.
    pub(crate) fn crl(&self, serials: &[String], ago: Option<Duration>) -> Result<String> {
        let now = SystemTime::now();
        let revoked = serials.iter().map(|serial| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(bytes(serial)?),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let day = Duration::from_secs(24 * 3600);
        let params = CertificateRevocationListParams {
            this_update: (now - 2 * day).into(),
            next_update: ago.map_or(now + day, |ago| now - ago).into(),
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_ca_cert_pem(&self.cert, KeyPair::from_pem(&self.key)?)?;
        Ok(params.signed_by(&issuer)?.pem()?)
    }
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let byte = |at| u8::from_str_radix(hex.get(at..at + 2).unwrap_or_default(), 16);
    (0..hex.len())
        .step_by(2)
        .map(|at| byte(at).with_context(|| format!("{hex:?} is no serial number")))
        .collect()
}

/// An agent and the files that it follows.
pub(crate) struct Trusting {
    pub(crate) agent: Agent,
    dir: PathBuf,
}

impl Trusting {
    /// The agent of `node`, which signs with `root` and trusts nothing else. Its list is `crl`.
    pub(crate) fn start(world: &mut World, node: &str, root: &Root, crl: &str) -> Result<Self> {
        let dir = world.dir().join(format!("trust-{node}"));
        fs::create_dir(&dir)?;
        write(&dir, "root.pem", &root.cert)?;
        write(&dir, "root-key.pem", &root.key)?;
        write(&dir, "bundle.pem", &root.cert)?;
        write(&dir, "crl.pem", crl)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let options = AgentOptions::default()
            .ca(dir.clone())
            .arg("--trust-bundle")
            .arg(&path("bundle.pem"))
            .env("CRL_PATH", &path("crl.pem"));
        let agent = world.start_agent_with(node, options)?;
        Ok(Self { agent, dir })
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        write(&self.dir, name, text)
    }

    /// The roots that are accepted besides that of the agent's own CA, from now on.
    pub(crate) fn bundle(&self, roots: &[&Root]) -> Result<()> {
        self.write(
            "bundle.pem",
            &roots.iter().map(|root| root.cert.as_str()).collect::<String>(),
        )
    }

    /// Another CA signs from now on; waits until `pod` has a certificate of it.
    pub(crate) fn sign_with(&self, root: &Root, pod: &Pod) -> Result<()> {
        let before = self.serial(pod)?;
        self.write("root-key.pem", &root.key)?;
        self.write("root.pem", &root.cert)?;
        wait_until("a certificate of the new CA", LIMIT, || {
            self.serial(pod).is_ok_and(|serial| serial != before)
        })
        .with_context(|| self.agent.log_tail())
    }

    /// Waits until so many roots are trusted.
    pub(crate) fn wait_for_roots(&self, roots: u64) -> Result<()> {
        wait_until(&format!("{roots} roots"), LIMIT, || {
            let status = self.agent.status().ok()?;
            (status.pointer("/trust/roots")?.as_u64()? == roots).then_some(())
        })
        .with_context(|| self.agent.log_tail())
    }

    /// The serial number of a pod's certificate.
    pub(crate) fn serial(&self, pod: &Pod) -> Result<String> {
        let status = self.agent.status()?;
        let all = status["certificates"].as_array().context("no certificates")?;
        let found = all.iter().find(|it| it["identity"] == pod.identity().as_str());
        let serial = found.and_then(|it| it["serial"].as_str());
        serial
            .map(str::to_owned)
            .with_context(|| format!("{} has none", pod.identity()))
    }

    /// How many connections this agent has refused or closed because of a list.
    pub(crate) fn rejections(&self, reporter: &str) -> Result<f64> {
        let labels = [("reporter", reporter)];
        Ok(self
            .agent
            .metrics()?
            .sum("istio_crl_policy_rejections_total", &labels))
    }

    /// Connections of one reporter that ended with these flags, open before or not.
    pub(crate) fn flagged(&self, family: &str, flags: &str) -> Result<f64> {
        let name = format!("istio_tcp_connections_{family}_total");
        Ok(self.agent.metrics()?.sum(&name, &[("response_flags", flags)]))
    }
}

/// As a ConfigMap is replaced: never half written.
fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let next = dir.join(format!("{name}.next"));
    fs::write(&next, text)?;
    fs::rename(&next, dir.join(name))?;
    ensure!(dir.join(name).exists());
    Ok(())
}

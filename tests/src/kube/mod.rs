//! A stand-in for a Kubernetes API server, in this process: what weft's controller, kube-rs and Helm ask of one, and
//! troubles made to order ([`Faults`]). What it answers is held to recordings of a real one (`tests/kube-transcripts`).
//!
//! It is no cluster: nothing runs. Of the controllers it has those whose work weft reads: EndpointSlices, namespaces,
//! definitions, owners. There is no admission and no CEL, and of protobuf only what Helm sends. Tests of weft's Kubernetes parts call it:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = weft_tests::kube::StandIn::start()?;
//! cluster.apply_yaml("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: default}")?;
//! std::fs::write("kubeconfig", cluster.kubeconfig())?;
//! assert_eq!(cluster.list("configmaps", "default").len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! Read [`store`] first (objects and their history), then [`serve`] (a request's way), [`watch`], [`write`].

mod access;
mod answer;
mod clock;
mod controllers;
mod crds;
mod decode;
mod defaults;
mod delete;
mod discovery;
mod events;
mod failure;
mod faults;
mod fields;
mod handle;
mod kinds;
mod logs;
mod managed;
mod object;
mod patch;
mod protobuf;
mod random;
mod read;
mod request;
mod reviews;
mod schema;
mod select;
mod serve;
mod slices;
mod store;
mod structure;
mod tokens;
mod validate;
mod watch;
mod workloads;
mod write;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_rustls::TlsAcceptor;

pub use faults::{Fault, Rule};
pub use handle::Faults;
pub use logs::WantedLog;

/// How a stand-in is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// HTTPS under a certificate of its own, which the kubeconfig carries.
    pub tls: bool,
    /// Time-outs, bookmarks and tokens go by [`StandIn::advance`] alone.
    pub clock_by_hand: bool,
    /// EndpointSlices are made for Services with a selector. Each change of a pod looks at all pods of its namespace:
    /// with thousands of them in one, make the slices yourself.
    pub endpoint_slices: bool,
    /// Deployments and DaemonSets are ready and Jobs are done as soon as they are written, though nothing runs.
    pub workloads_ready: bool,
    /// Pods on a node are ended by whoever is that node ([`StandIn::forget_pod`]), as by a kubelet: what deletes them only
    /// marks them, garbage collection and the end of a namespace included.
    pub nodes_end_pods: bool,
    /// What its certificate is for, besides loopback.
    pub names: Vec<String>,
    /// How long a namespace that was deleted is terminating.
    pub namespace_ends: Duration,
    /// How many changes of each resource are remembered.
    pub history: usize,
    /// Of uids, names, addresses and the order of reordered events.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: false,
            clock_by_hand: false,
            endpoint_slices: true,
            workloads_ready: false,
            nodes_end_pods: false,
            names: Vec::new(),
            namespace_ends: Duration::from_millis(50),
            history: 100_000,
            seed: 1,
        }
    }
}

/// A running stand-in; it ends when this is dropped. To be used from threads and from tasks alike: no call waits for the
/// network, except those that say so.
pub struct StandIn {
    server: Arc<Server>,
    runtime: Option<Runtime>,
}

/// What requests, watches and handles share.
pub(crate) struct Server {
    state: Mutex<store::State>,
    clock: clock::Clock,
    faults: faults::Faults,
    options: Options,
    /// How often each verb was asked of each resource, by its plural.
    asked: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// What reviews of these tokens say, whatever they are.
    reviews: Mutex<BTreeMap<String, serde_json::Value>>,
    address: SocketAddr,
    /// The bearer token of the kubeconfig.
    admin: String,
    /// PEM; empty without TLS.
    certificate: String,
    /// Says what a container has written.
    logs: OnceLock<logs::Source>,
    tls: Option<TlsAcceptor>,
    runtime: Handle,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, store::State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self) -> u64 {
        self.state().revision
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), u64>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StandIn {
    /// On a free port of 127.0.0.1, without TLS, with the namespaces and roles that every cluster has.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// As [`StandIn::start`], but as these say.
    pub fn start_with(options: Options) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on loopback")?;
        Self::start_on(listener, options)
    }

    /// The same on this listener, of another network namespace for one: there, an outage that refuses ([`Faults::refuse`])
    /// does not end, but one that hangs does.
    pub fn start_on(listener: std::net::TcpListener, options: Options) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kube-stand-in")
            .enable_all()
            .build()?;
        let (certificate, tls) = if options.tls {
            certificate(&options.names)?
        } else {
            (String::new(), None)
        };
        let mut state = store::State::new(options.seed, options.history);
        let server = Arc::new(Server {
            admin: format!("stand-in-admin-{}", state.random.uid()),
            state: Mutex::new(state),
            clock: clock::Clock::new(options.clock_by_hand),
            faults: faults::Faults::new(options.seed),
            asked: Mutex::default(),
            reviews: Mutex::default(),
            address: listener.local_addr()?,
            certificate,
            logs: OnceLock::new(),
            tls,
            runtime: runtime.handle().clone(),
            options,
        });
        let started = Self {
            server: server.clone(),
            runtime: Some(runtime),
        };
        for namespace in ["kube-system", "kube-public", "default", "kube-node-lease"] {
            started.namespace(namespace);
        }
        started.apply_yaml(access::BOOTSTRAP)?;
        started.listen_on(listener);
        Ok(started)
    }

    /// Answers on another listener too, of another network namespace for one. It must not block.
    pub fn listen_on(&self, listener: std::net::TcpListener) {
        let server = &self.server;
        server
            .runtime
            .spawn(serve::accept(server.clone(), listener, server.tls.clone()));
    }

    /// The certificate that its clients must believe, in PEM; empty without TLS.
    pub fn certificate(&self) -> &str {
        &self.server.certificate
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// `http://` or `https://`, address and port.
    pub fn url(&self) -> String {
        let scheme = if self.server.options.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.server.address)
    }

    /// The bearer token of somebody who may everything.
    pub fn admin_token(&self) -> &str {
        &self.server.admin
    }

    /// A kubeconfig of somebody who may everything.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_of(&self.server.admin)
    }

    /// A kubeconfig with this bearer token, as [`StandIn::token`] gives it: what it may is what RBAC says.
    pub fn kubeconfig_of(&self, token: &str) -> String {
        let authority = match self.server.certificate.as_str() {
            "" => String::new(),
            pem => format!("    certificate-authority-data: {}\n", STANDARD.encode(pem)),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: stand-in\nclusters:\n- name: stand-in\n  cluster:\n    server: {}\n{authority}users:\n- name: stand-in\n  user:\n    token: {token}\ncontexts:\n- name: stand-in\n  context:\n    cluster: stand-in\n    user: stand-in\n",
            self.url()
        )
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.server.faults.break_connections();
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, so that it may be dropped in a task.
            runtime.shutdown_background();
        }
    }
}

/// A certificate for loopback and these names that is its own authority.
fn certificate(more: &[String]) -> Result<(String, Option<TlsAcceptor>)> {
    let mut names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    names.extend_from_slice(more);
    let own = rcgen::generate_simple_self_signed(names)?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok((own.cert.pem(), Some(TlsAcceptor::from(Arc::new(config)))))
}

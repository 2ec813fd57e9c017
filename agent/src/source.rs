//! Where a role's mesh and its certificates come from: files, or a controller. Called by agents and waypoints.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    feed::{
        FeedError, FileWatch, LocalPod, Lookup, MeshFile, Problem,
        client::{Answered, Client, ClientConfig, FeedState},
    },
    mesh::Mesh,
    net::{chain, tls::TrustBundle},
    svid::{CaClient, FileSources, Sources, SvidStore, TrustFiles},
    telemetry::Metrics,
};

/// How often the roots that the controller gives out are read again.
const ROOTS: Duration = Duration::from_secs(30);
/// The pause after they could not be read at the start.
const AGAIN: Duration = Duration::from_secs(1);

/// Where they come from.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// Files; the agent signs certificates itself.
    Files {
        /// The mesh.
        mesh: PathBuf,
        /// What certificates and trust are made from.
        trust: TrustFiles,
    },
    /// A controller, or any other server of the same protocols.
    Controller(Box<ClientConfig>),
}

impl fmt::Display for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { mesh, .. } => mesh.display().fmt(f),
            Self::Controller(config) => write!(f, "controller {}", config.credentials.address),
        }
    }
}

impl SourceConfig {
    /// As the configuration shows it. No secrets are in it: keys are named by their files.
    pub fn dump(&self) -> serde_json::Value {
        match self {
            Self::Files { mesh, trust } => serde_json::json!({
                "meshFile": mesh,
                "caCert": trust.ca_cert,
                "caKey": trust.ca_key,
                "trustBundle": trust.bundle,
                "crl": trust.crl,
            }),
            Self::Controller(config) => serde_json::json!({
                "controller": config.credentials.address,
                "serverName": config.credentials.server_name,
                "tokenFile": config.credentials.token,
                "cluster": &*config.settings.cluster,
                "trustDomain": config.settings.trust_domain.as_str(),
                "rootNamespace": &*config.settings.root_namespace,
            }),
        }
    }
}

/// A mesh that is new.
pub struct Update {
    /// The mesh.
    pub mesh: Mesh,
    /// The pods that a file gives a namespace.
    pub local_pods: Vec<LocalPod>,
    /// What may not be what was meant.
    pub warnings: Vec<Problem>,
    /// What it answers: dropped once it is in force.
    pub lookups: Vec<Lookup>,
}

impl From<MeshFile> for Update {
    fn from(file: MeshFile) -> Self {
        Self {
            mesh: file.mesh,
            local_pods: file.local_pods,
            warnings: file.warnings,
            lookups: Vec::new(),
        }
    }
}

impl From<Answered> for Update {
    fn from(answered: Answered) -> Self {
        Self {
            mesh: answered.mesh,
            local_pods: Vec::new(),
            warnings: Vec::new(),
            lookups: answered.lookups,
        }
    }
}

/// The source, open.
#[allow(missing_docs, reason = "its parts are not for others")]
pub enum Source {
    Files {
        watch: FileWatch,
        sources: Sources,
        /// Until it is watched.
        trust: Option<Box<FileSources>>,
    },
    Controller {
        client: Client,
        ca: Arc<CaClient>,
        config: Box<ClientConfig>,
    },
}

impl Source {
    /// Opens it. Waits for a controller that has not given out its roots yet: nothing can be done without.
    ///
    /// # Errors
    /// When the files of certificates are not what they should be.
    pub async fn open(config: &SourceConfig, node: &str) -> anyhow::Result<Self> {
        match config {
            SourceConfig::Files { mesh, trust } => {
                let trust = FileSources::load(trust.clone())?;
                Ok(Self::Files {
                    watch: FileWatch::new(mesh, node),
                    sources: trust.sources(),
                    trust: Some(Box::new(trust)),
                })
            }
            SourceConfig::Controller(config) => {
                warn_of_no_cidrs(config);
                Ok(Self::Controller {
                    ca: Arc::new(ca(config).await),
                    client: Client::spawn(ClientConfig::clone(config)),
                    config: config.clone(),
                })
            }
        }
    }

    /// What certificates and trust are made from.
    pub fn sources(&self) -> Sources {
        match self {
            Self::Files { sources, .. } => sources.clone(),
            Self::Controller { ca, .. } => Sources::of(Arc::clone(ca) as _),
        }
    }

    /// Keeps the store's sources as they are given.
    pub fn watch_trust(&mut self, store: SvidStore) {
        match self {
            Self::Files { trust, .. } => {
                if let Some(trust) = trust.take() {
                    tokio::spawn(trust.watch(store));
                }
            }
            Self::Controller { ca, config, .. } => {
                tokio::spawn(watch_roots(Arc::clone(ca), (**config).clone(), store));
            }
        }
    }

    /// How things stand with the controller, if there is one; the metrics say it from now on.
    pub fn state(&self, metrics: &Metrics) -> Option<Arc<Mutex<FeedState>>> {
        let Self::Controller { client, .. } = self else {
            return None;
        };
        let (state, shown) = (client.state(), client.state());
        metrics.watch_controller(Box::new(move || {
            let state = shown.lock().unwrap_or_else(PoisonError::into_inner);
            (state.connected, state.heard)
        }));
        Some(state)
    }

    /// Waits for a new mesh. May be dropped and called again at any time.
    ///
    /// # Errors
    /// When a file is not valid; the mesh in force stays.
    pub async fn changed(&mut self) -> Result<Update, FeedError> {
        match self {
            Self::Files { watch, .. } => watch.changed().await.map(Update::from),
            Self::Controller { client, .. } => Ok(client.changed().await.into()),
        }
    }

    /// Looks for addresses that are dialled and not known; the answer may come later, by [`changed`](Self::changed).
    ///
    /// # Errors
    /// As `changed`.
    pub async fn look(&mut self, lookups: Vec<Lookup>) -> Option<Result<Update, FeedError>> {
        match self {
            Self::Files { watch, .. } => {
                let looked = watch.look().await?;
                Some(looked.map(|file| Update {
                    lookups,
                    ..Update::from(file)
                }))
            }
            Self::Controller { client, .. } => {
                lookups.into_iter().for_each(|lookup| client.look_up(lookup));
                None
            }
        }
    }
}

/// What lies in no network of the cluster is somebody else's, and passed on as it is.
fn warn_of_no_cidrs(config: &ClientConfig) {
    if config.settings.cluster_cidrs.is_empty() {
        tracing::warn!(
            "no --cluster-cidrs: an address that the mesh does not know is dialled in plaintext, also one of a pod that is too young to be known"
        );
    }
}

async fn ca(config: &ClientConfig) -> CaClient {
    loop {
        match CaClient::new(config.credentials.clone()).await {
            Ok(ca) => return ca,
            Err(error) => {
                tracing::warn!(error = chain(&error), "no roots of the mesh yet; trying again");
                sleep(AGAIN).await;
            }
        }
    }
}

/// While a root is replaced, both are given out before the new one signs.
async fn watch_roots(ca: Arc<CaClient>, config: ClientConfig, store: SvidStore) {
    let mut turns = interval(ROOTS);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        turns.tick().await;
        let read = (config.credentials.roots)().await;
        let read = read.map_err(|error| error.to_string());
        let roots = read.and_then(|pem| TrustBundle::from_pem(&pem).map_err(|error| chain(&error)));
        match roots {
            Ok(roots) if known.as_ref() != Some(&roots) => {
                store.replace(Sources {
                    roots: Some(roots.clone()),
                    ..Sources::of(Arc::clone(&ca) as _)
                });
                known = Some(roots);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "the roots of the mesh cannot be read; those in force stay"),
        }
    }
}

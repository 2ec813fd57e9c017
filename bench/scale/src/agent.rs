//! The agent's own end of the feed, in a process of its own: what it takes to keep a mesh of that size.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use weft::{
    feed::client::{Client, ClientConfig, MeshSettings},
    kernel::memory::give_back,
    mesh::{SameNodes, TrustDomain},
    rpc::Credentials,
};

/// As an agent asks.
pub(crate) fn config(credentials: Credentials) -> ClientConfig {
    ClientConfig {
        credentials,
        id: "agent".into(),
        node: "node-0".into(),
        settings: MeshSettings {
            trust_domain: TrustDomain::default(),
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            cluster_cidrs: Vec::new(),
            same_nodes: SameNodes::default(),
        },
        subscribe_http: false,
    }
}

/// Runs until it is ended; says that it has a mesh by a file.
pub(crate) fn run(feed: &str, dir: &Path) -> Result<()> {
    let roots = fs::read(dir.join("roots"))?;
    let config = config(Credentials {
        address: feed.to_owned(),
        server_name: "weft-controller.weft-system.svc".into(),
        roots: Arc::new(move || {
            let roots = roots.clone();
            Box::pin(async move { Ok(roots) })
        }),
        token: dir.join("token"),
        cert: None,
        cluster: "Kubernetes".into(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut client = Client::spawn(config);
        let mut _mesh = client.changed().await.mesh;
        fs::write(dir.join("has-mesh"), "")?;
        // As the agent does beside everything else.
        let mut turns = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                changed = client.changed() => _mesh = changed.mesh,
                _ = turns.tick() => give_back(),
            }
        }
    })
}

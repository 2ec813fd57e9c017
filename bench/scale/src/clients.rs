//! Clients of the feed that answer what they are sent and keep nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use prost::Message as _;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, client::Grpc};
use tonic_prost::ProstCodec;
use weft::rpc::{
    Credentials, connect,
    discovery::{
        ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
    },
};

use crate::cluster::Cluster;

const LARGEST: usize = 256 << 20;
/// Clients that come at once.
const AT_ONCE: usize = 16;
const CHANGE: Duration = Duration::from_secs(30);
const BURST: Duration = Duration::from_secs(300);

/// Whether the controller says that it is ready.
pub(crate) fn is_ready(pages: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(pages).ok()?;
        stream
            .write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

#[derive(Default)]
struct Counts {
    /// Clients that have everything.
    complete: AtomicUsize,
    /// Bytes of the first push to one of them.
    first: AtomicU64,
    /// Resources that came later, to all, and responses.
    later: AtomicU64,
    responses: AtomicU64,
}

pub(crate) struct Clients {
    /// Ends them.
    _runtime: Runtime,
    wanted: usize,
    counts: Arc<Counts>,
    /// What the first client hears of: when, and how many resources.
    heard: mpsc::Receiver<(Instant, usize)>,
}

impl Clients {
    pub(crate) fn start(feed: &str, cluster: &Cluster, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let counts = Arc::<Counts>::default();
        let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let (hear, heard) = mpsc::channel(1024);
        let dir = std::env::temp_dir().join(format!("weft-scale-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let roots = cluster.roots()?;
        for number in 0..count {
            let token = dir.join(number.to_string());
            std::fs::write(&token, cluster.token(number)?)?;
            let roots = roots.clone();
            let credentials = Credentials {
                address: feed.to_owned(),
                server_name: "weft-controller.weft-system.svc".into(),
                roots: Arc::new(move || {
                    let roots = roots.clone().into_bytes();
                    Box::pin(async move { Ok(roots) })
                }),
                token,
                cert: None,
                cluster: "Kubernetes".into(),
            };
            let (counts, places) = (Arc::clone(&counts), Arc::clone(&places));
            let hear = (number == 0).then(|| hear.clone());
            runtime.spawn(async move {
                if let Err(error) = client(&credentials, number, &counts, &places, hear).await {
                    eprintln!("client {number}: {error:#}");
                }
            });
        }
        Ok(Self {
            _runtime: runtime,
            wanted: count,
            counts,
            heard,
        })
    }

    /// The bytes of one client's first push, once all have it.
    pub(crate) fn wait_for_all(&self, limit: Duration) -> Result<u64> {
        let since = Instant::now();
        while self.counts.complete.load(Relaxed) < self.wanted {
            let complete = self.counts.complete.load(Relaxed);
            ensure!(
                since.elapsed() < limit,
                "{complete} of {} clients have everything",
                self.wanted
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self.counts.first.load(Relaxed))
    }

    /// How long each of so many changes took to reach the first client.
    pub(crate) fn follow(&mut self, cluster: &Cluster, changes: usize) -> Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(changes);
        for turn in 0..changes {
            while self.heard.try_recv().is_ok() {}
            let began = Instant::now();
            cluster.change(turn)?;
            loop {
                if let Ok((at, _)) = self.heard.try_recv() {
                    latencies.push(at.saturating_duration_since(began));
                    break;
                }
                ensure!(began.elapsed() < CHANGE, "change {turn} never arrived");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(latencies)
    }

    /// How long so many changes at once take until the first client has heard of all of them, and until everybody has.
    pub(crate) fn follow_burst(&mut self, cluster: &Cluster, pods: usize) -> Result<(Duration, Duration)> {
        while self.heard.try_recv().is_ok() {}
        let before = self.counts.later.load(Relaxed);
        let changes = cluster.changes(pods);
        let began = Instant::now();
        changes.into_iter().try_for_each(|pod| cluster.api.apply(pod))?;
        let (mut heard, mut first) = (0, None);
        let wanted = (pods * self.wanted) as u64;
        while first.is_none() || self.counts.later.load(Relaxed) - before < wanted {
            while let Ok((at, resources)) = self.heard.try_recv() {
                heard += resources;
                if heard >= pods {
                    first.get_or_insert(at.saturating_duration_since(began));
                }
            }
            ensure!(began.elapsed() < BURST, "{heard} of {pods} changes have arrived");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((first.unwrap_or_default(), began.elapsed()))
    }

    pub(crate) fn resources_per_change(&self) -> f64 {
        let responses = self.counts.responses.load(Relaxed).max(1);
        self.counts.later.load(Relaxed) as f64 / responses as f64
    }
}

async fn client(
    credentials: &Credentials,
    number: usize,
    counts: &Counts,
    places: &tokio::sync::Semaphore,
    hear: Option<mpsc::Sender<(Instant, usize)>>,
) -> Result<()> {
    let mut place = Some(places.acquire().await?);
    let kinds = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
    let (requests, mut responses) = subscribe(credentials, &kinds, number).await?;
    let mut first = 0;
    while let Some(response) = responses.message().await.context("the stream broke")? {
        if first < 2 {
            first += 1;
            counts.first.fetch_max(response.encoded_len() as u64, Relaxed);
            if first == 2 {
                counts.complete.fetch_add(1, Relaxed);
                place = None;
            }
        } else {
            counts.responses.fetch_add(1, Relaxed);
            counts.later.fetch_add(response.resources.len() as u64, Relaxed);
            if let Some(hear) = &hear {
                let _ = hear.send((Instant::now(), response.resources.len())).await;
            }
        }
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(answer).await?;
    }
    drop(place);
    Ok(())
}

/// A stream on which everything of these types is asked for.
pub(crate) async fn subscribe(
    credentials: &Credentials,
    kinds: &[&str],
    number: usize,
) -> Result<(
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
)> {
    let channel = connect(credentials).await?;
    let (requests, queue) = mpsc::channel(8);
    for kind in kinds {
        requests.send(subscription(kind, number)).await?;
    }
    let mut request = tonic::Request::new(ReceiverStream::new(queue));
    credentials.sign(request.metadata_mut()).await?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(LARGEST);
    grpc.ready().await?;
    let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
    let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let responses = grpc.streaming(request, path, codec).await?.into_inner();
    Ok((requests, responses))
}

fn subscription(kind: &str, number: usize) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: format!("client-{number}"),
            ..Node::default()
        }),
        type_url: kind.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

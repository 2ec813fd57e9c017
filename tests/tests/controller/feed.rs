//! A client of the feed that keeps what it is sent as it came.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, client::Grpc};
use tonic_prost::ProstCodec;
use weft::rpc::{
    Credentials, connect,
    discovery::{
        ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
    },
};

/// Names and contents, the kind before the name.
pub(crate) type Resources = BTreeMap<String, Vec<u8>>;

/// A stream to a controller.
pub(crate) struct Feed {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(crate) resources: Resources,
    /// What came since it was looked at last: the names of each response, those that are gone with a `-`.
    pub(crate) pushes: Vec<Vec<String>>,
}

impl Feed {
    /// Asks for everything, and has it.
    pub(crate) async fn open(credentials: &Credentials) -> Result<Self> {
        let channel = connect(credentials).await?;
        let (requests, queue) = mpsc::channel(8);
        for kind in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            let subscription = DeltaDiscoveryRequest {
                node: Some(Node {
                    id: "test".to_owned(),
                    ..Node::default()
                }),
                type_url: kind.to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(subscription).await?;
        }
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        credentials.sign(request.metadata_mut()).await?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await?;
        let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let responses = grpc.streaming(request, path, codec).await?.into_inner();
        let mut feed = Self {
            requests,
            responses,
            resources: Resources::new(),
            pushes: Vec::new(),
        };
        for _ in 0..2 {
            feed.next().await?;
        }
        feed.pushes.clear();
        Ok(feed)
    }

    async fn next(&mut self) -> Result<()> {
        let response = self.responses.message().await?.context("the stream ended")?;
        let kind = response
            .type_url
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut names = Vec::new();
        for it in response.resources {
            names.push(it.name.clone());
            let value = it.resource.map(|it| it.value.to_vec()).unwrap_or_default();
            self.resources.insert(format!("{kind} {}", it.name), value);
        }
        for name in response.removed_resources {
            self.resources.remove(&format!("{kind} {name}"));
            names.push(format!("-{name}"));
        }
        self.pushes.push(names);
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await?;
        Ok(())
    }

    /// Listens until what it has satisfies `check`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        check: impl Fn(&Resources) -> bool,
    ) -> Result<()> {
        let heard = async {
            while !check(&self.resources) {
                self.next().await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        match timeout(limit, heard).await {
            Ok(heard) => heard,
            Err(_) => bail!("waited in vain for {what}; there is {:?}", self.resources.keys()),
        }
    }

    /// Listens until nothing has come for so long.
    pub(crate) async fn settle(&mut self, quiet: Duration) -> Result<()> {
        while let Ok(heard) = timeout(quiet, self.next()).await {
            heard?;
        }
        Ok(())
    }
}

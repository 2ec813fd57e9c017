//! A certificate in place of a token, over real TLS.

use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, client, metadata::MetadataMap};

use super::*;
use crate::{
    feed::store::Kind as Resources,
    net::tls::TrustBundle,
    rpc::{
        CertFiles, Clients, Credentials, ServerTls, connect,
        discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        serve,
    },
    svid::{CertificateAuthority as _, LocalCa},
};

const NAME: &str = "weft-controller.weft-system.svc";
const AGENT: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-agent";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Tokens are the names of service accounts; what has no `/` is refused.
struct Named;

impl Reviewer for Named {
    fn review<'a>(&'a self, token: &'a str, _: IpAddr) -> Reviewing<'a> {
        Box::pin(async move {
            let refused = || tokens::TokenError::Refused("nobody knows it".into());
            let (namespace, account) = token.split_once('/').ok_or_else(refused)?;
            Ok(caller(namespace, account))
        })
    }
}

fn ca(trust_domain: &str) -> LocalCa {
    let (cert, key) = LocalCa::create(&trust_domain.parse().unwrap()).unwrap();
    of_pem(&cert, &key)
}

fn of_pem(cert: &str, key: &str) -> LocalCa {
    let (cert, key) = (cert.as_bytes(), key.as_bytes());
    LocalCa::from_pem(cert, key, "tls.crt".as_ref(), "tls.key".as_ref()).unwrap()
}

struct World {
    ca: LocalCa,
    tls: ServerTls,
    address: String,
    dir: PathBuf,
    shutdown: CancellationToken,
}

impl World {
    async fn new(name: &str) -> Self {
        Self::of(name, ca("cluster.local")).await
    }

    async fn of(name: &str, ca: LocalCa) -> Self {
        let cert = ca.server_cert(&[NAME.to_owned()]).unwrap();
        let tls = ServerTls::new(cert.chain, cert.key, Some(clients(ca.trust()))).unwrap();
        let services = Services {
            reviewer: Arc::new(Named),
            ..services()
        };
        services.waypoints.update(None);
        let store = Store::default();
        store.update([]);
        let services = Services {
            feed: Server::new(store),
            ..services
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, tls.clone(), Arc::new(services), shutdown.clone()));
        let dir = std::env::temp_dir().join(format!("weft-certificates-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self {
            ca,
            tls,
            address,
            dir,
            shutdown,
        }
    }

    /// A certificate of a CA in files, and a token; each where there is one.
    fn credentials(&self, cert: Option<(&LocalCa, &str)>, token: Option<&str>) -> Credentials {
        let files = CertFiles {
            chain: self.dir.join("cert.pem"),
            key: self.dir.join("key.pem"),
        };
        if let Some((ca, id)) = cert {
            let (csr, key) = csr(id);
            let signed = ca.certify(&csr).unwrap();
            let chain: String = signed.chain.iter().map(crate::net::tls::to_pem).collect();
            std::fs::write(&files.chain, chain).unwrap();
            std::fs::write(&files.key, key).unwrap();
        }
        std::fs::write(self.dir.join("token"), token.unwrap_or_default()).unwrap();
        let roots = self.ca.trust().to_pem();
        Credentials {
            address: self.address.clone(),
            server_name: NAME.into(),
            roots: Arc::new(move || {
                let roots = roots.clone().into_bytes();
                Box::pin(async move { Ok(roots) })
            }),
            token: self.dir.join("token"),
            cert: cert.map(|_| files),
            cluster: "Kubernetes".into(),
        }
    }

    /// Asks for the mesh: `None` where it is told, or how it is refused. A handshake that fails is no answer at all.
    async fn hears(
        &self,
        cert: Option<(&LocalCa, &str)>,
        token: Option<&str>,
    ) -> Result<Option<Code>, String> {
        let credentials = self.credentials(cert, token);
        let mut metadata = MetadataMap::new();
        if token.is_some() {
            credentials.sign(&mut metadata).await.unwrap();
        }
        Self::is_heard_by(&credentials, metadata).await
    }

    async fn is_heard_by(credentials: &Credentials, metadata: MetadataMap) -> Result<Option<Code>, String> {
        let said = |error: &dyn std::error::Error| chain(error);
        let channel = connect(credentials).await.map_err(|error| said(&error))?;
        let (requests, queue) = tokio::sync::mpsc::channel(1);
        let subscription = DeltaDiscoveryRequest {
            type_url: Resources::Address.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(subscription).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        *request.metadata_mut() = metadata;
        let mut client = client::Grpc::new(channel);
        client.ready().await.map_err(|error| said(&error))?;
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
        let refused = |status: Status| match status.metadata().is_empty() && status.code() == Code::Unknown {
            true => Err(status.to_string()),
            false => Ok(Some(status.code())),
        };
        match client.streaming(request, path, codec).await {
            Err(status) => refused(status),
            Ok(responses) => match responses.into_inner().message().await {
                Ok(_) => Ok(None),
                Err(status) => refused(status),
            },
        }
    }

    /// Asks for a certificate of the same name.
    async fn is_signed_for(
        &self,
        cert: Option<(&LocalCa, &str)>,
        token: Option<&str>,
        whom: &str,
    ) -> Option<Code> {
        let credentials = self.credentials(cert, token);
        let channel = connect(&credentials).await.unwrap();
        let mut request = tonic::Request::new(CertificateRequest {
            csr: csr(whom).0,
            ..CertificateRequest::default()
        });
        if token.is_some() {
            credentials.sign(request.metadata_mut()).await.unwrap();
        }
        let mut client = client::Grpc::new(channel);
        client.ready().await.unwrap();
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(CREATE_PATH);
        client
            .unary(request, path, codec)
            .await
            .err()
            .map(|status| status.code())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn clients(trust: TrustBundle) -> Clients {
    Clients {
        trust,
        trust_domain: TrustDomain::default(),
    }
}

/// A request and its key, as PEM.
fn csr(id: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap();
    (request.pem().unwrap(), key.serialize_pem())
}

#[tokio::test]
async fn an_agents_certificate_is_enough_to_hear_the_mesh() {
    let world = World::new("enough").await;
    let agent = Some((&world.ca, AGENT));
    assert_eq!(world.hears(agent, None).await, Ok(None));
    // A token still is.
    assert_eq!(world.hears(None, Some("weft-system/weft-agent")).await, Ok(None));
    assert_eq!(world.hears(agent, Some("weft-system/weft-agent")).await, Ok(None));
}

#[tokio::test]
async fn whoever_proves_nothing_is_nobody() {
    let world = World::new("nobody").await;
    assert_eq!(world.hears(None, None).await, Ok(Some(Code::Unauthenticated)));
    // What is wrong with a token no certificate mends.
    let agent = Some((&world.ca, AGENT));
    assert_eq!(
        world.hears(agent, Some("bad")).await,
        Ok(Some(Code::Unauthenticated))
    );
    // Nor what is no token at all where one belongs.
    let credentials = world.credentials(agent, None);
    for odd in ["Basic d2VmdA==", "Bearer", "weft-system/weft-agent", ""] {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", odd.parse().unwrap());
        let heard = World::is_heard_by(&credentials, metadata).await;
        assert_eq!(heard, Ok(Some(Code::Unauthenticated)), "{odd:?}");
    }
}

#[tokio::test]
async fn a_workloads_certificate_is_no_more_than_its_token() {
    let world = World::new("workload").await;
    let denied = Ok(Some(Code::PermissionDenied));
    assert_eq!(world.hears(Some((&world.ca, CART)), None).await, denied);
    assert_eq!(world.hears(None, Some("shop/cart")).await, denied);
    // Nor does the name of an agent in another namespace help.
    let other = "spiffe://cluster.local/ns/shop/sa/weft-agent";
    assert_eq!(world.hears(Some((&world.ca, other)), None).await, denied);
    // A token says who calls, also beside an agent's certificate.
    assert_eq!(
        world.hears(Some((&world.ca, AGENT)), Some("shop/cart")).await,
        denied
    );
}

#[tokio::test]
async fn a_certificate_of_another_root_ends_the_handshake() {
    let world = World::new("root").await;
    let other = ca("cluster.local");
    let refused = world.hears(Some((&other, AGENT)), None).await.unwrap_err();
    assert!(refused.contains("fatal alert"), "{refused}");
    // Nor is one of our root taken that is of another trust domain.
    let elsewhere = "spiffe://elsewhere/ns/weft-system/sa/weft-agent";
    let refused = world.hears(Some((&world.ca, elsewhere)), None).await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn an_expired_certificate_ends_the_handshake() {
    let (root, root_key) = LocalCa::create(&TrustDomain::default()).unwrap();
    let world = World::of("expired", of_pem(&root, &root_key)).await;
    let root_key = rcgen::KeyPair::from_pem(&root_key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root, root_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let (now, hour) = (std::time::SystemTime::now(), std::time::Duration::from_secs(3600));
    // How long ago it has ended; more than clocks may be apart.
    for (ago, expect) in [(hour, Err(())), (std::time::Duration::ZERO, Ok(None))] {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![rcgen::SanType::URI(AGENT.try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now - 2 * hour).into();
        params.not_after = (now - ago).into();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let files = CertFiles {
            chain: world.dir.join("cert.pem"),
            key: world.dir.join("key.pem"),
        };
        std::fs::write(&files.chain, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let credentials = Credentials {
            cert: Some(files),
            ..world.credentials(None, None)
        };
        let heard = World::is_heard_by(&credentials, MetadataMap::new()).await;
        assert_eq!(heard.map_err(drop), expect, "{ago:?} ago");
    }
}

#[tokio::test]
async fn no_certificate_is_signed_for_a_certificate() {
    let world = World::new("sign").await;
    let agent = Some((&world.ca, AGENT));
    for whom in [AGENT, CART] {
        assert_eq!(
            world.is_signed_for(agent, None, whom).await,
            Some(Code::Unauthenticated)
        );
    }
    let cart = Some((&world.ca, CART));
    assert_eq!(
        world.is_signed_for(cart, None, CART).await,
        Some(Code::Unauthenticated)
    );
    // With a token it is what the token may have, whatever the certificate says.
    assert_eq!(world.is_signed_for(agent, Some("shop/cart"), CART).await, None);
    let taken = world.is_signed_for(agent, Some("shop/cart"), AGENT).await;
    assert_eq!(taken, Some(Code::InvalidArgument));
}

#[tokio::test]
async fn who_was_let_in_by_a_root_that_is_gone_has_to_come_again() {
    let world = World::new("gone").await;
    let credentials = world.credentials(Some((&world.ca, AGENT)), None);
    let channel = connect(&credentials).await.unwrap();
    let (requests, queue) = tokio::sync::mpsc::channel(1);
    let subscription = DeltaDiscoveryRequest {
        type_url: Resources::Address.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(subscription).await.unwrap();
    let mut client = client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
    let request = tonic::Request::new(ReceiverStream::new(queue));
    let mut responses = client.streaming(request, path, codec).await.unwrap().into_inner();
    responses.message().await.unwrap().unwrap();
    let cert = world.ca.server_cert(&[NAME.to_owned()]).unwrap();
    let other = ca("cluster.local");
    world
        .tls
        .replace(cert.chain, cert.key, Some(clients(other.trust())))
        .unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), responses.message()).await;
    assert!(!matches!(ended.expect("the stream goes on"), Ok(Some(_))));
    assert!(world.hears(Some((&world.ca, AGENT)), None).await.is_err());
    assert_eq!(world.hears(Some((&other, AGENT)), None).await, Ok(None));
}

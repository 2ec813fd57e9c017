//! What strangers may have of the server.

use std::time::Instant;

use rustls::pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::svid::LocalCa;

type Sender = hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>;

const NAME: &str = "weft-controller.weft-system.svc";

/// Accepts calls of `/good`, and no others.
struct Door;

impl Handler for Door {
    fn call(self: Arc<Self>, request: http::Request<Incoming>) -> Answer {
        Box::pin(async move {
            match request.uri().path() {
                "/good" => http::Response::new(tonic::body::Body::empty()),
                _ => Status::unauthenticated("nobody knows it").into_http(),
            }
        })
    }
}

struct World {
    address: SocketAddr,
    roots: String,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let (cert, key) = LocalCa::create(&TrustDomain::default()).unwrap();
        let ca = LocalCa::from_pem(
            cert.as_bytes(),
            key.as_bytes(),
            "tls.crt".as_ref(),
            "tls.key".as_ref(),
        );
        let own = ca.unwrap().server_cert(&[NAME.to_owned()]).unwrap();
        let tls = ServerTls::new(own.chain, own.key, None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve_within(
            limits,
            listener,
            tls,
            Arc::new(Door),
            shutdown.clone(),
        ));
        Self {
            address,
            roots: cert,
            shutdown,
            server,
        }
    }

    /// A connection of its own, that is not opened again when it ends.
    async fn connect(&self) -> Sender {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.roots.as_bytes()).unwrap())
            .unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector.connect(NAME.try_into().unwrap(), tcp).await.unwrap();
        let shaking = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
        let (sender, connection) = shaking.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// A connection that says nothing: whether it is let in, which shows by not being closed.
    async fn stands(&self, tcp: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(300), tcp.read_u8()).await.is_err()
    }
}

async fn calls(sender: &mut Sender, path: &str) -> bool {
    let request = http::Request::post(format!("https://{NAME}{path}"));
    let request = request.body(http_body_util::Empty::new()).unwrap();
    sender.ready().await.is_ok() && sender.send_request(request).await.is_ok()
}

#[tokio::test]
async fn one_address_leaves_places_for_others() {
    let limits = Limits {
        connections: 6,
        of_address: 2,
        unproven: Duration::from_secs(60),
    };
    let world = World::new(limits).await;
    // While there are enough, anybody may have many.
    let mut own = Vec::new();
    for _ in 0..4 {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        if world.stands(&mut tcp).await {
            own.push(tcp);
        }
    }
    assert_eq!(own.len(), 3, "half of the places, and no more");
    // Another address still is let in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(world.address).await.unwrap();
    assert!(world.stands(&mut other).await);
    // And what ends leaves its place.
    own.clear();
    drop(other);
    let since = Instant::now();
    loop {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        if world.stands(&mut tcp).await {
            break;
        }
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "the places are not given back"
        );
    }
}

#[tokio::test]
async fn a_connection_without_a_call_that_is_accepted_is_ended() {
    let limits = Limits {
        unproven: Duration::from_secs(2),
        ..LIMITS
    };
    let world = World::new(limits).await;
    let (mut good, mut bad) = (world.connect().await, world.connect().await);
    assert!(calls(&mut good, "/good").await);
    let since = Instant::now();
    // A client that is refused goes on trying: that keeps no connection.
    while calls(&mut bad, "/bad").await {
        assert!(since.elapsed() < Duration::from_secs(10), "it is not ended");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(since.elapsed() >= Duration::from_secs(1), "it had no time");
    assert!(calls(&mut good, "/bad").await && calls(&mut good, "/good").await);
}

#[tokio::test]
async fn who_does_not_shake_hands_does_not_hold_up_the_end() {
    let world = World::new(LIMITS).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    assert!(world.stands(&mut tcp).await);
    world.shutdown.cancel();
    timeout(DRAIN, world.server).await.expect("it hangs").unwrap();
}

//! Real handshakes over loopback: who gets in, who does not, and what each side says about it.

mod trust;

use std::{sync::Arc, time::Duration};

use rcgen::SanType;
use rustls::{ClientConfig, sign::CertifiedKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{sample::Ca, *};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/stock";
const SOON: Duration = Duration::from_secs(5);

fn server_of(sessions: &Sessions, cert: Arc<CertifiedKey>) -> Server {
    super::server(sessions, cert, &["cluster.local".parse().unwrap()]).unwrap()
}

fn client_of(sessions: &Sessions, cert: Arc<CertifiedKey>) -> Client {
    super::client(sessions, cert, [SERVER.parse().unwrap()].into()).unwrap()
}

fn server(ca: &Ca) -> Server {
    server_of(&ca.sessions(), ca.svid(SERVER))
}

fn client(ca: &Ca, cert: Arc<CertifiedKey>) -> Client {
    client_of(&ca.sessions(), cert)
}

/// Both sides of a handshake, and a byte each way where both are content.
async fn handshake(
    client: Client,
    server: Server,
) -> (Result<SpiffeId, TlsError>, Result<SpiffeId, TlsError>) {
    let (dialled, served) = sessions(client, server).await;
    let peer = |session: Arc<Session>| session.peer.clone();
    (dialled.map(peer), served.map(peer))
}

/// The same, and what was opened.
async fn sessions(
    client: Client,
    server: Server,
) -> (Result<Arc<Session>, TlsError>, Result<Arc<Session>, TlsError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let served = async {
        let (mut stream, peer) = accept(listener.accept().await.unwrap().0, server, SOON).await?;
        stream.write_all(b"x").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(peer)
    };
    let dialled = async {
        let tcp = TcpStream::connect(addr).await.unwrap();
        let (mut stream, peer) = connect(tcp, client, addr.ip(), SOON).await?;
        // Where the server refused, the first read says so.
        stream.read_u8().await.map_err(TlsError::Handshake)?;
        Ok(peer)
    };
    tokio::join!(dialled, served)
}

fn text(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(err.source(), |&err| err.source());
    causes.fold(err.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// The server refuses the client, and its error has `expect` in it.
#[track_caller]
fn refused(served: Result<SpiffeId, TlsError>, identity: bool, expect: &str) {
    let err = served.unwrap_err();
    assert_eq!(err.is_identity(), identity, "{err:?}");
    assert!(text(&err).contains(expect), "{}", text(&err));
}

#[tokio::test]
async fn both_sides_learn_who_is_there() {
    let ca = Ca::new();
    let (dialled, served) = handshake(client(&ca, ca.svid(CLIENT)), server(&ca)).await;
    assert_eq!(dialled.unwrap().as_str(), SERVER);
    assert_eq!(served.unwrap().as_str(), CLIENT);
}

#[tokio::test]
async fn chains_of_other_key_types_and_through_an_intermediate_are_taken() {
    for root in [
        Ca::with_key(&rcgen::PKCS_RSA_SHA256),
        Ca::with_key(&rcgen::PKCS_ECDSA_P384_SHA384),
        Ca::new(),
    ] {
        let ca = root.intermediate();
        let (dialled, served) = handshake(client(&ca, ca.svid(CLIENT)), server(&ca)).await;
        assert_eq!(
            (dialled.unwrap().as_str(), served.unwrap().as_str()),
            (SERVER, CLIENT)
        );
    }
}

#[tokio::test]
async fn a_bundle_of_two_roots_takes_both() {
    let (old, new) = (Ca::new(), Ca::new());
    let both = Sessions::new(old.bundle().merged(&new.bundle()).into());
    let (dialler, server) = (
        client_of(&both, old.svid(CLIENT)),
        server_of(&both, new.svid(SERVER)),
    );
    let (dialled, served) = handshake(dialler, server).await;
    assert!(dialled.is_ok() && served.is_ok());
}

#[tokio::test]
async fn a_server_of_another_service_account_is_refused_by_name() {
    let ca = Ca::new();
    let expected = ["spiffe://cluster.local/ns/shop/sa/pay".parse().unwrap()];
    let config = super::client(&ca.sessions(), ca.svid(CLIENT), expected.into()).unwrap();
    let (dialled, served) = handshake(config, server(&ca)).await;
    let err = dialled.unwrap_err();
    assert!(err.is_identity());
    let line = text(&err);
    assert!(
        line.contains(&format!(
            "proved to be {SERVER}, expected spiffe://cluster.local/ns/shop/sa/pay"
        )),
        "{line}"
    );
    assert!(served.is_err());
}

#[tokio::test]
async fn a_client_accepts_any_of_several_identities() {
    let ca = Ca::new();
    let accept = [
        "spiffe://cluster.local/ns/shop/sa/pay".parse().unwrap(),
        SERVER.parse().unwrap(),
    ];
    let config = super::client(&ca.sessions(), ca.svid(CLIENT), accept.into()).unwrap();
    assert_eq!(handshake(config, server(&ca)).await.0.unwrap().as_str(), SERVER);
}

#[tokio::test]
async fn a_server_of_a_foreign_ca_is_refused_but_that_is_not_about_identity() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (dialled, _) = handshake(client(&ours, ours.svid(CLIENT)), server(&theirs)).await;
    assert!(!dialled.unwrap_err().is_identity());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let client = changed(client(&ca, ca.svid(CLIENT)), |config| {
        config.client_auth_cert_resolver = Arc::new(NoCert);
    });
    let (dialled, served) = handshake(client, server(&ca)).await;
    refused(served, false, "sent no certificates");
    assert!(dialled.is_err());
}

/// A client that does something that ours never do.
fn changed(client: Client, change: impl FnOnce(&mut ClientConfig)) -> Client {
    let mut config = ClientConfig::clone(&client.config);
    change(&mut config);
    Client {
        config: config.into(),
        ..client
    }
}

#[derive(Debug)]
struct NoCert;

impl rustls::client::ResolvesClientCert for NoCert {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_of_a_foreign_ca_is_refused() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let (_, served) = handshake(client(&ca, foreign.svid(CLIENT)), server(&ca)).await;
    refused(served, false, "");
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let ca = Ca::new();
    let cert = ca.svid("spiffe://elsewhere.example/ns/shop/sa/cart");
    let (dialled, served) = handshake(client(&ca, cert), server(&ca)).await;
    refused(
        served,
        true,
        "spiffe://elsewhere.example/ns/shop/sa/cart is not of a trust domain",
    );
    assert!(dialled.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Ca::new();
    let cert = ca.leaf(&[SanType::URI(CLIENT.try_into().unwrap())], |params| {
        params.not_after = rcgen::date_time_ymd(2024, 1, 1);
    });
    let (_, served) = handshake(client(&ca, cert), server(&ca)).await;
    refused(served, false, "expired");
}

#[tokio::test]
async fn names_that_are_not_one_spiffe_uri_are_refused() {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = || SanType::DnsName("cart.shop".try_into().unwrap());
    let ca = Ca::new();
    for (names, expect) in [
        (vec![uri(CLIENT), uri(SERVER)], "more than one URI"),
        (vec![dns()], "no URI"),
        (
            vec![uri("https://cluster.local/ns/shop/sa/cart")],
            "not of the form",
        ),
        (vec![uri("spiffe://cluster.local/vm/1")], "not of the form"),
    ] {
        let (_, served) = handshake(client(&ca, ca.leaf(&names, |_| {})), server(&ca)).await;
        refused(served, true, expect);
    }
    let (_, served) = handshake(client(&ca, ca.leaf(&[dns(), uri(CLIENT)], |_| {})), server(&ca)).await;
    assert_eq!(served.unwrap().as_str(), CLIENT);
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_h2_is_refused() {
    let ca = Ca::new();
    for (alpn, expect) in [
        (vec![], "did not agree on ALPN"),
        (vec![b"http/1.1".to_vec()], ""),
    ] {
        let client = changed(client(&ca, ca.svid(CLIENT)), |config| {
            config.alpn_protocols = alpn;
        });
        let (_, served) = handshake(client, server(&ca)).await;
        refused(served, false, expect);
    }
}

#[tokio::test]
async fn a_client_hello_has_no_sni_and_offers_aes_128_and_the_hybrid_exchange_first() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = client(&ca, ca.svid(CLIENT));
    let dialled = tokio::spawn(async move {
        connect(TcpStream::connect(addr).await.unwrap(), config, addr.ip(), SOON)
            .await
            .map(|_| ())
    });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut hello = rustls::server::Acceptor::default();
    let accepted = loop {
        let mut bytes = vec![0; 4096];
        let read = tcp.read(&mut bytes).await.unwrap();
        hello.read_tls(&mut &bytes[..read]).unwrap();
        if let Some(accepted) = hello.accept().unwrap() {
            break accepted;
        }
    };
    let hello = accepted.client_hello();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
    assert_eq!(
        hello.cipher_suites()[0],
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    );
    assert_eq!(
        hello.named_groups().unwrap()[0],
        rustls::NamedGroup::X25519MLKEM768
    );
    drop(tcp);
    assert!(dialled.await.unwrap().is_err());
}

/// A ClientHello of TLS 1.2: no `supported_versions`, one old cipher suite.
const CLIENT_HELLO_12: &[u8] = &[
    0x16, 0x03, 0x01, 0x00, 0x3f, // record: handshake, 63 bytes
    0x01, 0x00, 0x00, 0x3b, 0x03, 0x03, // ClientHello, 59 bytes, TLS 1.2
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31, 32,   // random
    0x00, // no session id
    0x00, 0x02, 0xc0, 0x2b, // ECDHE-ECDSA-AES128-GCM-SHA256
    0x01, 0x00, // no compression
    0x00, 0x10, // extensions, 16 bytes
    0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d, // supported_groups: x25519
    0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03, // signature_algorithms: ecdsa_secp256r1_sha256
];

#[tokio::test]
async fn a_client_of_tls_1_2_gets_an_alert() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let served = tokio::spawn(accept(listener.accept().await.unwrap().0, server(&ca), SOON));
    tcp.write_all(CLIENT_HELLO_12).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    // A fatal alert: protocol_version (70).
    assert_eq!(answer[0], 0x15);
    assert_eq!(answer[5..7], [2, 70]);
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn garbage_and_silence_end_the_handshake() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut garbage = TcpStream::connect(addr).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let served = accept(listener.accept().await.unwrap().0, server(&ca), SOON).await;
    assert!(matches!(served, Err(TlsError::Handshake(_))));

    let _silent = TcpStream::connect(addr).await.unwrap();
    let served = accept(
        listener.accept().await.unwrap().0,
        server(&ca),
        Duration::from_millis(20),
    )
    .await;
    assert!(matches!(served, Err(TlsError::TimedOut(_))));
}

#[test]
fn a_bundle_needs_a_certificate() {
    for pem in [
        "",
        "hello",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(
            matches!(
                TrustBundle::from_pem(pem.as_bytes()),
                Err(TlsError::Unusable { .. })
            ),
            "{pem}"
        );
    }
}

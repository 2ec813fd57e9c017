//! Key sets of servers on real sockets: late, wrong, rotated, behind TLS.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    mesh::http::{Jwks, JwtRule},
    waypoint::jwt::{
        Authenticator,
        tests::{NOW, claims, now, request, rule, rules, signer::Signer},
    },
};

/// As fast as a test.
const PACE: Pace = Pace {
    every: Duration::from_millis(20),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(10),
    soonest: Duration::from_millis(1),
};
/// So slow that only what requests ask for is fetched.
const SLOW: Pace = Pace {
    every: Duration::from_secs(3600),
    ..PACE
};

#[test]
fn pauses_double_and_are_spread() {
    let check = |failures, least: f64, most: f64| {
        for draw in [0, 1, 512, u64::MAX] {
            let pause = Pace::default().pause(failures, draw).as_secs_f64();
            assert!((least..=most).contains(&pause), "{failures} {draw}: {pause}");
        }
    };
    check(0, 600.0, 1200.0);
    check(1, 0.5, 1.0);
    check(2, 1.0, 2.0);
    check(5, 8.0, 16.0);
    check(9, 128.0, 256.0);
    check(10, 150.0, 300.0);
    check(u32::MAX, 150.0, 300.0);
    assert_ne!(Pace::default().pause(0, 0), Pace::default().pause(0, 512));
}

/// A server that answers every connection with what it has now.
struct Server {
    addr: SocketAddr,
    answer: watch::Sender<String>,
    answered: watch::Receiver<usize>,
}

impl Server {
    async fn new(answer: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (answer, answers) = watch::channel(answer);
        let (count, answered) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let answer = answers.borrow().clone();
                match &tls {
                    None => respond(tcp, &answer).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(tcp).await {
                            respond(stream, &answer).await;
                        }
                    }
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Self {
            addr,
            answer,
            answered,
        }
    }

    /// Waits until what it has now was given to somebody who came after it.
    async fn answered_again(&mut self) {
        let since = *self.answered.borrow() + 2;
        self.answered.wait_for(|count| *count >= since).await.unwrap();
    }
}

async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    assert!(
        head.starts_with(b"GET /keys?x=1 HTTP/1.1\r\n"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn keys(keys: &[Value]) -> String {
    ok(&json!({ "keys": keys }).to_string())
}

fn authenticator(pace: Pace, roots: Vec<CertificateDer<'static>>) -> Authenticator {
    let mut fetcher = Fetcher::new(Handle::current(), roots).unwrap();
    fetcher.pace = pace;
    Authenticator::new(fetcher)
}

fn rule_of(server: &Server, scheme: &str) -> JwtRule {
    let port = server.addr.port();
    rule(Jwks::Url(format!("{scheme}://localhost:{port}/keys?x=1").into()))
}

fn judge(authenticator: &Authenticator, rule: &JwtRule, token: &str) -> Result<(), Unauthenticated> {
    let mut request = request("/", &[("authorization", &format!("Bearer {token}"))]);
    let verdict = authenticator.authenticate(&[rules(vec![rule.clone()])], &mut request, now());
    verdict.map(|_| ())
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .expect("it never came to hold");
}

fn signed(signer: &Signer, kid: &str) -> String {
    signer.sign(&json!({ "alg": "ES256", "kid": kid }), &claims())
}

#[tokio::test]
async fn keys_arrive_and_bad_answers_leave_them() {
    let (good, other) = (Signer::p256(), Signer::p256());
    let mut server = Server::new("HTTP/1.1 503 Not yet\r\ncontent-length: 0\r\n\r\n".into(), None).await;
    let (authenticator, rule) = (authenticator(PACE, vec![]), rule_of(&server, "http"));
    let token = signed(&good, "k");
    authenticator.update(&[rules(vec![rule.clone()])]);
    server.answered_again().await;
    assert_eq!(judge(&authenticator, &rule, &token), Err(Unauthenticated::NoKeys));
    let set = keys(&[good.jwk(&json!({ "kid": "k" }))]);
    server.answer.send_replace(set);
    until(|| judge(&authenticator, &rule, &token).is_ok()).await;

    let stranger = json!({ "keys": [other.jwk(&json!({ "kid": "k" }))] }).to_string();
    let large = format!("{stranger}{}", " ".repeat(1024 * 1024));
    for bad in [
        "HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{}/other\r\ncontent-length: 0\r\n\r\n",
            server.addr
        ),
        ok("<html>sign in</html>"),
        ok(&large),
        // Cut.
        format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{stranger}"),
        "SSH-2.0-OpenSSH\r\n".to_owned(),
        String::new(),
    ] {
        server.answer.send_replace(bad);
        server.answered_again().await;
        assert_eq!(judge(&authenticator, &rule, &token), Ok(()));
    }
    // A set without keys is one: they were all taken back.
    server.answer.send_replace(keys(&[]));
    until(|| judge(&authenticator, &rule, &token) == Err(Unauthenticated::NoKey)).await;
}

#[tokio::test]
async fn a_key_that_is_not_known_is_looked_for() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let server = Server::new(keys(&[old.jwk(&json!({ "kid": "old" }))]), None).await;
    let (authenticator, rule) = (authenticator(SLOW, vec![]), rule_of(&server, "http"));
    authenticator.update(&[rules(vec![rule.clone()])]);
    until(|| judge(&authenticator, &rule, &signed(&old, "old")).is_ok()).await;
    assert_eq!(*server.answered.borrow(), 1);
    server
        .answer
        .send_replace(keys(&[new.jwk(&json!({ "kid": "new" }))]));
    assert_eq!(
        judge(&authenticator, &rule, &signed(&new, "new")),
        Err(Unauthenticated::NoKey)
    );
    until(|| judge(&authenticator, &rule, &signed(&new, "new")).is_ok()).await;
    // Forgeries of a key that there is ask for nothing.
    let before = *server.answered.borrow();
    for _ in 0..100 {
        assert_eq!(
            judge(&authenticator, &rule, &signed(&old, "new")),
            Err(Unauthenticated::Signature)
        );
        tokio::task::yield_now().await;
    }
    assert_eq!(*server.answered.borrow(), before);
}

#[tokio::test]
async fn an_address_is_fetched_once_and_as_long_as_it_is_named() {
    let signer = Signer::p256();
    let server = Server::new(keys(&[signer.jwk(&json!({}))]), None).await;
    let (authenticator, one) = (authenticator(SLOW, vec![]), rule_of(&server, "http"));
    let mut two = one.clone();
    two.issuer = "two".into();
    let both = [rules(vec![one.clone(), two.clone()])];
    authenticator.update(&both);
    authenticator.update(&both);
    let of_two = signer.sign(&json!({ "alg": "ES256" }), &json!({ "iss": "two", "exp": NOW }));
    until(|| judge(&authenticator, &one, &signed(&signer, "")).is_ok()).await;
    assert_eq!(judge(&authenticator, &two, &of_two), Ok(()));
    assert_eq!(*server.answered.borrow(), 1);
    // The task ends with the last rule: nobody else holds what it shares.
    let fetched = authenticator.known.load().shared(match &one.jwks {
        Jwks::Url(url) => url,
        Jwks::Inline(_) => unreachable!("it is an address"),
    });
    authenticator.update([]);
    until(|| fetched.strong_count() == 0).await;
    assert_eq!(
        judge(&authenticator, &one, &signed(&signer, "")),
        Err(Unauthenticated::NoKeys)
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let authenticator = authenticator(PACE, vec![]);
    let mut rule = rule(Jwks::Url(format!("http://{addr}/keys?x=1").into()));
    rule.timeout_ms = 20;
    authenticator.update(&[rules(vec![rule])]);
    // It comes again: it did not wait for ever.
    let first = listener.accept().await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await;
    assert!(second.is_ok());
    drop(first);
}

#[tokio::test]
async fn tls_is_believed_by_the_roots_that_are_given() {
    let signer = Signer::p256();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = certified.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let mut server = Server::new(keys(&[signer.jwk(&json!({}))]), Some(tls)).await;
    let rule = rule_of(&server, "https");
    let announced = [rules(vec![rule.clone()])];
    let (trusting, doubting) = (authenticator(PACE, vec![cert]), authenticator(PACE, vec![]));
    doubting.update(&announced);
    server.answered_again().await;
    assert_eq!(
        judge(&doubting, &rule, &signed(&signer, "")),
        Err(Unauthenticated::NoKeys)
    );
    trusting.update(&announced);
    until(|| judge(&trusting, &rule, &signed(&signer, "")).is_ok()).await;
    assert_eq!(
        judge(&doubting, &rule, &signed(&signer, "")),
        Err(Unauthenticated::NoKeys)
    );
}

#[tokio::test]
async fn addresses_that_are_none() {
    let tls = Fetcher::new(Handle::current(), []).unwrap().tls;
    for url in [
        "",
        "keys",
        "/keys",
        "ftp://h/keys",
        "file:///etc/passwd",
        "https://",
        "http://[::1/keys",
    ] {
        let got = get::get(&url.into(), &tls).await;
        assert!(matches!(got, Err(FetchError::Url(_))), "{url}: {got:?}");
    }
}

//! TLS as HBONE uses it: 1.3 only, mutual, ALPN `h2`, no SNI, identities instead of host names.
//!
//! Builds rustls configurations and runs handshakes; who may be at the other end is decided in [`identity`],
//! whom it is believed from in [`trust`], and [`sessions`] ends what is not believed any more.
//! It holds no keys of its own (see `svid`) and speaks no HTTP (see `hbone`). Called by `hbone::pool` to dial and by
//! the roles that accept tunnels.

mod identity;
mod read_ahead;
mod revocation;
#[cfg(test)]
pub(crate) mod sample;
mod sessions;
#[cfg(test)]
mod tests;
mod trust;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::mesh::{FailureKind, SpiffeId, TrustDomain};

pub use identity::{IdentityError, expires, is_identity_error, peer_identity};
pub use read_ahead::ReadAhead;
pub use revocation::Revocations;
pub use sessions::{Ended, Proof, Session, Sessions};
pub use trust::{CLOCK_SKEW, Purpose, Rejected, Trust, TrustBundle, to_pem};

use identity::Verdict;

/// The one protocol that runs inside: HTTP/2, by its name in RFC 9113.
const ALPN_H2: &[u8] = b"h2";

/// The project's one crypto provider: aws-lc-rs, AES-128-GCM first.
///
/// AES-128 is the fastest in hardware and no weaker in practice; the hybrid X25519MLKEM768 leads the key exchanges
/// (rustls' `prefer-post-quantum`), so what is recorded today stays secret tomorrow.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// Random bytes of the crypto provider, for serial numbers, trace ids and jitter.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn random<const N: usize>() -> Result<[u8; N], TlsError> {
    let mut bytes = [0; N];
    let provider = crypto_provider();
    provider
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| TlsError::Random)?;
    Ok(bytes)
}

/// The client's side of handshakes: what it presents, whom it takes, and the trust that both rest on.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    side: Side,
}

/// The server's side of handshakes.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    side: Side,
}

/// What a session is opened with after a handshake.
#[derive(Clone, Debug)]
struct Side {
    sessions: Sessions,
    /// What the handshake's verifier holds peers against.
    trust: Arc<Trust>,
    cert: Arc<CertifiedKey>,
    purpose: Purpose,
    verdict: Verdict,
}

impl Side {
    fn new(sessions: &Sessions, cert: Arc<CertifiedKey>, purpose: Purpose) -> Self {
        Self {
            sessions: sessions.clone(),
            trust: sessions.trust(),
            cert,
            purpose,
            verdict: Verdict::default(),
        }
    }

    fn open(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Arc<Session>, TlsError> {
        let chain = chain.unwrap_or_default();
        let peer = peer_identity(chain).map_err(TlsError::Identity)?;
        let others = match self.purpose {
            Purpose::Client => Purpose::Server,
            Purpose::Server => Purpose::Client,
        };
        let ours = Proof::now(&self.cert.cert, self.purpose);
        Ok(self
            .sessions
            .open(&self.trust, peer, ours, Proof::now(chain, others)))
    }

    fn failed(&self, err: io::Error) -> TlsError {
        match self.verdict.take() {
            Some(rejected) => TlsError::Rejected(rejected),
            None => TlsError::of_handshake(err),
        }
    }
}

/// A client that presents `cert` and goes on only when the server proves one of the identities in `accept`.
///
/// # Errors
/// When rustls refuses the certificate or the settings.
pub fn client(
    sessions: &Sessions,
    cert: Arc<CertifiedKey>,
    accept: Arc<[SpiffeId]>,
) -> Result<Client, TlsError> {
    let provider = crypto_provider();
    let side = Side::new(sessions, Arc::clone(&cert), Purpose::Client);
    let (trust, verdict) = (Arc::clone(&side.trust), side.verdict.clone());
    let verifier = identity::ServerVerifier::new(trust, accept, &provider, verdict);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(cert)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    // A ticket would outlive a revocation and mix the identities of a node; pooling gives the speed instead.
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    Ok(Client { config, side })
}

/// A server that presents `cert` and takes clients of `trust_domains` only.
///
/// # Errors
/// When rustls refuses the certificate or the settings.
pub fn server(
    sessions: &Sessions,
    cert: Arc<CertifiedKey>,
    trust_domains: &[TrustDomain],
) -> Result<Server, TlsError> {
    let provider = crypto_provider();
    let side = Side::new(sessions, Arc::clone(&cert), Purpose::Server);
    let (trust, verdict) = (Arc::clone(&side.trust), side.verdict.clone());
    let verifier = identity::ClientVerifier::new(trust, trust_domains, &provider, verdict);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(cert)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    Ok(Server { config, side })
}

/// What a server asks of clients that may have a certificate of the mesh, and may say in another way who they are.
pub fn optional_clients(trust: TrustBundle, trust_domain: &TrustDomain) -> Arc<dyn ClientCertVerifier> {
    let trust = Arc::new(Trust::from(trust));
    let domains = std::slice::from_ref(trust_domain);
    let verifier =
        identity::ClientVerifier::new(trust, domains, &crypto_provider(), Verdict::default()).optional();
    Arc::new(verifier)
}

/// The server's end of a tunnel.
pub type ServerStream = server::TlsStream<ReadAhead>;
/// The client's end of a tunnel.
pub type ClientStream = client::TlsStream<ReadAhead>;

/// What rustls encrypts before it writes. Its default of 64 KiB is less than one DATA frame, whose last bytes would be
/// a record, a system call and a packet of their own. It is held only while the socket takes no more.
const ENCRYPT_AHEAD: usize = 1024 * 1024;

/// The server's side of a handshake, to its end: the stream and who is there.
///
/// # Errors
/// When the deadline passes, the handshake fails, or the client did not ask for `h2`.
pub async fn accept(
    tcp: TcpStream,
    server: Server,
    deadline: Duration,
) -> Result<(ServerStream, Arc<Session>), TlsError> {
    let Server { config, side } = server;
    let handshake = timeout(deadline, TlsAcceptor::from(config).accept(ReadAhead::new(tcp)));
    let mut stream = handshake
        .await
        .map_err(|_| TlsError::TimedOut(deadline))?
        .map_err(|err| side.failed(err))?;
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(ENCRYPT_AHEAD));
    // rustls refuses other protocols, but lets a client pass that names none.
    require_h2(session.alpn_protocol())?;
    let session = side.open(session.peer_certificates())?;
    Ok((stream, session))
}

/// The client's side of a handshake: the stream and who is there.
///
/// In TLS 1.3 the client is done before the server has looked at the client's certificate: a refusal of ours comes
/// as an alert on the first read.
///
/// # Errors
/// When the deadline passes, the handshake fails, or the server did not agree on `h2`.
pub async fn connect(
    tcp: TcpStream,
    client: Client,
    server: IpAddr,
    deadline: Duration,
) -> Result<(ClientStream, Arc<Session>), TlsError> {
    let Client { config, side } = client;
    let name = ServerName::IpAddress(server.into());
    let connecting = TlsConnector::from(config).connect(name, ReadAhead::new(tcp));
    let handshake = timeout(deadline, connecting);
    let mut stream = handshake
        .await
        .map_err(|_| TlsError::TimedOut(deadline))?
        .map_err(|err| side.failed(err))?;
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(ENCRYPT_AHEAD));
    require_h2(session.alpn_protocol())?;
    let session = side.open(session.peer_certificates())?;
    Ok((stream, session))
}

fn require_h2(agreed: Option<&[u8]>) -> Result<(), TlsError> {
    if agreed == Some(ALPN_H2) {
        Ok(())
    } else {
        Err(TlsError::NoAlpn)
    }
}

/// Why a configuration could not be built or a handshake failed.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Roots or revocation lists that cannot be read, or none.
    #[error("the {what} cannot be used: {why}")]
    Unusable {
        /// A trust bundle, or a CRL.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// rustls refused the settings or the certificate.
    #[error("TLS could not be set up")]
    Config(#[source] rustls::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes")]
    Random,
    /// The handshake failed, for another reason than who the peer is.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The peer's chain is not believed.
    #[error("the peer's certificate is not accepted")]
    Rejected(#[source] Rejected),
    /// The peer's chain is good, but it is not who it should be.
    #[error("the peer is not who it should be")]
    Identity(#[source] IdentityError),
    /// The peer did not agree on HTTP/2.
    #[error("the peer did not agree on ALPN `h2`")]
    NoAlpn,
    /// The peer went silent.
    #[error("the TLS handshake was not done within {0:?}")]
    TimedOut(Duration),
}

impl TlsError {
    fn bundle(why: impl ToString) -> Self {
        let (what, why) = ("trust bundle", why.to_string());
        Self::Unusable { what, why }
    }

    fn crl(why: impl ToString) -> Self {
        let (what, why) = ("CRL", why.to_string());
        Self::Unusable { what, why }
    }

    /// Whether the peer proved to be somebody else than it should be, as against any other failure.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity(_))
    }

    /// Whether the peer's certificate has been revoked.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Rejected(Rejected::Revoked { .. }))
    }

    /// What a record of the connection says of it.
    pub fn kind(&self) -> FailureKind {
        match self {
            _ if self.is_identity() => FailureKind::Identity,
            _ if self.is_revoked() => FailureKind::Revoked,
            _ => FailureKind::Tls,
        }
    }

    fn of_handshake(err: io::Error) -> Self {
        match identity::identity_error(&err) {
            Some(identity) => Self::Identity(identity.clone()),
            None => Self::Handshake(err),
        }
    }
}

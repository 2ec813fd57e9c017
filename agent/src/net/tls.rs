//! TLS as HBONE uses it: 1.3 only, mutual, ALPN `h2`, no SNI, identities instead of host names.
//!
//! Builds rustls configurations and runs handshakes; who may be at the other end is decided in [`identity`].
//! It holds no keys of its own (see `svid`) and speaks no HTTP (see `hbone`). Called by `hbone::pool` to dial and by
//! the roles that accept tunnels.

mod identity;
mod read_ahead;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::mesh::{SpiffeId, TrustDomain};

pub use identity::{IdentityError, is_identity_error, peer_identity};
pub use read_ahead::ReadAhead;

/// The one protocol that runs inside: HTTP/2, by its name in RFC 9113.
const ALPN_H2: &[u8] = b"h2";

/// The certificates that chains must end in. Several, while a root is being replaced.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Arc<RootCertStore>,
}

impl TrustBundle {
    /// Reads every `CERTIFICATE` block of `pem`.
    ///
    /// # Errors
    /// When a block is damaged or is not a certificate, or when there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let certs = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        Self::from_der(certs.map_err(|err| TlsError::Bundle(err.to_string()))?)
    }

    /// Takes certificates that were read elsewhere.
    ///
    /// # Errors
    /// When one of them cannot be parsed, or when there is none.
    pub fn from_der(certs: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for cert in certs {
            roots.add(cert).map_err(|err| TlsError::Bundle(err.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsError::Bundle("it holds no certificate".into()));
        }
        Ok(Self { roots: roots.into() })
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Whether there is no root; never true of a bundle that was built.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

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

/// A client that presents `cert` and goes on only when the server proves one of the identities in `accept`.
///
/// # Errors
/// When rustls refuses the certificate or the settings.
pub fn client_config(
    cert: Arc<CertifiedKey>,
    bundle: &TrustBundle,
    accept: Arc<[SpiffeId]>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = crypto_provider();
    let verifier = identity::ServerVerifier::new(bundle.roots.clone(), accept, &provider);
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
    Ok(Arc::new(config))
}

/// A server that presents `cert` and takes clients of `trust_domains` only.
///
/// # Errors
/// When rustls refuses the certificate or the settings.
pub fn server_config(
    cert: Arc<CertifiedKey>,
    bundle: &TrustBundle,
    trust_domains: &[TrustDomain],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = crypto_provider();
    let verifier = identity::ClientVerifier::new(bundle.roots.clone(), trust_domains, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(cert)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
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
    config: Arc<ServerConfig>,
    deadline: Duration,
) -> Result<(ServerStream, SpiffeId), TlsError> {
    let handshake = timeout(deadline, TlsAcceptor::from(config).accept(ReadAhead::new(tcp)));
    let mut stream = handshake
        .await
        .map_err(|_| TlsError::TimedOut(deadline))?
        .map_err(TlsError::of_handshake)?;
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(ENCRYPT_AHEAD));
    // rustls refuses other protocols, but lets a client pass that names none.
    require_h2(session.alpn_protocol())?;
    let peer = peer_identity(session.peer_certificates().unwrap_or_default()).map_err(TlsError::Identity)?;
    Ok((stream, peer))
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
    config: Arc<ClientConfig>,
    server: IpAddr,
    deadline: Duration,
) -> Result<(ClientStream, SpiffeId), TlsError> {
    let name = ServerName::IpAddress(server.into());
    let connecting = TlsConnector::from(config).connect(name, ReadAhead::new(tcp));
    let handshake = timeout(deadline, connecting);
    let mut stream = handshake
        .await
        .map_err(|_| TlsError::TimedOut(deadline))?
        .map_err(TlsError::of_handshake)?;
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(ENCRYPT_AHEAD));
    require_h2(session.alpn_protocol())?;
    let peer = peer_identity(session.peer_certificates().unwrap_or_default()).map_err(TlsError::Identity)?;
    Ok((stream, peer))
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
    /// Roots that cannot be read, or none.
    #[error("the trust bundle cannot be used: {0}")]
    Bundle(String),
    /// rustls refused the settings or the certificate.
    #[error("TLS could not be set up")]
    Config(#[source] rustls::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes")]
    Random,
    /// The handshake failed, for another reason than who the peer is.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
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
    /// Whether the peer proved to be somebody else than it should be, as against any other failure.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity(_))
    }

    fn of_handshake(err: io::Error) -> Self {
        match identity::identity_error(&err) {
            Some(identity) => Self::Identity(identity.clone()),
            None => Self::Handshake(err),
        }
    }
}

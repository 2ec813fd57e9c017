//! A client's connection to the controller: TLS whose certificate must be for the controller's name, and a bearer token.
//!
//! Roots and token are read anew for each connection and call: both are replaced on disk while the agent runs.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem::PemObject},
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Endpoint,
};
use zeroize::Zeroizing;

use crate::net::tls::crypto_provider;

/// An open connection, on which calls are made.
pub type Channel = tonic::transport::Channel;

/// How long a connection may take to open: TCP, TLS and HTTP/2.
const CONNECT: Duration = Duration::from_secs(10);
/// How often it is asked whether the other end is still there, and how long the answer may take. Servers of gRPC end a connection
/// that asks more often than they like: istiod allows it every 15 s, and only while a call is under way.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// The largest token that is read, in bytes.
const LARGEST_TOKEN: usize = 64 * 1024;

/// Where PEM roots come from, read for each connection.
pub type Roots = Arc<dyn Fn() -> ReadRoots + Send + Sync>;
/// The roots to come.
pub type ReadRoots = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send>>;

/// Whom to talk to, and as whom.
#[derive(Clone)]
pub struct Credentials {
    /// `host:port` of the controller.
    pub address: String,
    /// The DNS name that its certificate must have.
    pub server_name: String,
    /// The roots that its certificate may end in.
    pub roots: Roots,
    /// The file with the token that says who we are.
    pub token: PathBuf,
    /// A certificate of the mesh that says it as well; read for each connection.
    pub cert: Option<CertFiles>,
    /// The name of our cluster, which the server chooses by how it verifies the token.
    pub cluster: String,
}

/// A client's own certificate, in files that somebody else keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    /// The chain, leaf first, PEM.
    pub chain: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("address", &self.address)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection, or a call cannot be made.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// No roots: nothing could be believed.
    #[error(
        "cannot read the root certificates that the controller's certificate is checked with; has the controller written them yet?"
    )]
    Roots(#[source] io::Error),
    /// Not an address.
    #[error("{address} is no address of a controller: write host:port")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// Not a DNS name.
    #[error("{name} is no name that a certificate could have")]
    Name {
        /// What was given.
        name: String,
        /// Why.
        #[source]
        source: InvalidDnsNameError,
    },
    /// Nobody answered, or it was somebody else.
    #[error("cannot connect to the controller at {address} as {name}")]
    Connect {
        /// The address.
        address: String,
        /// The name that its certificate must have.
        name: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// No certificate to say who we are with.
    #[error("cannot read a certificate from {} and its key from {}", files.chain.display(), files.key.display())]
    Cert {
        /// The files.
        files: CertFiles,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No token to say who we are with.
    #[error("cannot read a token from {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens a connection.
///
/// # Errors
/// When the roots cannot be read, nobody answers, or what answers does not have the name.
pub async fn connect(to: &Credentials) -> Result<Channel, ChannelError> {
    let roots = (to.roots)().await.map_err(ChannelError::Roots)?;
    let config = client_config(&roots).map_err(ChannelError::Roots)?;
    let config = match &to.cert {
        None => config.with_no_client_auth(),
        Some(files) => certify(config, files)
            .await
            .map_err(|source| ChannelError::Cert {
                files: files.clone(),
                source,
            })?,
    };
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(to.server_name.clone()).map_err(|source| ChannelError::Name {
        name: to.server_name.clone(),
        source,
    })?;
    let endpoint =
        Endpoint::from_shared(format!("https://{}", to.address)).map_err(|source| ChannelError::Address {
            address: to.address.clone(),
            source,
        })?;
    let connector = Connector {
        address: to.address.clone(),
        name,
        tls: TlsConnector::from(Arc::new(config)),
    };
    endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 2)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ChannelError::Connect {
            address: to.address.clone(),
            name: to.server_name.clone(),
            source,
        })
}

/// What may be on its way at once: a first push of a large mesh is some MiB.
const WINDOW: u32 = 4 << 20;

impl Credentials {
    /// Says who we are, in a call's metadata.
    ///
    /// # Errors
    /// When the token cannot be read, or is none.
    pub async fn sign(&self, metadata: &mut MetadataMap) -> Result<(), ChannelError> {
        let failed = |source| ChannelError::Token {
            path: self.token.clone(),
            source,
        };
        let token = tokio::fs::read_to_string(&self.token).await.map_err(failed)?;
        let header = bearer(&token).map_err(failed)?;
        metadata.insert("authorization", header);
        if let Ok(cluster) = self.cluster.parse() {
            metadata.insert("clusterid", cluster);
        }
        Ok(())
    }
}

fn bearer(token: &str) -> io::Result<MetadataValue<Ascii>> {
    let token = token.trim();
    if token.is_empty() || token.len() > LARGEST_TOKEN {
        return Err(io::Error::other("it is empty, or too large to be a token"));
    }
    let mut header: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(io::Error::other)?;
    header.set_sensitive(true);
    Ok(header)
}

type WithRoots = ConfigBuilder<ClientConfig, WantsClientCert>;

async fn certify(config: WithRoots, files: &CertFiles) -> io::Result<ClientConfig> {
    let chain = tokio::fs::read(&files.chain).await?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let key = Zeroizing::new(tokio::fs::read(&files.key).await?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(io::Error::other)?;
    config
        .with_client_auth_cert(chain.map_err(io::Error::other)?, key)
        .map_err(io::Error::other)
}

fn client_config(pem: &[u8]) -> io::Result<WithRoots> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem) {
        let cert = cert.map_err(io::Error::other)?;
        roots.add(cert).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(io::Error::other("there is no certificate in them"));
    }
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(roots))
}

/// Dials for tonic.
#[derive(Clone)]
struct Connector {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Connecting {
        let this = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(&this.address).await?;
            tcp.set_nodelay(true)?;
            Ok(TokioIo::new(this.tls.connect(this.name, tcp).await?))
        })
    }
}

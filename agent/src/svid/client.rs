//! A CA that is asked over the network: `istio.v1.auth.IstioCertificateService`, of the controller or of istiod.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prost_types::{Struct, Value, value};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::{CaError, CertificateAuthority, Signed, Signing, csr::ReadCsr};
use crate::{
    net::tls::TrustBundle,
    rpc::{
        Channel, Credentials,
        ca::{CREATE_PATH, CertificateRequest, CertificateResponse, IMPERSONATED},
        connect,
    },
};

/// What is asked for, in seconds: as long as Istio's agents do. The CA may give less.
const LIFETIME: i64 = 24 * 3600;
/// A connection that has rested for longer is opened anew: nobody has asked meanwhile whether the other end is still there.
const RESTED: Duration = Duration::from_secs(30);
/// Certificates of one answer that are read.
const LONGEST_CHAIN: usize = 16;

/// The CA at the other end of a connection, which is opened when it is needed.
pub struct CaClient {
    credentials: Credentials,
    /// And when it was used last.
    channel: Mutex<Option<(Channel, Instant)>>,
    /// Of the last answer, and before it those that its certificate is checked with.
    trust: Mutex<TrustBundle>,
}

impl fmt::Debug for CaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaClient")
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl CaClient {
    /// The CA behind these credentials. Its roots are read now; nobody is asked yet.
    ///
    /// # Errors
    /// When the roots cannot be read.
    pub async fn new(credentials: Credentials) -> Result<Self, CaError> {
        let trust = roots(&credentials).await?;
        Ok(Self {
            credentials,
            channel: Mutex::default(),
            trust: Mutex::new(trust),
        })
    }

    async fn ask(&self, csr_pem: &str) -> Result<Signed, CaError> {
        let channel = self.channel().await?;
        let answer = self.call(channel, csr_pem).await;
        if answer.is_err() {
            // The next one may have another address, or other roots.
            *lock(&self.channel) = None;
        }
        let signed = read(&answer?)?;
        // While the roots are replaced, those that are given out count as well.
        let trust = match roots(&self.credentials).await {
            Ok(given) => signed.trust.merged(&given),
            Err(_) => signed.trust,
        };
        *lock(&self.trust) = trust.clone();
        Ok(Signed { trust, ..signed })
    }

    async fn channel(&self) -> Result<Channel, CaError> {
        let now = Instant::now();
        if let Some((channel, used)) = &mut *lock(&self.channel)
            && now.saturating_duration_since(*used) < RESTED
        {
            *used = now;
            return Ok(channel.clone());
        }
        let channel = connect(&self.credentials).await.map_err(CaError::Channel)?;
        *lock(&self.channel) = Some((channel.clone(), now));
        Ok(channel)
    }

    async fn call(&self, channel: Channel, csr_pem: &str) -> Result<CertificateResponse, CaError> {
        let id = ReadCsr::from_pem(csr_pem).map_err(CaError::Csr)?.id;
        let whom = Value {
            kind: Some(value::Kind::StringValue(id.as_str().to_owned())),
        };
        let mut request = tonic::Request::new(CertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: LIFETIME,
            metadata: Some(Struct {
                fields: [(IMPERSONATED.to_owned(), whom)].into(),
            }),
        });
        let signed = self.credentials.sign(request.metadata_mut()).await;
        signed.map_err(CaError::Channel)?;
        let mut client = Grpc::new(channel);
        let refused = |status| CaError::Refused(Box::new(status));
        client
            .ready()
            .await
            .map_err(|error| refused(tonic::Status::unavailable(crate::net::chain(&error))))?;
        let path = http::uri::PathAndQuery::from_static(CREATE_PATH);
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let answer = client.unary(request, path, codec).await.map_err(refused)?;
        Ok(answer.into_inner())
    }
}

impl CertificateAuthority for CaClient {
    fn sign<'a>(&'a self, csr_pem: &'a str) -> Signing<'a> {
        Box::pin(self.ask(csr_pem))
    }

    fn trust(&self) -> TrustBundle {
        lock(&self.trust).clone()
    }
}

/// Leaf first; the last text is the root, or the roots.
fn read(answer: &CertificateResponse) -> Result<Signed, CaError> {
    let (roots, chain) = answer
        .cert_chain
        .split_last()
        .filter(|(_, chain)| !chain.is_empty())
        .ok_or_else(|| CaError::Unusable("its chain has no root at its end".into()))?;
    let mut certs = Vec::new();
    for pem in chain {
        for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            certs.push(cert.map_err(|error| CaError::Unusable(error.to_string()))?);
            if certs.len() > LONGEST_CHAIN {
                let why = format!("there are more than {LONGEST_CHAIN} in its chain");
                return Err(CaError::Unusable(why));
            }
        }
    }
    let trust = TrustBundle::from_pem(roots.as_bytes()).map_err(CaError::Tls)?;
    Ok(Signed { chain: certs, trust })
}

async fn roots(credentials: &Credentials) -> Result<TrustBundle, CaError> {
    let pem = (credentials.roots)().await;
    let pem = pem.map_err(|error| CaError::Channel(crate::rpc::ChannelError::Roots(error)))?;
    TrustBundle::from_pem(&pem).map_err(CaError::Tls)
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

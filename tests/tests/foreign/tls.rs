//! TLS as other implementations of HBONE speak it: no SNI, no host names.

use std::sync::Arc;

use anyhow::Result;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use super::certs::Svid;

pub(crate) const H2: &[&[u8]] = &[b"h2"];

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

/// A client that presents `svid`, or nothing, and takes any server of `roots`.
pub(crate) fn client(
    svid: Option<&Svid>,
    roots: &Arc<RootCertStore>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OfRoots(roots.clone())));
    let mut config = match svid {
        Some(svid) => builder.with_client_auth_cert(svid.chain.clone(), svid.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A server that presents `svid` and asks for clients of `roots`.
pub(crate) fn server(svid: &Svid, roots: &Arc<RootCertStore>) -> Result<Arc<ServerConfig>> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(svid.chain.clone(), svid.key.clone_key())?;
    config.alpn_protocols = protocols(H2);
    Ok(Arc::new(config))
}

/// Whether a certificate names this URI: the text stands in it as it is.
pub(crate) fn names(certs: Option<&[CertificateDer<'_>]>, uri: &str) -> bool {
    let leaf = certs.and_then(|certs| certs.first());
    leaf.is_some_and(|leaf| leaf.windows(uri.len()).any(|window| window == uri.as_bytes()))
}

#[derive(Debug)]
struct OfRoots(Arc<RootCertStore>);

impl ServerCertVerifier for OfRoots {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

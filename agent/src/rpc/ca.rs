//! Certificates (`istio.v1.auth.IstioCertificateService`).

/// The method's path.
pub const CREATE_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The key of `metadata` under which an agent says for whom it asks.
pub const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Asks for a certificate. Who asks is said by the call's bearer token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// A certificate request (RFC 2986), PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate should be good for, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// For whom an agent asks, under [`IMPERSONATED`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// The certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// PEM: the certificate, its issuers, and last the root.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

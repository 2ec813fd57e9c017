//! The pods' certificates: asking for them, signing them where there is no cluster, keeping them fresh.
//!
//! Keys are made here, live in memory only, and leave as a [`rustls::sign::CertifiedKey`], which does not give its key
//! away. How certificates are used on the wire is `net::tls`. Called by the roles.

mod authority;
mod client;
mod csr;
mod files;
mod key;
mod local_ca;
mod store;
#[cfg(test)]
mod tests;

pub use authority::{CaError, CertificateAuthority, Signed, Signing};
pub use client::CaClient;
pub use csr::{Csr, CsrError};
pub use files::{FileSources, FilesError, TrustFiles};
pub use local_ca::{LocalCa, LocalCaError, ServerCert};
pub use store::{Sources, StoreSettings, Svid, SvidStore};

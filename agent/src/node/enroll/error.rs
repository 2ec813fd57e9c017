//! Why a pod could not be captured or released.

use std::{io, net::IpAddr, sync::Arc};

use thiserror::Error;

use crate::kernel::load::LoadError;

/// Why a pod could not be captured or released.
#[derive(Debug, Error)]
pub(in crate::node) enum EnrollError {
    #[error("open the pod's network namespace {path}")]
    Netns { path: String, source: io::Error },
    #[error("the pod's network namespace is not found: {0}")]
    Missing(Arc<str>),
    #[error("the pod has no address in the mesh")]
    NoAddress,
    #[error("the mesh says that the pod has the address {address}, but its network namespace does not")]
    NotItsAddress { address: IpAddr, source: io::Error },
    #[error("listen inside the pod")]
    Listen(#[source] io::Error),
    #[error("write the maps of the kernel's programs")]
    Maps(#[from] aya::maps::MapError),
    #[error("attach to the pod's network namespace")]
    Attach(#[source] LoadError),
    #[error("a worker has ended")]
    WorkerGone,
}

//! HBONE, the one tunnel: HTTP/2 CONNECT over mutual TLS, as Istio's ambient mode has it.
//!
//! `pool` dials and shares tunnels, `server` takes them, `stream` copies an app's bytes through one, `headers` are the
//! texts that travel along. It knows workloads and identities, but neither routes nor policies: those are the roles'.

mod buffers;
mod head;
pub mod headers;
mod io;
mod keepalive;
mod message;
mod pool;
mod server;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod window;

pub use buffers::{Buffers, Pair};
pub use head::Head;
pub use headers::{Authority, Baggage, Forwarded, HeaderError, TraceParent};
pub use io::Io;
pub use pool::{ConnectError, ConnectRequest, Dialled, Pool, TunnelKey};
pub use server::{Drain, Request, Responder, ServeError, serve};
pub use settings::Settings;
pub use stream::{AppSide, Stream, copy};

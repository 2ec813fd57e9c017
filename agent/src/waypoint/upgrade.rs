//! What comes after a response of 101: bytes of another protocol, such as WebSocket's, both ways to their end.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::{balance::Place, downstream::Busy, record::Exchange, upstream::Lease};
use crate::mesh::http::ResponseFlag;

/// Copies between a client and an endpoint. With the end the request is recorded.
pub(super) async fn carry(
    client: OnUpgrade,
    endpoint: OnUpgrade,
    mut exchange: Exchange,
    held: (Lease, Vec<Place>, Busy),
) {
    let (client, endpoint) = tokio::join!(client, endpoint);
    let flag = match (client, endpoint) {
        (Ok(client), Ok(endpoint)) => copy(client, endpoint, &mut exchange).await,
        (Err(_), _) => Some(ResponseFlag::DownstreamConnectionTermination),
        (_, Err(_)) => Some(ResponseFlag::UpstreamConnectionTermination),
    };
    if let Some(flag) = flag {
        exchange.flag(flag);
    }
    exchange.is_complete = true;
    drop(held);
}

async fn copy(client: Upgraded, endpoint: Upgraded, exchange: &mut Exchange) -> Option<ResponseFlag> {
    let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
    match copy_bidirectional(&mut client, &mut endpoint).await {
        Ok((up, down)) => {
            exchange.flow.request_bytes = up;
            exchange.flow.response_bytes = down;
            None
        }
        Err(_) => Some(ResponseFlag::DownstreamConnectionTermination),
    }
}

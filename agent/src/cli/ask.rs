//! Asks a running agent's admin port. Everything is bounded: time, and the length of the answer.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

/// How long the agent may take, from the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer that is read: a thousand connections and thousands of pods fit many times.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;

/// Why there is no answer to print.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error("no agent answers on {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("the agent on {0} did not answer within {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline(SocketAddr),
    #[error("the connection to {0} broke")]
    Http(SocketAddr, #[source] hyper::Error),
    #[error("what {0} answered cannot be read")]
    Body(SocketAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} answered {1}: it is not an agent's admin port")]
    Answer(SocketAddr, StatusCode),
    #[error("what {0} answered is not understood: it is not an agent's admin port")]
    NotUnderstood(SocketAddr, #[source] serde_json::Error),
}

/// What to do about it.
pub(super) fn mend(command: &str) -> String {
    format!(
        "Is the agent running? Its admin port is on loopback, so ask in the agent's network namespace; in Kubernetes:\n\
         \x20 kubectl exec -n weft-system ds/weft-agent -- weft {command}\n\
         or give the address that the agent was started with: weft {command} --address IP:PORT"
    )
}

/// What the agent answers to GET: the code and the body. `path` is a path, and a query if there is one.
pub(super) async fn fetch(address: SocketAddr, path: Uri) -> Result<(StatusCode, Bytes), AskError> {
    timeout(DEADLINE, exchange(address, path))
        .await
        .map_err(|_| AskError::Deadline(address))?
}

async fn exchange(address: SocketAddr, path: Uri) -> Result<(StatusCode, Bytes), AskError> {
    let http = move |error| AskError::Http(address, error);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| AskError::Connect(address, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async move {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path;
        request
            .headers_mut()
            .insert(header::HOST, header::HeaderValue::from_static("localhost"));
        let response = sender.send_request(request).await.map_err(http)?;
        let code = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| AskError::Body(address, error))?;
        Ok((code, body.to_bytes()))
    };
    // The connection moves the bytes of the exchange; its own end says nothing that the exchange does not.
    let (_, answer) = tokio::join!(connection, exchange);
    answer
}

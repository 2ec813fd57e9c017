//! The dialling side of a tunnel, made from the public libraries alone.

use std::{net::TcpStream as StdStream, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, StatusCode, response::Parts};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, runtime::Runtime};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What the async parts of a test run on.
pub(crate) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// A socket of a pod, for the runtime.
pub(crate) fn asynchronous(tcp: StdStream) -> Result<TcpStream> {
    tcp.set_nonblocking(true)?;
    Ok(TcpStream::from_std(tcp)?)
}

/// The handshake, as far as the client sees it: its certificate may still be refused.
pub(crate) async fn handshake(tcp: StdStream, config: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
    let stream = TlsConnector::from(config.clone()).connect(name, asynchronous(tcp)?);
    stream.await.context("the TLS handshake")
}

/// A tunnel that is open.
#[derive(Clone)]
pub(crate) struct Tunnel(SendRequest<Bytes>);

/// One stream of it, after the answer came.
pub(crate) struct Stream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
}

impl Tunnel {
    pub(crate) async fn open(stream: TlsStream<TcpStream>) -> Result<Self> {
        let (sender, connection) = h2::client::handshake(stream)
            .await
            .context("the HTTP/2 preface")?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends any request and waits for its answer.
    pub(crate) async fn request(&self, request: Request<()>) -> Result<(Parts, Stream)> {
        let mut sender = self.0.clone().ready().await.context("room for a stream")?;
        let (answer, send) = sender.send_request(request, false)?;
        let (head, recv) = answer.await.context("the answer")?.into_parts();
        Ok((head, Stream { send, recv }))
    }

    /// A CONNECT to `authority`, on behalf of `client`.
    pub(crate) async fn connect(&self, authority: &str, client: &str) -> Result<(Parts, Stream)> {
        let forwarded = format!("for=\"{client}\"");
        self.request(connect(authority)?.header("forwarded", forwarded).body(())?)
            .await
    }

    /// The same, with bytes right behind it.
    pub(crate) async fn connect_with(
        &self,
        authority: &str,
        client: &str,
        first: &'static [u8],
    ) -> Result<(Parts, Stream)> {
        let request = connect(authority)?.header("forwarded", format!("for=\"{client}\""));
        let mut sender = self.0.clone().ready().await.context("room for a stream")?;
        let (answer, mut send) = sender.send_request(request.body(())?, false)?;
        send.send_data(Bytes::from_static(first), false)?;
        let (head, recv) = answer.await.context("the answer")?.into_parts();
        Ok((head, Stream { send, recv }))
    }

    /// A CONNECT that must be answered with 200 by something that echoes.
    pub(crate) async fn echo(&self, authority: &str, client: &str, text: &'static [u8]) -> Result<()> {
        let (head, stream) = self.connect(authority, client).await?;
        ensure!(head.status == StatusCode::OK, "{authority}: {}", head.status);
        stream.echo(text).await
    }
}

/// The request line of a CONNECT.
pub(crate) fn connect(authority: &str) -> Result<http::request::Builder> {
    let authority: http::uri::Authority = authority.parse()?;
    Ok(Request::builder().method(Method::CONNECT).uri(authority))
}

impl Stream {
    /// Sends `text`, ends, and reads the same to the end.
    pub(crate) async fn echo(mut self, text: &'static [u8]) -> Result<()> {
        self.send.send_data(Bytes::from_static(text), true)?;
        let mut answer = Vec::new();
        while let Some(chunk) = self.recv.data().await {
            let chunk = chunk.context("read the echo")?;
            // It fails on a stream that has ended, which needs no window.
            let _ = self.recv.flow_control().release_capacity(chunk.len());
            answer.extend_from_slice(&chunk);
        }
        ensure!(
            answer == text,
            "the echo differs: {:?}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    }
}

//! One GET: a connection of its own, one request, a body of bounded size.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, HOST, USER_AGENT},
    uri::Scheme,
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::FetchError;
use crate::waypoint::jwt::keys::LARGEST;

/// What is behind an `http` or `https` address.
pub(super) async fn get(url: &Arc<str>, tls: &Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let wrong = || FetchError::Url(url.clone());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let secure = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) if *scheme == Scheme::HTTP => false,
        _ => return Err(wrong()),
    };
    let host = uri.host().ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let peer = || format!("{host}:{port}");
    let connected = TcpStream::connect((host.as_str(), port)).await;
    let tcp = connected.map_err(|source| FetchError::Connect { peer: peer(), source })?;
    if !secure {
        return Box::pin(ask(tcp, &uri)).await;
    }
    let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
    let handshake = TlsConnector::from(tls.clone()).connect(name, tcp).await;
    let stream = handshake.map_err(|source| FetchError::Tls { peer: peer(), source })?;
    Box::pin(ask(stream, &uri)).await
}

async fn ask<S>(stream: S, uri: &Uri) -> Result<Bytes, FetchError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    TokioIo<S>: Read + Write,
{
    let handshake = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(FetchError::Http)?;
    // What goes wrong with it, the response says.
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let response = sender
        .send_request(request(uri))
        .await
        .map_err(FetchError::Http)?;
    match response.status() {
        StatusCode::OK => read(response.into_body()).await,
        status => Err(FetchError::Status(status)),
    }
}

fn request(uri: &Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // Parts of an address that was one.
    if let Ok(path) = path.parse() {
        *request.uri_mut() = path;
    }
    if let Some(host) = uri.authority().and_then(|authority| {
        let host = authority.as_str().rsplit('@').next()?;
        host.parse().ok()
    }) {
        request.headers_mut().insert(HOST, host);
    }
    for (name, value) in [(ACCEPT, "application/json"), (USER_AGENT, "weft")] {
        request
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    request
}

async fn read(body: Incoming) -> Result<Bytes, FetchError> {
    let body = Limited::new(body, LARGEST)
        .collect()
        .await
        .map_err(FetchError::Body)?;
    Ok(body.to_bytes())
}

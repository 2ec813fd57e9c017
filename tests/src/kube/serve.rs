//! Connections and requests: accept, TLS, authenticate, authorise, dispatch.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Server, access,
    answer::{self, Answer},
    delete, discovery,
    failure::Failure,
    faults::Outage,
    kinds::Kind,
    read,
    request::{self, Query, Request, Target},
    reviews, watch, write,
};

/// Larger requests are refused, as by etcd.
const BODY: usize = 3 << 20;

/// Accepts until the server is dropped; during an outage nobody listens.
pub(super) async fn accept(server: Arc<Server>, listener: std::net::TcpListener, tls: Option<TlsAcceptor>) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let mut listener = TcpListener::from_std(listener).ok();
    let mut outage = server.faults.outage.subscribe();
    loop {
        let Some(open) = &listener else {
            // The sender is the server, which is here.
            let _ = outage.wait_for(|outage| *outage != Outage::Refusing).await;
            listener = Some(again(address).await);
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(connection(server.clone(), stream, tls.clone()));
                }
            }
            _ = outage.wait_for(|outage| *outage == Outage::Refusing) => listener = None,
        }
    }
}

/// Listens on the same address again; its old connections may take a moment to end.
async fn again(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, tls: Option<TlsAcceptor>) {
    let mut breaks = server.faults.breaks.subscribe();
    let _ = stream.set_nodelay(true);
    let served = async {
        match tls {
            None => requests(server.clone(), stream).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    requests(server.clone(), stream).await;
                }
            }
        }
    };
    tokio::select! {
        () = served => (),
        _ = breaks.changed() => (),
    }
}

async fn requests(server: Arc<Server>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let server = server.clone();
        async move {
            server.faults.answering().await;
            let answered = respond(&server, request).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(Answer::from))
        }
    });
    // A client that goes away is no news.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(server: &Arc<Server>, request: http::Request<Incoming>) -> Result<Answer, Failure> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let body = Limited::new(body, BODY).collect().await;
    let body = body.map_err(|_| {
        Failure::new(
            413,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        )
    })?;
    let request = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        target: Target::parse(parts.uri.path()),
        user: access::authenticate(server, header("authorization"))?,
        shape: request::shape(header("accept"))?,
        content_type: header("content-type")
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned(),
        agent: header("user-agent")
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned(),
        if_none_match: header("if-none-match").to_owned(),
        body: body.to_bytes(),
    };
    access::authorise(server, &request)?;
    let Some(target) = &request.target else {
        return discovery::answer(server, &request);
    };
    let kind = server
        .state()
        .kind(&target.group, &target.version, &target.plural)
        .cloned();
    let Some(kind) = kind else {
        return unknown(server, target);
    };
    let verb = request.verb();
    *server.asked().entry((verb, kind.plural.clone())).or_default() += 1;
    if verb != "watch"
        && let Some(late) = server.faults.slow(&kind, verb)
    {
        tokio::time::sleep(late).await;
    }
    if let Some(failure) = server.faults.failure(&kind, verb) {
        return Err(failure);
    }
    dispatch(server, &request, target, &kind).await
}

async fn dispatch(
    server: &Arc<Server>,
    request: &Request,
    target: &Target,
    kind: &Arc<Kind>,
) -> Result<Answer, Failure> {
    let version = kind.version(&target.version);
    let known = version.is_some_and(|version| version.subresources.contains(&target.sub));
    if !target.sub.is_empty() && !known {
        return Err(match kind.custom {
            true => Failure::not_found(kind, &target.name),
            false => Failure::no_such_resource(),
        });
    }
    if kind.plural == "pods" && target.sub == "log" {
        return super::logs::answer(server, request, target, kind);
    }
    if kind.is_virtual() || ["token", "binding", "eviction", "scale"].contains(&target.sub.as_str()) {
        return reviews::answer(server, request, target, kind);
    }
    match request.verb() {
        "watch" => watch::watch(server, request, target, kind),
        "get" => read::get(server, request, target, kind),
        "list" => read::list(server, request, target, kind).await,
        "create" if target.name.is_empty() => write::create(server, request, target, kind),
        "update" => write::update(server, request, target, kind),
        "patch" => write::patch(server, request, target, kind),
        "delete" => delete::one(server, request, target, kind),
        "deletecollection" => delete::collection(server, request, target, kind),
        _ => Err(Failure::method_not_allowed()),
    }
}

/// A group that nobody serves is no Status; a resource that a group does not have is.
fn unknown(server: &Server, target: &Target) -> Result<Answer, Failure> {
    let state = server.state();
    let served = state
        .kinds
        .iter()
        .any(|kind| kind.group == target.group && kind.version(&target.version).is_some());
    if served {
        return Err(Failure::no_such_resource());
    }
    Ok(answer::text(404, "404 page not found\n"))
}

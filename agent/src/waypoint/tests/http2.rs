//! HTTP/2 with prior knowledge, and gRPC on it.

use std::convert::Infallible;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::world::{App, Plan, World, soon, text, whole};
use crate::mesh::AppProtocol;

type Sender<B> = http2::SendRequest<B>;

async fn http2<B>(world: &World) -> Sender<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = world.connect(world.web).await.unwrap();
    let builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://web.demo{path}"))
        .body(Full::default())
        .unwrap()
}

#[tokio::test]
async fn requests_of_one_connection_pass_beside_each_other() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let sender = http2(&world).await;
    let all = (0..50).map(|nth| {
        let mut sender: Sender<Full<Bytes>> = sender.clone();
        async move {
            whole(
                soon(sender.send_request(request(&format!("/{nth}"))))
                    .await
                    .unwrap(),
            )
            .await
        }
    });
    for response in join_all(all).await {
        assert_eq!((response.status().as_u16(), text(&response)), (200, "web"));
    }
    // Nothing is said of the port: as the client speaks.
    assert_eq!(app.last().version, Version::HTTP_2);
    assert_eq!(app.last().uri.authority().unwrap(), "web.demo");
    assert_eq!(app.count(), 50);
}

#[tokio::test]
async fn an_endpoint_is_spoken_to_as_its_port_says() {
    for (protocol, version) in [
        (AppProtocol::Http11, Version::HTTP_11),
        (AppProtocol::Http2, Version::HTTP_2),
        (AppProtocol::Grpc, Version::HTTP_2),
    ] {
        let app = App::named("web").await;
        let mut plan = Plan::new();
        plan.web(&[&app]);
        let web = plan.parts.services.last_mut().unwrap();
        web.app_protocols.insert(80, protocol);
        let world = plan.start().await;
        let mut sender = http2(&world).await;
        let response = soon(sender.send_request(request("/a?b"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(world.get("/").await.status(), 200);
        let asked = app.asked.lock().unwrap();
        assert!(asked.iter().all(|it| it.version == version), "{protocol:?}");
        if version == Version::HTTP_11 {
            assert_eq!(asked[0].headers["host"], "web.demo");
        }
    }
}

#[tokio::test]
async fn cookies_that_came_in_pieces_are_one_header_elsewhere() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let web = plan.parts.services.last_mut().unwrap();
    web.app_protocols.insert(80, AppProtocol::Http11);
    let world = plan.start().await;
    let mut request = request("/");
    for cookie in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    let mut sender = http2(&world).await;
    assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 200);
    let cookies: Vec<_> = app.last().headers.get_all("cookie").iter().cloned().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}

#[tokio::test]
async fn host_and_authority_must_be_one() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let mut request = request("/");
    request
        .headers_mut()
        .insert("host", "other.demo".parse().unwrap());
    let mut sender = http2(&world).await;
    assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 400);
    assert_eq!(app.count(), 0);
}

/// A gRPC app: sends every message back as it comes, and then a status.
async fn grpc_app() -> App {
    App::new(|request| {
        Box::pin(async move {
            let (frames, answer) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data() {
                        let _ = frames.send(Ok(Frame::data(data))).await;
                    }
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let _ = frames.send(Ok(Frame::trailers(trailers))).await;
            });
            let body = StreamBody::new(ReceiverStream::new(answer)).map_err(|never| match never {});
            let answer = Response::builder().header("content-type", "application/grpc");
            answer.body(BoxBody::new(body)).unwrap()
        })
    })
    .await
}

#[tokio::test]
async fn a_grpc_stream_goes_both_ways_at_once_and_ends_with_its_trailers() {
    let app = grpc_app().await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let web = plan.parts.services.last_mut().unwrap();
    web.app_protocols.insert(80, AppProtocol::Grpc);
    let world = plan.start().await;
    let (messages, sent) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    let body = StreamBody::new(ReceiverStream::new(sent));
    let request = Request::post("http://web.demo/shop.Cart/Watch")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let mut sender = http2(&world).await;
    let response = soon(sender.send_request(request.body(body).unwrap()))
        .await
        .unwrap();
    let mut body = response.into_body();
    for message in [&b"\0\0\0\0\x02hi"[..], b"\0\0\0\0\x03you"] {
        messages
            .send(Ok(Frame::data(Bytes::from_static(message))))
            .await
            .unwrap();
        let echoed = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(echoed, message);
    }
    drop(messages);
    let trailers = soon(body.frame())
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(soon(body.frame()).await.is_none());
    assert_eq!(app.last().headers["te"], "trailers");
}

#[tokio::test]
async fn a_grpc_client_is_told_in_its_own_words() {
    let mut plan = Plan::new();
    plan.web(&[]);
    let world = plan.start().await;
    let mut request = request("/shop.Cart/Get");
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let mut sender = http2(&world).await;
    let response = whole(soon(sender.send_request(request)).await.unwrap()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
    assert!(response.body().is_empty());
}

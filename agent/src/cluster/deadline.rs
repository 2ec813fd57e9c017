//! An end for every question to the API: without one, a connection that died silently keeps whoever asked waiting for ever, and
//! what it was to do with it.
//!
//! Only watches go on: kube's watcher itself begins again where one has said nothing for longer than the API lets it live.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use tokio::time::timeout;
use tower_service::Service;

/// How long an answer may take, its last byte included, and with what kube asks again where the API is busy. For a watch: how long
/// until it begins.
const DEADLINE: Duration = Duration::from_secs(20);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

/// The same client, whose questions have an end.
pub(super) fn bounded(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let valid_until = *client.valid_until();
    Client::new(Bounded(client), namespace).with_valid_until(valid_until)
}

struct Bounded(Client);

impl fmt::Debug for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bounded")
    }
}

impl Service<Request<Body>> for Bounded {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        // `Client::send` waits until it is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        let client = self.0.clone();
        Box::pin(async move {
            let answered = timeout(DEADLINE, answer(&client, request)).await;
            answered.unwrap_or_else(|_| Err(late().into()))
        })
    }
}

fn late() -> io::Error {
    let message = format!("no answer within {DEADLINE:?}");
    io::Error::new(io::ErrorKind::TimedOut, message)
}

async fn answer(client: &Client, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let goes_on = goes_on(request.uri());
    let answer = client.send(request).await?;
    if goes_on {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response::from_parts(head, Body::from(body)))
}

/// Whether it is a watch, or a log that is followed.
fn goes_on(uri: &http::Uri) -> bool {
    let mut fields = uri.query().unwrap_or_default().split('&');
    fields.any(|field| {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        matches!(name, "watch" | "follow") && matches!(value, "true" | "1")
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{
        StreamExt as _,
        stream::{self, BoxStream},
    };
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::WatchParams};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Answers late, or begins to and does not go on.
    #[derive(Clone, Copy)]
    enum Answers {
        Late(Duration),
        Half,
    }

    type Chunks = BoxStream<'static, io::Result<Frame<Bytes>>>;

    impl Service<Request<Body>> for Answers {
        type Response = Response<StreamBody<Chunks>>;
        type Error = Failure;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let how = *self;
            Box::pin(async move {
                let text: &[u8] = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}"#;
                let first = |text| stream::once(async move { Ok(Frame::data(Bytes::from_static(text))) });
                let chunks = match how {
                    Self::Late(by) => {
                        sleep(by).await;
                        first(text).boxed()
                    }
                    Self::Half => first(&text[..9]).chain(stream::pending()).boxed(),
                };
                Ok(Response::new(StreamBody::new(chunks)))
            })
        }
    }

    async fn asked(how: Answers) -> (Result<ConfigMap, kube::Error>, Duration) {
        let maps: Api<ConfigMap> = Api::namespaced(bounded(Client::new(how, "default")), "default");
        let since = Instant::now();
        let answer = maps.get("a").await;
        (answer, since.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_has_an_end() {
        let (answer, _) = asked(Answers::Late(DEADLINE / 2)).await;
        assert_eq!(answer.expect("in time").metadata.name.as_deref(), Some("a"));
        for how in [Answers::Late(DEADLINE * 2), Answers::Half] {
            let (answer, took) = asked(how).await;
            let error = answer.expect_err("too late");
            let text = crate::cluster::client::explain(&error);
            assert!(
                text.contains("does not answer") && text.contains("no answer within 20s"),
                "{text}"
            );
            assert!(took < DEADLINE * 2, "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_goes_on() {
        let client = bounded(Client::new(Answers::Half, "default"));
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let watch = maps.watch(&WatchParams::default(), "0").await.expect("it begins");
        let mut watch = std::pin::pin!(watch);
        let next = timeout(DEADLINE * 3, watch.next()).await;
        assert!(next.is_err(), "it was ended: {next:?}");
    }

    #[test]
    fn what_goes_on_is_told_by_its_query() {
        let check =
            |uri: &'static str, expect| assert_eq!(goes_on(&http::Uri::from_static(uri)), expect, "{uri}");
        check("/api/v1/pods?&watch=true&timeoutSeconds=290", true);
        check("/api/v1/namespaces/a/pods/b/log?follow=1", true);
        check("/api/v1/pods?limit=500&resourceVersion=0", false);
        check("/api/v1/pods", false);
        check("/api/v1/pods?labelSelector=watch%3Dtrue&watch=false", false);
    }
}

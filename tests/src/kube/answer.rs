//! Answers on their way out: whole bodies, and streams that can be cut.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use serde_json::Value;
use tokio::sync::mpsc;

use super::failure::Failure;

/// A body: all of it, or lines as they come. An error among them cuts the connection.
pub(super) enum Content {
    Whole(Option<Bytes>),
    Lines(mpsc::Receiver<io::Result<Bytes>>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| line.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Lines(_) => SizeHint::default(),
        }
    }
}

/// What a request is answered with.
pub(super) type Answer = http::Response<Content>;

/// A body in JSON, already serialised.
pub(super) fn json_bytes(code: u16, body: impl Into<Bytes>) -> Answer {
    answer(code, "application/json", Content::Whole(Some(body.into())))
}

pub(super) fn json(code: u16, body: &Value) -> Answer {
    json_bytes(code, serde_json::to_vec(body).unwrap_or_default())
}

pub(super) fn text(code: u16, body: &'static str) -> Answer {
    answer(
        code,
        "text/plain; charset=utf-8",
        Content::Whole(Some(Bytes::from_static(body.as_bytes()))),
    )
}

/// A watch.
pub(super) fn lines(lines: mpsc::Receiver<io::Result<Bytes>>) -> Answer {
    answer(200, "application/json", Content::Lines(lines))
}

pub(super) fn answer(code: u16, content_type: &'static str, content: Content) -> Answer {
    let mut answer = Answer::new(content);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    let headers = answer.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Adds a header; one that HTTP cannot carry is left out.
pub(super) fn with(mut answer: Answer, name: &'static str, value: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().append(name, value);
    }
    answer
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        let answer = json(failure.code, &failure.body());
        match failure.retry_after {
            Some(seconds) => with(answer, "retry-after", &seconds.to_string()),
            None => answer,
        }
    }
}

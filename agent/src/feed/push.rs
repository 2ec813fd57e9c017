//! What a client is sent, as bytes: a gRPC stream of `DeltaDiscoveryResponse`s.
//!
//! A response may be as large as the mesh, and a thousand clients may come at once. So it is not encoded as a whole: the store has
//! encoded each resource once, for all clients, and what is copied is a chunk of them at a time, when the connection takes it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Code, Status, body::Body};

use super::store::{Delta, Kind, Stored};
use crate::rpc::discovery::{CONTROL_PLANE, ControlPlane, DeltaDiscoveryResponse};

/// The bytes that are taken together, about.
const CHUNK: usize = 32 << 10;

/// One response.
#[derive(Debug)]
pub(super) struct Push {
    /// gRPC's prefix, and all but the resources.
    head: Bytes,
    resources: Vec<Arc<Stored>>,
    /// How many of them are sent.
    sent: usize,
}

impl Push {
    /// None where a message would be larger than any can be.
    pub(super) fn new(kind: Kind, nonce: String, delta: Delta) -> Option<Self> {
        let resources = delta.resources;
        let response = DeltaDiscoveryResponse {
            system_version_info: delta.revision.to_string(),
            resources: Vec::new(),
            type_url: kind.type_url().to_owned(),
            nonce,
            removed_resources: delta.removed,
            control_plane: Some(ControlPlane {
                identifier: CONTROL_PLANE.to_owned(),
            }),
        };
        let body: usize = resources.iter().map(|it| it.wire().len()).sum();
        let length = u32::try_from(response.encoded_len() + body).ok()?;
        let mut head = BytesMut::with_capacity(response.encoded_len() + 5);
        // Not compressed (gRPC over HTTP/2, "Length-Prefixed-Message").
        head.put_u8(0);
        head.put_u32(length);
        response.encode(&mut head).ok()?;
        Some(Self {
            head: head.freeze(),
            resources,
            sent: 0,
        })
    }

    /// The length of the message.
    pub(super) fn len(&self) -> usize {
        let resources = self.resources.iter().map(|it| it.wire().len());
        self.head.len() + resources.sum::<usize>()
    }

    #[cfg(test)]
    pub(super) fn decoded(mut self) -> DeltaDiscoveryResponse {
        let chunks: Vec<_> = std::iter::from_fn(|| self.chunk()).collect();
        DeltaDiscoveryResponse::decode(&chunks.concat()[5..]).unwrap()
    }

    /// The next bytes; none at the end.
    fn chunk(&mut self) -> Option<Bytes> {
        if !self.head.is_empty() {
            return Some(std::mem::take(&mut self.head));
        }
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK {
            let Some(next) = self.resources.get(self.sent) else {
                break;
            };
            if chunk.is_empty() {
                chunk.reserve(CHUNK + next.wire().len());
            }
            chunk.put_slice(next.wire());
            self.sent += 1;
        }
        Some(chunk.freeze()).filter(|chunk| !chunk.is_empty())
    }
}

/// What the server says to one client, in order.
pub(super) type Pushes = mpsc::Receiver<Result<Push, Status>>;

/// Answers a call with them.
pub(super) fn answer(pushes: Pushes) -> http::Response<Body> {
    let body = PushBody {
        pushes,
        current: None,
        is_over: false,
    };
    let mut response = http::Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

struct PushBody {
    pushes: Pushes,
    current: Option<Push>,
    /// The trailers have been sent.
    is_over: bool,
}

impl HttpBody for PushBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        loop {
            if let Some(chunk) = self.current.as_mut().and_then(Push::chunk) {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            self.current = None;
            let status = match ready!(self.pushes.poll_recv(cx)) {
                Some(Ok(push)) => {
                    self.current = Some(push);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::new(Code::Ok, ""),
            };
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(
                status
                    .add_header(&mut trailers)
                    .map(|()| Frame::trailers(trailers)),
            ));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::store::{Encoded, Store, Update};

    fn update(number: usize, length: usize) -> Update {
        Update {
            kind: Kind::Address,
            name: format!("w-{number}").into(),
            resource: Some(Encoded {
                bytes: vec![number as u8; length].into(),
                aliases: vec![format!("/10.0.0.{number}")],
                with: Vec::new(),
            }),
        }
    }

    /// The message that chunks make, and how many they are.
    fn whole(mut push: Push) -> (DeltaDiscoveryResponse, usize) {
        let length = push.len();
        let chunks: Vec<_> = std::iter::from_fn(|| push.chunk()).collect();
        let bytes = chunks.concat();
        assert_eq!(bytes.len(), length);
        assert_eq!(
            bytes[..5],
            [&[0][..], &(length as u32 - 5).to_be_bytes()].concat()
        );
        (DeltaDiscoveryResponse::decode(&bytes[5..]).unwrap(), chunks.len())
    }

    #[test]
    fn chunks_make_the_message() {
        let store = Store::default();
        let lengths = [0, 1, 100, CHUNK - 1, CHUNK, 3 * CHUNK, 7];
        store.update(lengths.iter().enumerate().map(|(at, length)| update(at, *length)));
        let names = ["w-0", "w-1", "w-2", "w-3", "w-4", "w-5", "w-6"];
        let mut delta = store.named(Kind::Address, names.into_iter(), None);
        delta.resources.sort_by_key(|it| it.name.clone());
        delta.removed = vec!["gone".to_owned()];
        let (response, chunks) = whole(Push::new(Kind::Address, "7".into(), delta).unwrap());
        assert!(chunks > 3);
        assert_eq!(
            (response.nonce.as_str(), response.type_url.as_str()),
            ("7", Kind::Address.type_url())
        );
        assert_eq!(response.removed_resources, ["gone"]);
        for (at, (resource, length)) in response.resources.iter().zip(lengths).enumerate() {
            assert_eq!(resource.name, format!("w-{at}"));
            assert_eq!(resource.aliases, [format!("/10.0.0.{at}")]);
            assert_eq!(resource.version.len(), 16);
            let any = resource.resource.as_ref().unwrap();
            assert_eq!(any.type_url, Kind::Address.type_url());
            assert_eq!(any.value, vec![at as u8; length]);
        }
        let nothing = Push::new(Kind::Http, "8".into(), Delta::default()).unwrap();
        assert_eq!(whole(nothing).0.resources, []);
    }
}

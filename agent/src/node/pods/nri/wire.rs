//! What goes over the socket: frames of the trunk, each a piece of one of two connections, and in those connections ttrpc's
//! messages. Pure: bytes in, messages out.
//!
//! ```text
//! trunk:  connection (u32) length (u32) bytes...          both big-endian; 1 calls the plug-in, 2 the runtime
//! ttrpc:  length (u32) stream (u32) kind (u8) flags (u8) payload...
//! ```
//!
//! A codec of our own: the `ttrpc` crate speaks over a socket of its own only, not over a part of one. Nothing is set aside
//! for a length that somebody only says: a message grows as its bytes come in.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use thiserror::Error;

/// ttrpc's longest message.
pub(super) const MOST_BYTES: usize = 4 << 20;
const TRUNK_HEADER: usize = 8;
const HEADER: usize = 10;

/// One of the connections over the trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// The runtime calls.
    Plugin,
    /// The plug-in calls.
    Runtime,
}

impl Connection {
    fn of(id: u32) -> Option<Self> {
        match id {
            1 => Some(Self::Plugin),
            2 => Some(Self::Runtime),
            _ => None,
        }
    }

    fn id(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    /// Of streams, which NRI has none of, or of a later ttrpc.
    Other,
}

/// One message of ttrpc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) connection: Connection,
    /// Which call it belongs to.
    pub(super) stream: u32,
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
}

/// Why the bytes are not NRI's.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum WireError {
    #[error("a frame of {0} bytes, where ttrpc has none of more than 4 MiB")]
    LongFrame(u32),
    #[error("a message of {0} bytes, where ttrpc has none of more than 4 MiB")]
    LongMessage(u32),
}

/// Puts messages together from whatever pieces they come in.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a frame's header.
    header: BytesMut,
    /// The frame that is under way, and how much of it is to come; one of nobody's connection is passed over.
    frame: Option<(Option<Connection>, usize)>,
    plugin: BytesMut,
    runtime: BytesMut,
}

impl Decoder {
    /// The messages that these bytes complete. After an error nothing that follows means anything.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Message>, WireError> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let Some((connection, left)) = self.frame.take() else {
                bytes = self.begin(bytes)?;
                continue;
            };
            let (now, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            if left > now.len() {
                self.frame = Some((connection, left - now.len()));
            }
            if let Some(connection) = connection {
                self.take(connection, now, &mut messages)?;
            }
        }
        Ok(messages)
    }

    /// Reads on in a frame's header, and begins the frame when that is whole.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], WireError> {
        let missing = TRUNK_HEADER - self.header.len();
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        self.header.extend_from_slice(now);
        if self.header.len() == TRUNK_HEADER {
            let (id, length) = (self.header.get_u32(), self.header.get_u32());
            self.header.clear();
            if length as usize > HEADER + MOST_BYTES {
                return Err(WireError::LongFrame(length));
            }
            if length > 0 {
                self.frame = Some((Connection::of(id), length as usize));
            }
        }
        Ok(rest)
    }

    fn take(
        &mut self,
        connection: Connection,
        bytes: &[u8],
        messages: &mut Vec<Message>,
    ) -> Result<(), WireError> {
        let waiting = match connection {
            Connection::Plugin => &mut self.plugin,
            Connection::Runtime => &mut self.runtime,
        };
        waiting.extend_from_slice(bytes);
        while let Some(mut header) = waiting.get(..HEADER) {
            let (length, stream, kind) = (header.get_u32(), header.get_u32(), header.get_u8());
            if length as usize > MOST_BYTES {
                return Err(WireError::LongMessage(length));
            }
            if waiting.len() < HEADER + length as usize {
                break;
            }
            waiting.advance(HEADER);
            // Copied, so that a small message does not keep a large buffer.
            let payload = Bytes::copy_from_slice(&waiting.split_to(length as usize));
            let kind = match kind {
                1 => Kind::Request,
                2 => Kind::Response,
                _ => Kind::Other,
            };
            messages.push(Message {
                connection,
                stream,
                kind,
                payload,
            });
        }
        if waiting.is_empty() {
            *waiting = BytesMut::new();
        }
        Ok(())
    }
}

/// One message in one frame. Ours are short.
pub(super) fn encode(message: &Message) -> Bytes {
    let length = message.payload.len();
    let mut bytes = BytesMut::with_capacity(TRUNK_HEADER + HEADER + length);
    bytes.put_u32(message.connection.id());
    bytes.put_u32((HEADER + length) as u32);
    bytes.put_u32(length as u32);
    bytes.put_u32(message.stream);
    bytes.put_u8(match message.kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Other => 3,
    });
    bytes.put_u8(0);
    bytes.extend_from_slice(&message.payload);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(connection: Connection, stream: u32, payload: &[u8]) -> Message {
        Message {
            connection,
            stream,
            kind: Kind::Request,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    /// A frame as somebody may write it, whatever is in it.
    fn frame(id: u32, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        [&id.to_be_bytes()[..], &length.to_be_bytes()[..], payload].concat()
    }

    fn all(pieces: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Message>, WireError> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in pieces {
            messages.extend(decoder.push(&piece)?);
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_whole_from_whatever_pieces() {
        let sent = [
            message(Connection::Runtime, 1, b"register"),
            message(Connection::Plugin, 1, b""),
            message(Connection::Plugin, 3, &[7; 10_000]),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        for size in [1, 7, 8, 9, 18, 4096, bytes.len()] {
            let pieces = bytes.chunks(size).map(<[u8]>::to_vec);
            assert_eq!(all(pieces).expect("good bytes"), sent, "in pieces of {size}");
        }
        // One message in many frames, between those of the other connection.
        let whole = encode(&sent[2])[TRUNK_HEADER..].to_vec();
        let pieces = whole.chunks(4096).flat_map(|piece| {
            [
                frame(1, piece),
                encode(&sent[0]).to_vec(),
                frame(9, b"nobody's"),
                frame(2, b""),
            ]
        });
        let got = all(pieces).expect("good bytes");
        assert_eq!(got.iter().filter(|it| **it == sent[2]).count(), 1);
        assert_eq!(got.iter().filter(|it| **it == sent[0]).count(), 3);
        assert_eq!(got.len(), 4);
    }

    #[test]
    fn a_length_is_not_believed() {
        let frame_of = |length: u32| [1_u32.to_be_bytes(), length.to_be_bytes()].concat();
        let mut decoder = Decoder::default();
        assert_eq!(
            decoder.push(&frame_of(u32::MAX)),
            Err(WireError::LongFrame(u32::MAX))
        );
        let most = (HEADER + MOST_BYTES) as u32;
        assert_eq!(
            Decoder::default().push(&frame_of(most + 1)),
            Err(WireError::LongFrame(most + 1))
        );
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&frame_of(most)), Ok(Vec::new()));
        assert_eq!(decoder.plugin.capacity(), 0, "memory for what has not come");
        let too_long = [&(MOST_BYTES as u32 + 1).to_be_bytes()[..], &[0; 6]].concat();
        assert_eq!(
            Decoder::default().push(&frame(2, &too_long)),
            Err(WireError::LongMessage(MOST_BYTES as u32 + 1))
        );
    }

    #[test]
    fn endless_bytes_are_not_kept() {
        let mut decoder = Decoder::default();
        // Of a connection that nobody has.
        for _ in 0..100 {
            assert_eq!(decoder.push(&frame(3, &[0; 65_536])), Ok(Vec::new()));
        }
        assert_eq!(decoder.plugin.capacity() + decoder.runtime.capacity(), 0);
        // A message that never ends is one that is too long in time.
        let begun = [&(MOST_BYTES as u32).to_be_bytes()[..], &[0; 6]].concat();
        assert_eq!(decoder.push(&frame(1, &begun)), Ok(Vec::new()));
        for number in 0..MOST_BYTES / 65_536 {
            let messages = decoder.push(&frame(1, &[0; 65_536])).expect("within its length");
            assert_eq!(messages.len(), usize::from(number == MOST_BYTES / 65_536 - 1));
        }
        assert_eq!(decoder.plugin.capacity(), 0);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..4096), size in 1_usize..64) {
            let whole = all(std::iter::once(bytes.clone()));
            let pieces = all(bytes.chunks(size).map(<[u8]>::to_vec));
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn what_is_written_is_read(stream: u32, payload in proptest::collection::vec(any::<u8>(), 0..300), size in 1_usize..400) {
            let sent = message(Connection::Plugin, stream, &payload);
            let bytes = encode(&sent);
            prop_assert_eq!(all(bytes.chunks(size).map(<[u8]>::to_vec)), Ok(vec![sent]));
        }
    }
}

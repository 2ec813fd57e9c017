//! What a waypoint reads of gRPC: whether a request is one, how many messages pass, and how it ended.
//!
//! No message is taken apart and none is copied: `request` hands the pieces of a body through as they come.

use http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_TYPE};

#[cfg(test)]
mod tests;

/// How a call ended, in its trailers; where there is no body, among the headers.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Why, for people; percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a message with these headers is gRPC: `application/grpc`, with a `+format` or parameters or without. gRPC-Web is
/// not: its bodies have other frames.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let (name, rest) = match content_type.as_bytes().split_at_checked("application/grpc".len()) {
        Some(parts) => parts,
        None => return false,
    };
    name.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// The status with which a call ended, of its trailers or of headers without a body.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    let text = headers.get(GRPC_STATUS)?.as_bytes();
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |status, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(status * 10 + digit)
    })
}

/// The gRPC status that a client takes an HTTP status for, of an answer that is not the app's.
pub fn status_of_http(status: StatusCode) -> u32 {
    match status.as_u16() {
        200 => 0,
        // INTERNAL, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE, UNKNOWN.
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Counts the messages of one direction of a call. One counts when its last byte has passed.
///
/// ```text
///           5 bytes: flag, length            length bytes, or none
/// Prefix ───────────────────────────▶ Message ─────────────────▶ Prefix, one more
///   │ a flag that is neither 0 nor 1
///   ▼
/// Broken: not gRPC, nothing more is counted
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageCounter {
    state: State,
    messages: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of the prefix were seen, and the length that they say.
    Prefix { seen: u8, length: u32 },
    /// So many bytes of the message are to come.
    Message { left: u32 },
    /// What came was not gRPC.
    Broken,
}

impl Default for State {
    fn default() -> Self {
        Self::Prefix { seen: 0, length: 0 }
    }
}

/// The flag and four bytes of length, big-endian.
const PREFIX: u8 = 5;

impl MessageCounter {
    /// Messages that have passed.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Looks at the next piece of the body. It costs a step for each message, not for each byte.
    pub fn data(&mut self, mut piece: &[u8]) {
        while let Some((first, rest)) = piece.split_first() {
            match self.state {
                State::Broken => return,
                State::Prefix { seen, length } => {
                    self.prefix(seen, length, *first);
                    piece = rest;
                }
                State::Message { left } => piece = self.message(left, piece),
            }
        }
    }

    fn prefix(&mut self, seen: u8, length: u32, byte: u8) {
        if seen == 0 {
            self.state = match byte {
                0 | 1 => State::Prefix { seen: 1, length: 0 },
                _ => State::Broken,
            };
            return;
        }
        let (seen, length) = (seen + 1, length << 8 | u32::from(byte));
        self.state = State::Prefix { seen, length };
        if seen == PREFIX {
            self.state = State::Message { left: length };
            self.ended(length);
        }
    }

    fn message<'a>(&mut self, left: u32, piece: &'a [u8]) -> &'a [u8] {
        let here = u32::try_from(piece.len()).unwrap_or(u32::MAX).min(left);
        let left = left - here;
        self.state = State::Message { left };
        self.ended(left);
        // `here` is no more than the piece's length.
        piece.get(here as usize..).unwrap_or_default()
    }

    fn ended(&mut self, left: u32) {
        if left == 0 {
            self.messages += 1;
            self.state = State::default();
        }
    }
}

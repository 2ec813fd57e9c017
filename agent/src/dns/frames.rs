//! Messages in a stream: each with its length in front (RFC 1035 4.2.2).

use bytes::{Buf, BytesMut};

/// The length in front of a message, in bytes.
const LENGTH: usize = 2;

/// What has arrived of a stream. It never holds more than one message of the largest size and one read.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

impl Frames {
    /// Where the next bytes go. To be called when [`Self::take`] has no message.
    pub fn room(&mut self) -> &mut BytesMut {
        self.0.reserve(512);
        &mut self.0
    }

    /// The next message that is complete.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(u16::from_be_bytes(*self.0.first_chunk::<LENGTH>()?));
        let message = self.0.get(LENGTH..LENGTH + length)?.to_vec();
        self.0.advance(LENGTH + length);
        Some(message)
    }

    /// Whether a message has begun to arrive and is not complete.
    pub fn is_amid(&self) -> bool {
        !self.0.is_empty()
    }
}

/// A message with its length in front; `None` for one that is too large for that.
pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes(), message].concat())
}

//! A stream as a reader and a writer of a few bytes, for what is no app's connection. Called by the roles.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Error, Reason};

use super::Stream;

impl Stream {
    /// Sends `bytes`, as the other side has room for them.
    ///
    /// # Errors
    /// When the stream or its tunnel broke.
    pub async fn write_all(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.send.reserve_capacity(bytes.len());
            if self.send.capacity() == 0 {
                let grown = poll_fn(|cx| self.send.poll_capacity(cx)).await;
                grown.ok_or(Error::from(Reason::STREAM_CLOSED))??;
                continue;
            }
            let room = self.send.capacity().min(bytes.len());
            self.send.send_data(bytes.split_to(room), false)?;
        }
        Ok(())
    }

    /// The next bytes that came; `None` at the end.
    ///
    /// # Errors
    /// When the stream or its tunnel broke.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(bytes) = self.recv.data().await.transpose()? else {
            return Ok(None);
        };
        // It fails on a stream that has ended, which needs no window.
        let _ = self.recv.flow_control().release_capacity(bytes.len());
        Ok(Some(bytes))
    }

    /// Ends our side.
    ///
    /// # Errors
    /// When the stream or its tunnel broke.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.send.send_data(Bytes::new(), true)
    }
}

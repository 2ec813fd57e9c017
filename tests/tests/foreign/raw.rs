//! HTTP/2 by hand (RFC 9113), for peers that keep none of its rules: frames are written as bytes.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::client::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// RFC 9113 4.1.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a CONNECT: two literals whose names are in the static table (RFC 7541 6.2.2).
pub(crate) fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = b"\x02\x07CONNECT\x01".to_vec();
    block.push(u8::try_from(authority.len()).unwrap_or_default());
    block.extend(authority.bytes());
    block
}

/// A whole CONNECT on one stream.
pub(crate) fn connect(stream: u32, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_block(authority))
}

/// A frame that came back.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A connection whose answers are gathered by a task.
pub(crate) struct Raw {
    pub(crate) write: WriteHalf<TlsStream<TcpStream>>,
    read: Option<ReadHalf<TlsStream<TcpStream>>>,
    came: Arc<Mutex<Vec<Frame>>>,
    reader: Option<JoinHandle<()>>,
}

impl Raw {
    /// Sends the preface. Nothing is read until [`Raw::read_on`].
    pub(crate) async fn open(stream: TlsStream<TcpStream>) -> Result<Self> {
        let (read, mut write) = tokio::io::split(stream);
        write.write_all(PREFACE).await?;
        Ok(Self {
            write,
            read: Some(read),
            came: Arc::default(),
            reader: None,
        })
    }

    /// Reads from now on, to the end.
    pub(crate) fn read_on(&mut self) {
        if let Some(read) = self.read.take() {
            self.reader = Some(tokio::spawn(gather(read, self.came.clone())));
        }
    }

    /// Sends bytes; false when the other end has closed.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok() && self.write.flush().await.is_ok()
    }

    /// Whether the other end has closed.
    pub(crate) fn ended(&self) -> bool {
        self.reader.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// What came so far of one kind.
    pub(crate) fn came(&self, kind: u8) -> Vec<Frame> {
        let came = self
            .came
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        came.iter().filter(|frame| frame.kind == kind).cloned().collect()
    }
}

async fn gather(mut read: ReadHalf<TlsStream<TcpStream>>, came: Arc<Mutex<Vec<Frame>>>) {
    while let Ok(frame) = next(&mut read).await {
        let mut came = came.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        came.push(frame);
    }
}

async fn next(read: &mut ReadHalf<TlsStream<TcpStream>>) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    read.read_exact(&mut payload).await?;
    Ok(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}

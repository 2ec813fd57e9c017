//! DNS messages byte by byte, for what no ordinary client or server says.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result};

/// IPv4 addresses.
pub(crate) const A: u16 = 1;
/// IPv6 addresses.
pub(crate) const AAAA: u16 = 28;
/// A whole zone.
pub(crate) const AXFR: u16 = 252;
/// The server failed.
pub(crate) const SERVFAIL: u8 = 2;

/// A query with recursion desired.
pub(crate) fn query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(record_type.to_be_bytes());
    query.extend([0, 1]);
    query
}

/// The response to `query` with one record of IPv4 address `a`, or with none.
pub(crate) fn response(query: &[u8], rcode: u8, a: Option<[u8; 4]>) -> Vec<u8> {
    let mut response = query.to_vec();
    response[2] |= 0x80;
    response[3] = 0x80 | rcode;
    response[7] = a.is_some().into();
    if let Some(a) = a {
        // The name is the question's, at offset 12.
        response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
        response.extend(a);
    }
    response
}

/// What of a response is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: u16,
    pub(crate) is_response: bool,
    pub(crate) truncated: bool,
    pub(crate) rcode: u8,
    pub(crate) answers: u16,
    /// The last four bytes: the IPv4 address of an answer whose last record has one.
    pub(crate) tail: [u8; 4],
}

/// Reads a response.
pub(crate) fn seen(message: &[u8]) -> Result<Seen> {
    let header: &[u8; 12] = message.first_chunk().context("shorter than a header")?;
    Ok(Seen {
        id: u16::from_be_bytes([header[0], header[1]]),
        is_response: header[2] & 0x80 != 0,
        truncated: header[2] & 2 != 0,
        rcode: header[3] & 0xf,
        answers: u16::from_be_bytes([header[6], header[7]]),
        tail: *message.last_chunk().context("shorter than an address")?,
    })
}

/// Sends a datagram and waits for the next one: what it is and who sent it.
pub(crate) fn exchange(
    socket: &UdpSocket,
    to: SocketAddr,
    message: &[u8],
) -> io::Result<(Vec<u8>, SocketAddr)> {
    socket.send_to(message, to)?;
    receive(socket)
}

/// The next datagram.
pub(crate) fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_535];
    let (length, from) = socket.recv_from(&mut buffer)?;
    buffer.truncate(length);
    Ok((buffer, from))
}

/// Writes a message with its length in front.
pub(crate) fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = (message.len() as u16).to_be_bytes();
    stream.write_all(&[&length, message].concat())
}

/// Reads the next message.
pub(crate) fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

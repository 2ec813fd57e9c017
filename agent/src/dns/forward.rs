//! Asking the server that was asked: under an ID of our own, and believing only what answers that very question.

use std::io;

use domain::base::{Message, iana::Rcode};
use tokio::{io::Interest, net::UdpSocket};

use super::{LARGEST_MESSAGE, message::Request};
use crate::net::tls::{TlsError, random};

/// A query on its way to a server.
#[derive(Debug)]
pub struct Forward {
    bytes: Vec<u8>,
    client_id: u16,
}

impl Forward {
    /// The same query with a random ID: nobody who has not seen it can answer it.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new(request: &Request<'_>) -> Result<Self, TlsError> {
        let mut bytes = request.bytes().to_vec();
        set_id(&mut bytes, u16::from_ne_bytes(random()?));
        Ok(Self {
            bytes,
            client_id: request.message.header().id(),
        })
    }

    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The response with the client's ID, if it is one to this query.
    pub fn accept(&self, mut response: Vec<u8>) -> Option<Vec<u8>> {
        if !self.is_answered_by(&response) {
            return None;
        }
        set_id(&mut response, self.client_id);
        Some(response)
    }

    fn is_answered_by(&self, response: &[u8]) -> bool {
        let (Ok(query), Ok(response)) = (Message::from_slice(&self.bytes), Message::from_slice(response))
        else {
            return false;
        };
        let (asked, header) = (query.header(), response.header());
        // A server that could not read the query may leave the question out.
        let unread = response.header_counts().qdcount() == 0
            && header.rcode() != Rcode::NOERROR
            && header.qr()
            && header.id() == asked.id();
        unread || response.is_answer(query)
    }
}

/// Whether a response says that there is no such name.
pub fn says_no_such_name(response: &[u8]) -> bool {
    Message::from_slice(response).is_ok_and(|response| response.header().rcode() == Rcode::NXDOMAIN)
}

fn set_id(bytes: &mut [u8], id: u16) {
    if let Some(place) = bytes.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// Sends a query over a socket that is connected to the server and waits for its response, for as long as the caller
/// polls. Datagrams that are none are passed over.
///
/// # Errors
/// Those of the socket: nobody may listen there.
pub async fn over_udp(socket: &UdpSocket, forward: &Forward) -> io::Result<Vec<u8>> {
    socket.send(forward.bytes()).await?;
    loop {
        // That nobody listens there is an error of the socket's, which alone makes nothing readable.
        socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match receive(socket) {
            Ok(response) => {
                if let Some(response) = forward.accept(response) {
                    return Ok(response);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Apart from the future, which would have to carry the buffer.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = [0; LARGEST_MESSAGE];
    let length = socket.try_recv(&mut buffer)?;
    Ok(buffer.get(..length).unwrap_or_default().to_vec())
}

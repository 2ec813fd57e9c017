//! What a client speaks, by its first bytes. Pure, but for the wait for them.
//!
//! A port of which the mesh says what is spoken on it is believed. On any other the client's first bytes tell. A protocol in
//! which the server speaks first (MySQL, SMTP) must not stall: whose client is silent for a moment is TCP, and is carried as it
//! is from then on.

use std::{io, time::Duration};

use tokio::time::timeout;

use crate::{hbone::Io, mesh::AppProtocol};

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/1.1, or what will be answered with 400.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS handshake.
    Tls,
    /// Anything else.
    Tcp,
}

/// RFC 9113 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The methods that make a connection HTTP on a port of which nothing is known.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
];

/// What the client speaks on a port of this protocol. `silence` is how long it may say nothing where nothing is known.
///
/// # Errors
/// When the stream broke.
pub(super) async fn spoken(
    io: &mut Io,
    declared: Option<AppProtocol>,
    silence: Duration,
) -> io::Result<Spoken> {
    match declared {
        Some(AppProtocol::Tcp) => Ok(Spoken::Tcp),
        Some(AppProtocol::Tls) => Ok(Spoken::Tls),
        Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => Ok(match look(io).await? {
            Spoken::Http2 => Spoken::Http2,
            Spoken::Http1 | Spoken::Tls | Spoken::Tcp => Spoken::Http1,
        }),
        None => match timeout(silence, look(io)).await {
            Ok(spoken) => spoken,
            // Also one that has begun a word and does not end it: HTTP's are written at once.
            Err(_) => Ok(Spoken::Tcp),
        },
    }
}

async fn look(io: &mut Io) -> io::Result<Spoken> {
    let mut wanted = 1;
    loop {
        let seen = io.peek(wanted).await?;
        let is_all = seen.len() < wanted;
        let seen = io.first(PREFACE.len());
        if let Some(spoken) = kind(&seen) {
            return Ok(spoken);
        }
        if is_all {
            return Ok(Spoken::Tcp);
        }
        wanted = seen.len() + 1;
    }
}

/// What begins like this; none while it may still become several things.
fn kind(seen: &[u8]) -> Option<Spoken> {
    let begins = |whole: &[u8]| seen.starts_with(whole);
    let may_become = |whole: &[u8]| whole.starts_with(seen);
    if begins(PREFACE) {
        return Some(Spoken::Http2);
    }
    if METHODS.iter().any(|method| begins(method)) {
        return Some(Spoken::Http1);
    }
    match seen {
        [0x16, 0x03, ..] => Some(Spoken::Tls),
        [] | [0x16] => None,
        _ if may_become(PREFACE) || METHODS.iter().any(|method| may_become(method)) => None,
        _ => Some(Spoken::Tcp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expect: Option<Spoken>) {
        assert_eq!(kind(bytes), expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn the_first_bytes_tell() {
        check(b"", None);
        check(b"G", None);
        check(b"GET", None);
        check(b"GET ", Some(Spoken::Http1));
        check(b"GETTER", Some(Spoken::Tcp));
        check(b"get / HTTP/1.1", Some(Spoken::Tcp));
        check(b"PATCH /a HTTP/1.1\r\n", Some(Spoken::Http1));
        check(b"P", None);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None);
        check(PREFACE, Some(Spoken::Http2));
        check(b"PRI * HTTP/1.1\r\n\r\n", Some(Spoken::Tcp));
        check(&[0x16], None);
        check(&[0x16, 3, 1], Some(Spoken::Tls));
        check(&[0x16, 4], Some(Spoken::Tcp));
        check(b"SSH-2.0-", Some(Spoken::Tcp));
        check(&[0, 0, 0, 8], Some(Spoken::Tcp));
    }
}

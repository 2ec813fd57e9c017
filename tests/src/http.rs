//! One HTTP/1.1 request over a connection that exists: enough for an agent's admin, metrics and readiness ports.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, which must be UTF-8.
    pub body: String,
}

/// Sends a request without a body and reads the answer to its end.
pub fn exchange(mut stream: TcpStream, method: &str, path: &str) -> Result<Response> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: weft\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    // A server that closes with a reset after its answer has still answered.
    match stream.read_to_end(&mut answer) {
        Err(err) if err.kind() != io::ErrorKind::ConnectionReset || answer.is_empty() => Err(err)?,
        _ => parse(&String::from_utf8(answer).context("the answer is not UTF-8")?),
    }
}

fn parse(answer: &str) -> Result<Response> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    ensure!(!chunked, "the answer is chunked, which is not understood here");
    Ok(Response {
        status: status.parse().context("the status is not a number")?,
        body: body.to_owned(),
    })
}

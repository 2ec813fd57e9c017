//! A client that shows everything: one HTTP/1.1 request per connection, the answer's head first, its body when asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A request on its way.
pub(crate) struct Call {
    answer: BufReader<TcpStream>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    body: BufReader<TcpStream>,
}

/// Sends a request; `headers` have the token and the types.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &str,
) -> Result<Call> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: transcript/1.0\r\nConnection: close\r\n"
    );
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
    Ok(Call {
        answer: BufReader::new(stream),
    })
}

impl Call {
    /// Waits for the head of the answer.
    pub(crate) fn answer(mut self) -> Result<Answer> {
        let mut line = String::new();
        self.answer.read_line(&mut line).context("read the status line")?;
        let status = line
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .parse()
            .context("a status")?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.answer.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Ok(Answer {
            status,
            headers,
            body: self.answer,
        })
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body to its end; of a chunked one the last chunk must be there.
    pub(crate) fn body(mut self) -> Result<String> {
        let mut body = Vec::new();
        if self.header("transfer-encoding") != Some("chunked") {
            self.body.read_to_end(&mut body)?;
            return Ok(String::from_utf8(body)?);
        }
        loop {
            let mut size = String::new();
            self.body.read_line(&mut size).context("read a chunk's size")?;
            let size = usize::from_str_radix(size.trim(), 16)
                .with_context(|| format!("a chunk's size: {size:?}"))?;
            let mut chunk = vec![0; size + 2];
            self.body.read_exact(&mut chunk)?;
            ensure!(chunk.ends_with(b"\r\n"), "a chunk without an end");
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(String::from_utf8(body)?);
            }
        }
    }
}

//! HTTP/1.1 requests on a connection that stays open, and what the apps of `requests.py` answer.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_tests::Pod;

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// What `requests.py` says; null where the answer is somebody else's.
    pub(crate) fn said(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Which app answered; empty where it was none.
    pub(crate) fn by(&self) -> String {
        self.said()["name"].as_str().unwrap_or_default().to_owned()
    }

    /// A header that the app got; empty where it did not.
    pub(crate) fn app_saw(&self, header: &str) -> String {
        self.said()["headers"][header]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
pub(crate) struct Requests {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Requests {
    pub(crate) fn open(from: &Pod, to: SocketAddr, host: &str) -> Result<Self> {
        let stream = from.connect(to).with_context(|| format!("{from:?} dials {to}"))?;
        Ok(Self {
            stream: BufReader::new(stream),
            host: host.to_owned(),
        })
    }

    pub(crate) fn get(&mut self, target: &str) -> Result<Answer> {
        self.ask("GET", target, &[], b"")
    }

    pub(crate) fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        let sent = [head.as_bytes(), b"\r\n", body].concat();
        self.stream.get_mut().write_all(&sent)?;
        self.read()
    }

    /// The next answer.
    pub(crate) fn read(&mut self) -> Result<Answer> {
        let status = self.line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = code.with_context(|| format!("no status line: {status:?}"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let body = self.body(&headers)?;
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    fn body(&mut self, headers: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if headers.get("transfer-encoding").is_some_and(|it| it == "chunked") {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).context("the size of a chunk")?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk)?;
                body.extend(chunk);
                self.line()?;
                if size == 0 {
                    return Ok(body);
                }
            }
        }
        let length = headers.get("content-length").map_or(Ok(0), |it| it.parse())?;
        body.resize(length, 0);
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        ensure!(read > 0, "the connection ended");
        Ok(line.trim_end().to_owned())
    }
}

//! `weft status`: asks the agent's admin port and prints what it says.
//!
//! The exit code is for scripts: 0 when all is well, 1 when the agent answers but something is not as it should be, 2
//! when no agent answers.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use clap::builder::FalseyValueParser;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use crate::telemetry::{Status, chain};

mod table;
#[cfg(test)]
mod tests;

/// How long the agent may take, from the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer that is read: a thousand connections and thousands of pods fit many times.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;

/// The flags of `weft status`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = STATUS_HELP)]
pub struct StatusArgs {
    /// The agent's admin address, on loopback: run this in the agent's network namespace (in Kubernetes: in its pod)
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub address: SocketAddr,
    /// How to print.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
    /// Print without colours, also on a terminal.
    #[arg(long, env = "NO_COLOR", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub no_color: bool,
}

const STATUS_HELP: &str = "\
Example, the pods that are not captured and why:
  weft status -o json | jq '.pods[] | select(.state != \"captured\")'

Exit codes: 0 all is well, 1 the agent answers and something is not as it should be, 2 no agent answers.";

/// How the status is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Sections and columns, for people.
    #[default]
    Table,
    /// The agent's answer as it is, for scripts.
    Json,
}

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Healthy,
    Unhealthy,
    NoAgent,
}

impl From<Health> for ExitCode {
    fn from(health: Health) -> Self {
        Self::from(match health {
            Health::Healthy => 0,
            Health::Unhealthy => 1,
            Health::NoAgent => 2,
        })
    }
}

/// Why there is no status to print.
#[derive(Debug, Error)]
enum AskError {
    #[error("no agent answers on {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("the agent on {0} did not answer within {seconds} s", seconds = DEADLINE.as_secs())]
    Deadline(SocketAddr),
    #[error("the connection to {0} broke")]
    Http(SocketAddr, #[source] hyper::Error),
    #[error("what {0} answered cannot be read")]
    Body(SocketAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} answered {1}: it is not an agent's admin port")]
    Answer(SocketAddr, StatusCode),
    #[error("what {0} answered is not a status: it is not an agent's admin port")]
    NotAStatus(SocketAddr, #[source] serde_json::Error),
}

/// Runs `weft status`.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && !args.no_color;
    let health = print(&args, colour, &mut stdout.lock(), &mut io::stderr().lock()).await;
    match health {
        Ok(health) => Ok(health.into()),
        // `weft status | head` is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("cannot print the status"),
    }
}

async fn print(
    args: &StatusArgs,
    colour: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Health> {
    let (text, status) = match ask(args.address).await {
        Ok(answer) => answer,
        Err(error) => {
            writeln!(err, "{}\n{MEND}", chain(&error))?;
            return Ok(Health::NoAgent);
        }
    };
    match args.output {
        Output::Json => out.write_all(&text)?,
        Output::Table => out.write_all(table::render(&status, colour).as_bytes())?,
    }
    out.flush()?;
    Ok(if status.healthy() {
        Health::Healthy
    } else {
        Health::Unhealthy
    })
}

const MEND: &str = "\
Is the agent running? Its admin port is on loopback, so ask in the agent's network namespace; in Kubernetes:
  kubectl exec -n weft-system ds/weft-agent -- weft status
or give the address that the agent was started with: weft status --address IP:PORT";

/// The agent's answer, as it came and as it reads.
async fn ask(address: SocketAddr) -> Result<(Bytes, Status), AskError> {
    let text = timeout(DEADLINE, fetch(address))
        .await
        .map_err(|_| AskError::Deadline(address))??;
    let status = serde_json::from_slice(&text).map_err(|error| AskError::NotAStatus(address, error))?;
    Ok((text, status))
}

async fn fetch(address: SocketAddr) -> Result<Bytes, AskError> {
    let http = move |error| AskError::Http(address, error);
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| AskError::Connect(address, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async move {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = http::Uri::from_static("/status");
        request
            .headers_mut()
            .insert(header::HOST, header::HeaderValue::from_static("localhost"));
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Answer(address, response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| AskError::Body(address, error))?;
        Ok(body.to_bytes())
    };
    // The connection moves the bytes of the exchange; its own end says nothing that the exchange does not.
    let (_, answer) = tokio::join!(connection, exchange);
    answer
}

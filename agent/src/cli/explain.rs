//! `weft explain`: what becomes of one connection and what decides each step, asked of a running agent or of a mesh file.
//!
//! The exit code is for scripts: 0 allowed, 1 refused, 2 when there is no answer.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::builder::FalseyValueParser;
use http::{StatusCode, Uri};

use super::{
    ask::{AskError, fetch, mend},
    exit_code,
    status::Output,
};
use crate::{
    feed,
    telemetry::{Explanation, chain, explain},
};

mod table;
#[cfg(test)]
mod tests;

/// The flags of `weft explain`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXPLAIN_HELP)]
pub struct ExplainArgs {
    /// Who dials: a workload as <namespace>/<name>, or an IP address
    #[arg(long, value_name = "WORKLOAD")]
    pub from: String,
    /// What is dialled: an IP address or a service's hostname, and a port
    #[arg(long, value_name = "HOST:PORT")]
    pub to: String,
    /// Ask this mesh file; no agent needs to run
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    pub mesh_file: Option<PathBuf>,
    /// The agent's admin address, on loopback: run this in the agent's network namespace (in Kubernetes: in its pod)
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub address: SocketAddr,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
    /// Print without colours, also on a terminal
    #[arg(long, env = "NO_COLOR", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub no_color: bool,
}

const EXPLAIN_HELP: &str = "\
Examples:
  weft explain --from demo/shop-1 --to cart.demo.svc.cluster.local:80
  weft explain --from demo/shop-1 --to 10.96.0.10:80 -o json | jq '.ways[].hops[].verdict'
  weft explain --mesh-file mesh.yaml --from 10.244.9.9 --to 10.244.2.10:8080

It judges by addresses, ports, identities and policies of L4, as agents do; what a waypoint says of a request it does not
know, nor what is outside of the mesh: a NetworkPolicy, an app that does not listen.

Exit codes: 0 allowed, 1 refused, 2 wrong usage, or no agent answers.";

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allowed,
    Refused,
    None,
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        Self::from(match answer {
            Answer::Allowed => 0,
            Answer::Refused => 1,
            Answer::None => 2,
        })
    }
}

/// Runs `weft explain`.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && !args.no_color;
    let printed = print(&args, colour, &mut stdout.lock(), &mut io::stderr().lock()).await;
    exit_code(printed, "cannot print the explanation")
}

async fn print(
    args: &ExplainArgs,
    colour: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Answer> {
    let found = match &args.mesh_file {
        Some(file) => from_file(file, args),
        None => from_agent(args).await,
    };
    let explanation = match found {
        Ok(explanation) => explanation,
        Err(message) => {
            writeln!(err, "{message}")?;
            return Ok(Answer::None);
        }
    };
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &explanation)?;
            writeln!(out)?;
        }
        Output::Table => out.write_all(table::render(&explanation, colour).as_bytes())?,
    }
    out.flush()?;
    Ok(if explanation.allowed {
        Answer::Allowed
    } else {
        Answer::Refused
    })
}

/// What the mesh of a file says; or why nothing.
fn from_file(file: &Path, args: &ExplainArgs) -> Result<Explanation, String> {
    // No node: which pods are captured where is not asked.
    let mesh = feed::load(file, "").map_err(|error| chain(&error))?.mesh;
    explain(&mesh, &args.from, &args.to, |_| None).map_err(|error| error.to_string())
}

/// What a running agent says; or why nothing.
async fn from_agent(args: &ExplainArgs) -> Result<Explanation, String> {
    let (address, query) = (args.address, query(&args.from, &args.to));
    let lost = |error: AskError| format!("{}\n{}", chain(&error), mend("explain"));
    let path = Uri::try_from(format!("/explain?{query}")).map_err(|error| error.to_string())?;
    let (code, body) = fetch(address, path).await.map_err(lost)?;
    match code {
        StatusCode::OK => {
            serde_json::from_slice(&body).map_err(|error| lost(AskError::NotUnderstood(address, error)))
        }
        // The agent says what is wrong with the question.
        StatusCode::BAD_REQUEST => Err(String::from_utf8_lossy(&body).trim_end().to_owned()),
        code => Err(lost(AskError::Answer(address, code))),
    }
}

fn query(from: &str, to: &str) -> String {
    format!("from={}&to={}", percent_encode(from), percent_encode(to))
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/' | b':');
    let encoded = text.bytes().map(|byte| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    encoded.collect()
}

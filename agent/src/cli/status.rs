//! `weft status`: asks the agent's admin port and prints what it says.
//!
//! The exit code is for scripts: 0 when all is well, 1 when the agent answers but something is not as it should be, 2
//! when no agent answers.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
};

use bytes::Bytes;
use clap::builder::FalseyValueParser;
use http::{StatusCode, Uri};

use super::{
    ask::{AskError, fetch, mend},
    exit_code,
};
use crate::telemetry::{Status, chain};

mod table;
#[cfg(test)]
mod tests;

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

/// Runs `weft status`.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && !args.no_color;
    let printed = print(&args, colour, &mut stdout.lock(), &mut io::stderr().lock()).await;
    exit_code(printed, "cannot print the status")
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
            writeln!(err, "{}\n{}", chain(&error), mend("status"))?;
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

/// The agent's answer, as it came and as it reads.
async fn ask(address: SocketAddr) -> Result<(Bytes, Status), AskError> {
    let (code, text) = fetch(address, Uri::from_static("/status")).await?;
    if code != StatusCode::OK {
        return Err(AskError::Answer(address, code));
    }
    let status = serde_json::from_slice(&text).map_err(|error| AskError::NotUnderstood(address, error))?;
    Ok((text, status))
}

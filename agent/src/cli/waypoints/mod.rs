//! `weft apply waypoint`, `weft get waypoints`, `weft delete waypoint`: Gateways that are waypoints, by name.
//!
//! A Gateway is all that they write, and the label that sends a namespace through it; the controller deploys what it means.

mod apply;
mod cluster;
mod delete;
mod get;
mod read;
mod table;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

pub use self::{
    apply::{ApplyWaypointArgs, For, Format},
    delete::DeleteWaypointArgs,
    get::GetWaypointsArgs,
};
use crate::cluster::client::Access;

/// Which cluster, of every command about waypoints.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// The cluster [default: as kubectl has it; in a pod, its service account's]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterArgs {
    fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}

/// The flags of `weft apply`.
#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {
    /// What is made.
    #[command(subcommand)]
    pub what: Apply,
}

/// What is made.
#[derive(Clone, Debug, Subcommand)]
pub enum Apply {
    /// Make a waypoint, or change one: layer 7 for what is bound to it
    Waypoint(ApplyWaypointArgs),
}

/// The flags of `weft get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// What is shown.
    #[command(subcommand)]
    pub what: Get,
}

/// What is shown.
#[derive(Clone, Debug, Subcommand)]
pub enum Get {
    /// Show waypoints: whether they take requests, and which services are bound to them
    #[command(alias = "waypoint")]
    Waypoints(GetWaypointsArgs),
}

/// The flags of `weft delete`.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// What is deleted.
    #[command(subcommand)]
    pub what: Delete,
}

/// What is deleted.
#[derive(Clone, Debug, Subcommand)]
pub enum Delete {
    /// Delete a waypoint; services that are bound to it are refused from then on
    Waypoint(DeleteWaypointArgs),
}

/// Runs `weft apply`.
///
/// # Errors
/// When nothing can be printed.
pub async fn apply(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let Apply::Waypoint(args) = args.what;
    ended(apply::run(&args).await)
}

/// Runs `weft get`.
///
/// # Errors
/// When nothing can be printed.
pub async fn get(args: GetArgs) -> anyhow::Result<ExitCode> {
    let Get::Waypoints(args) = args.what;
    ended(get::run(&args).await)
}

/// Runs `weft delete`.
///
/// # Errors
/// When nothing can be printed.
pub async fn delete(args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let Delete::Waypoint(args) = args.what;
    ended(delete::run(&args).await)
}

/// What the cluster does not answer or refuses is 2.
fn ended(done: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    done.or_else(|error| {
        eprintln!("weft: {error:#}");
        Ok(ExitCode::from(2))
    })
}

//! `weft analyze`: what is wrong with manifests, or with a cluster's objects, or will not do what it seems to. With files it
//! asks nobody.
//!
//! What there is to say, `controller::analyze` knows; here is where it stands in which file, how it is printed, and the
//! exit code.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, builder::FalseyValueParser};

use self::{
    finding::{Finding, findings},
    inputs::Inputs,
};
use super::{exit_code, status::Output};
use crate::{
    cluster::client::Access,
    controller::{
        analyze::{self, Scope},
        compile::{Settings, Severity},
    },
};

mod files;
mod finding;
mod inputs;
mod listing;
mod table;
#[cfg(test)]
mod tests;

/// The flags of `weft analyze`.
#[derive(Clone, Debug, Args)]
#[command(after_help = ANALYZE_HELP)]
pub struct AnalyzeArgs {
    /// Files and folders with manifests; `-` is the standard input
    #[arg(value_name = "FILE", required_unless_present_any = ["cluster", "list"], conflicts_with_all = ["cluster", "list"])]
    pub files: Vec<PathBuf>,
    /// Look at what the cluster has
    #[arg(long)]
    pub cluster: bool,
    /// Print the codes, and what each of them means
    #[arg(long, conflicts_with = "cluster")]
    pub list: bool,
    /// Of a cluster: say only what is in this namespace. Of files: the namespace of what names none [default: default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Fail for warnings as well
    #[arg(long)]
    pub strict: bool,
    /// Say nothing of this code, and let it pass: WEFT0401
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// The namespace whose policies cover the whole mesh
    #[arg(
        long,
        env = "WEFT_ROOT_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "istio-system"
    )]
    pub root_namespace: String,
    /// What services' hostnames end in
    #[arg(
        long,
        env = "WEFT_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
    /// Print without colours, also on a terminal
    #[arg(long, env = "NO_COLOR", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub no_color: bool,
    /// The cluster [default: as kubectl has it; in a pod, its service account's]
    #[arg(long, value_name = "FILE", requires = "cluster", conflicts_with = "files")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", requires = "cluster", conflicts_with = "files")]
    pub context: Option<String>,
}

const ANALYZE_HELP: &str = "\
Examples:
  weft analyze manifests/
  helm template shop ./chart | weft analyze -n shop -
  weft analyze --strict --ignore WEFT0505 *.yaml
  weft analyze --cluster -n shop
  weft analyze --cluster -o json | jq '.findings[] | select(.severity == \"error\")'

Pods are also looked for in the templates of Deployments and their like. What files name and do not have may be in the cluster:
that is said, and is no error.

Exit codes: 0 nothing is wrong, 1 something is (with --strict: or may be), 2 wrong usage, no such file, or no cluster answers.";

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Fine,
    Wrong,
    None,
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        Self::from(match answer {
            Answer::Fine => 0,
            Answer::Wrong => 1,
            Answer::None => 2,
        })
    }
}

/// Runs `weft analyze`.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(args: AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && !args.no_color;
    let printed = print(&args, colour, &mut stdout.lock(), &mut io::stderr().lock()).await;
    exit_code(printed, "cannot print what is wrong")
}

async fn print(
    args: &AnalyzeArgs,
    colour: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Answer> {
    if args.list {
        table::codes(args.output, out)?;
        return Ok(Answer::Fine);
    }
    let inputs = match read(args).await {
        Ok(inputs) => inputs,
        Err(message) => {
            writeln!(err, "weft: {message}")?;
            return Ok(Answer::None);
        }
    };
    let findings = found(args, &inputs);
    match args.output {
        Output::Json => table::json(&findings, &inputs, out)?,
        Output::Table => out.write_all(table::render(&findings, &inputs, colour).as_bytes())?,
    }
    out.flush()?;
    Ok(answer(&findings, args.strict))
}

/// What there is to look at; or why nothing.
async fn read(args: &AnalyzeArgs) -> Result<Inputs, String> {
    if args.cluster {
        let access = Access {
            kubeconfig: args.kubeconfig.clone(),
            context: args.context.clone(),
        };
        return listing::list(&access).await;
    }
    let texts = files::read(&args.files, &mut io::stdin())?;
    Ok(Inputs::of_files(texts, args.namespace.as_deref()))
}

/// What is wrong with it, as far as it was asked for.
fn found(args: &AnalyzeArgs, inputs: &Inputs) -> Vec<Finding> {
    let settings = Settings {
        root_namespace: args.root_namespace.as_str().into(),
        cluster_domain: args.cluster_domain.to_ascii_lowercase().into(),
        ..Settings::default()
    };
    let scope = match args.cluster {
        true => Scope::Cluster,
        false => Scope::Files,
    };
    let diagnostics = analyze::analyze(inputs.objects(), &settings, scope);
    let mut findings = findings(diagnostics, inputs);
    let ignored = |it: &Finding| args.ignore.iter().any(|code| code.eq_ignore_ascii_case(&it.code));
    let elsewhere = |it: &Finding| {
        let wanted = args.namespace.as_ref().filter(|_| args.cluster);
        wanted.is_some_and(|namespace| it.namespace != *namespace && !it.is_namespace(namespace))
    };
    findings.retain(|it| !ignored(it) && !elsewhere(it));
    findings
}

fn answer(findings: &[Finding], strict: bool) -> Answer {
    let worst = findings.iter().map(|it| it.severity).min();
    match worst {
        Some(Severity::Error) => Answer::Wrong,
        Some(Severity::Warning) if strict => Answer::Wrong,
        _ => Answer::Fine,
    }
}

//! What is wrong as people like to read it, as JSON for programs, and the list of all codes. Pure, but for where it is
//! written to.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    finding::{Finding, number},
    inputs::Inputs,
};
use crate::{
    cli::{
        page::{Mark, Page},
        status::Output,
    },
    controller::{analyze::CODES, compile::Severity},
};

/// What there is in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    errors: usize,
    warnings: usize,
    infos: usize,
    /// Files that were read; 0 for a cluster.
    files: usize,
    /// Objects that mean something to weft.
    objects: usize,
    /// Documents of files that do not.
    others: usize,
}

impl Summary {
    fn new(findings: &[Finding], inputs: &Inputs) -> Self {
        let count = |severity| findings.iter().filter(|it| it.severity == severity).count();
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            infos: count(Severity::Info),
            files: inputs.files(),
            objects: inputs.objects().len(),
            others: inputs.others,
        }
    }
}

/// The whole page, with a line feed at its end.
pub(super) fn render(findings: &[Finding], inputs: &Inputs, colour: bool) -> String {
    let mut page = Page::new(colour);
    for finding in findings {
        page.line(mark(finding.severity), &title(finding));
        page.text(&finding.message);
    }
    let summary = Summary::new(findings, inputs);
    page.line(worst(&summary), &totals(&summary));
    page.text
}

fn mark(severity: Severity) -> Mark {
    match severity {
        Severity::Error => Mark::Bad,
        Severity::Warning => Mark::Waiting,
        Severity::Info => Mark::Good,
    }
}

fn worst(summary: &Summary) -> Mark {
    match summary {
        Summary { errors: 1.., .. } => Mark::Bad,
        Summary { warnings: 1.., .. } => Mark::Waiting,
        _ => Mark::Good,
    }
}

/// `error WEFT0101 InvalidField  shop.yaml:7  AuthorizationPolicy shop/web`.
fn title(it: &Finding) -> String {
    let line = it.line.map(|line| format!(":{line}")).unwrap_or_default();
    let place = it.file.as_ref().map(|file| format!("{file}{line}"));
    let name = match it.namespace.as_str() {
        "" => it.name.clone(),
        namespace => format!("{namespace}/{}", it.name),
    };
    let object = Some(format!("{} {name}", it.kind)).filter(|_| !it.kind.is_empty());
    let what = format!("{} {} {}", it.severity, it.code, it.reason);
    [Some(what), place, object]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("  ")
}

fn totals(it: &Summary) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut text = format!(
        "{}, {}, {} in {}",
        count(it.errors, "error"),
        count(it.warnings, "warning"),
        count(it.infos, "info"),
        count(it.objects, "object"),
    );
    if it.files > 0 {
        text += &format!(" of {}", count(it.files, "file"));
    }
    if it.others > 0 {
        text += &format!("; {} of other kinds not looked at", count(it.others, "document"));
    }
    text
}

#[derive(Serialize)]
struct Answer<'a> {
    findings: &'a [Finding],
    summary: Summary,
}

/// As JSON.
pub(super) fn json(findings: &[Finding], inputs: &Inputs, out: &mut impl Write) -> io::Result<()> {
    let summary = Summary::new(findings, inputs);
    serde_json::to_writer_pretty(&mut *out, &Answer { findings, summary })?;
    writeln!(out)
}

#[derive(Serialize)]
struct Listed {
    code: String,
    reason: &'static str,
    means: &'static str,
    mend: &'static str,
}

/// All codes.
pub(super) fn codes(output: Output, out: &mut impl Write) -> io::Result<()> {
    let all = CODES.iter().map(|it| Listed {
        code: number(it),
        reason: it.reason,
        means: it.means,
        mend: it.mend,
    });
    match output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &all.collect::<Vec<_>>())?;
            writeln!(out)?;
        }
        Output::Table => {
            for it in all {
                writeln!(out, "{}  {:24}{}: {}", it.code, it.reason, it.means, it.mend)?;
            }
        }
    }
    out.flush()
}

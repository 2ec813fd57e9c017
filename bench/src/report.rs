//! The report: everything that was found out, as it is kept in JSON. What people read is made of it: a table for the
//! terminal, one for a page (`markdown`), a page of its own with charts (`html`), and a comparison with an older one (`compare`).

use serde::{Deserialize, Serialize};

use crate::{
    figures::{Curve, Ground, Series},
    machine::Machine,
};

/// A way for two pods to talk, as the report names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModeInfo {
    /// Short, unique on its ground: what figures are filed under.
    pub(crate) name: String,
    pub(crate) ground: Ground,
    /// What it is, in one line.
    pub(crate) about: String,
}

/// How something grows with the mesh: the same thing for several sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Growth {
    /// What grows, for example `workloads in the mesh`.
    pub(crate) of: String,
    /// The sizes, rising.
    pub(crate) sizes: Vec<u64>,
    /// One line for each thing that was measured, by mode; `None` where it was not measured at that size.
    pub(crate) lines: Vec<GrowthLine>,
}

/// One line of a [`Growth`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GrowthLine {
    #[serde(flatten)]
    pub(crate) measure: crate::figures::Measure,
    pub(crate) mode: String,
    pub(crate) figures: Vec<Option<f64>>,
}

/// All that was found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// The command that was run.
    pub(crate) command: String,
    /// In the order in which each round plays them; direct TCP is the first of its ground.
    pub(crate) modes: Vec<ModeInfo>,
    pub(crate) series: Vec<Series>,
    pub(crate) curves: Vec<Curve>,
    pub(crate) growth: Vec<Growth>,
    /// What did not come off, each in one line.
    pub(crate) failures: Vec<String>,
    /// What was left out, and why.
    pub(crate) skipped: Vec<String>,
    /// How often each load was played.
    pub(crate) rounds: usize,
    /// How long all of it took.
    pub(crate) seconds: u64,
}

impl Report {
    /// What a reader must know before believing the figures.
    pub(crate) fn caveats(&self) -> Vec<String> {
        let (noisy, all) = (
            self.series.iter().filter(|series| series.noisy()).count(),
            self.series.len(),
        );
        let mut caveats = self.machine.caveats();
        if noisy > 0 {
            caveats.push(format!(
                "noisy: in {noisy} of {all} measures the rounds differ by more than a quarter (marked ~); believe the order, not the figure"
            ));
        }
        if self.machine.quick {
            caveats.push("quick: fewer, shorter rounds than a whole run".to_owned());
        }
        caveats
    }

    /// The modes of a ground, in order.
    pub(crate) fn modes_on(&self, ground: Ground) -> impl Iterator<Item = &ModeInfo> {
        self.modes.iter().filter(move |mode| mode.ground == ground)
    }

    /// The measures of a ground, in order.
    pub(crate) fn series_on(&self, ground: Ground) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.ground == ground)
    }
}

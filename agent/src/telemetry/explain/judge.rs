//! What authorization says of one hop, told: the verdict, what decided it, and the policies on trial. Pure; called by
//! `replay` and `hop`.

use std::collections::BTreeSet;

use super::{DryRunMatch, Judgement};
use crate::mesh::{
    Inbound, Mesh, PolicyKey, Refusal, Verdict, Workload, authorize, dry_run_matches, rehearse,
};

/// How many dry-run policies are listed.
const MOST_DRY_RUNS: usize = 16;

pub(super) fn judge(mesh: &Mesh, workload: &Workload, question: &Inbound) -> Judgement {
    let verdict = authorize(mesh, workload, question);
    let if_enforced = rehearse(mesh, workload, question).filter(|rehearsed| *rehearsed != verdict);
    let (reason, policy) = shown(&verdict);
    Judgement {
        allowed: matches!(verdict, Verdict::Allow { .. }),
        reason,
        policy,
        unseen: unseen(mesh, &verdict),
        dry_run_matches: dry_run_matches(mesh, workload, question)
            .take(MOST_DRY_RUNS)
            .map(|policy| DryRunMatch {
                policy: policy.key.to_string(),
                action: policy.action.to_string(),
            })
            .collect(),
        if_enforced: if_enforced.map(|verdict| shown(&verdict).0),
    }
}

/// What the policies that a refusal names look at and no agent sees.
fn unseen(mesh: &Mesh, verdict: &Verdict) -> Vec<String> {
    let policies = match verdict {
        Verdict::Deny(Refusal::NotAllowed(in_scope)) => in_scope.named.as_slice(),
        Verdict::Deny(refusal) => refusal.policy().map(std::slice::from_ref).unwrap_or_default(),
        Verdict::Allow { .. } => &[],
    };
    let of_policy = |key: &PolicyKey| {
        let clauses = mesh.policy(key)?.rules.iter().flat_map(|rule| &rule.clauses);
        let matches = clauses.flat_map(|clause| &clause.matches);
        let fields: BTreeSet<&str> = matches
            .flat_map(|match_| match_.unseen.iter().chain(&match_.unreadable))
            .map(|field| &**field)
            .collect();
        let fields: Vec<_> = fields.into_iter().collect();
        (!fields.is_empty()).then(|| format!("{key}: {}", fields.join(", ")))
    };
    policies.iter().filter_map(of_policy).collect()
}

/// The reason, and the policy where a single one decided.
fn shown(verdict: &Verdict) -> (String, Option<String>) {
    match verdict {
        Verdict::Allow { policy: Some(policy) } => {
            (format!("allowed by policy {policy}"), Some(policy.to_string()))
        }
        Verdict::Allow { policy: None } => ("allowed: no ALLOW policy covers the workload".to_owned(), None),
        Verdict::Deny(refusal) => (refusal.to_string(), refusal.policy().map(ToString::to_string)),
    }
}

pub(super) fn refused(refusal: &Refusal) -> Judgement {
    let (reason, policy) = shown(&Verdict::Deny(refusal.clone()));
    Judgement {
        reason,
        policy,
        ..Judgement::default()
    }
}

//! mTLS modes as policies: Istio's protocol has no PeerAuthentication; its server sends DENY policies for peers that prove
//! nothing, and so do we. An agent of ours recognises them, because a STRICT port can be refused before its client has sent a
//! byte; whatever it does not recognise stays a policy, and refuses as one.

use std::{collections::BTreeMap, sync::Arc};

use crate::mesh::{
    Action, Clause, Match, MtlsMode, PeerAuthentication, Policy, PolicyKey, PortModes, Rule, Scope,
    StringMatch,
};

/// What the names of such policies begin with.
const CONVERTED: &str = "converted_peer_authentication_";
/// The name of the one policy, in the root namespace, for every workload of which all ports are STRICT.
const STRICT: &str = "istio_converted_static_strict";

/// What a policy says about mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted(pub PeerAuthentication);

/// Reads a policy as mTLS modes of the workloads that name it. Nothing if it is any other policy, or says more than that.
pub fn converted(policy: &Policy) -> Option<Converted> {
    let name = policy.key.name.strip_prefix(CONVERTED);
    let is_strict = &*policy.key.name == STRICT;
    let is_one = policy.scope == Scope::Selector && policy.action == Action::Deny && !policy.dry_run;
    if !is_one || !(is_strict || name.is_some()) {
        return None;
    }
    let mut modes = PeerAuthentication {
        key: PolicyKey {
            namespace: policy.key.namespace.clone(),
            name: name.unwrap_or(STRICT).into(),
        },
        ..PeerAuthentication::default()
    };
    for rule in &policy.rules {
        match refused(rule)? {
            Ports::Only(ports) => modes
                .ports
                .extend(ports.iter().map(|port| (*port, MtlsMode::Strict))),
            Ports::AllBut(ports) if modes.mode.is_none() => {
                modes.mode = Some(MtlsMode::Strict);
                for port in ports {
                    modes.ports.entry(port).or_insert(MtlsMode::Permissive);
                }
            }
            // Two such rules refuse what either does: not ours to work out.
            Ports::AllBut(_) => return None,
        }
    }
    (!policy.rules.is_empty()).then(|| {
        modes.mode.get_or_insert(MtlsMode::Permissive);
        Converted(modes)
    })
}

/// The ports on which a rule refuses who proves nothing.
enum Ports {
    Only(Vec<u16>),
    AllBut(Vec<u16>),
}

/// All clauses must hold, so those of one match each are one match.
fn refused(rule: &Rule) -> Option<Ports> {
    let (mut nobody, mut only, mut but) = (false, Vec::new(), Vec::new());
    for clause in &rule.clauses {
        let [it] = &clause.matches[..] else { return None };
        let rest = Match {
            not_principals: Vec::new(),
            destination_ports: Vec::new(),
            not_destination_ports: Vec::new(),
            ..it.clone()
        };
        if rest != Match::default() || (!it.destination_ports.is_empty() && !only.is_empty()) {
            return None;
        }
        match &it.not_principals[..] {
            [] => {}
            [StringMatch::Presence] => nobody = true,
            _ => return None,
        }
        only.extend_from_slice(&it.destination_ports);
        but.extend_from_slice(&it.not_destination_ports);
    }
    if !nobody {
        return None;
    }
    match (only.is_empty(), but.is_empty()) {
        (true, _) => Some(Ports::AllBut(but)),
        (false, true) => Some(Ports::Only(only)),
        (false, false) => None,
    }
}

/// The name of the policy that says a workload's modes, if there is anything to say. `decides` is what set them.
pub fn modes_policy(
    modes: &PortModes,
    decides: &PolicyKey,
    namespace: &Arc<str>,
    root: &Arc<str>,
) -> Option<PolicyKey> {
    if modes.ports.is_empty() {
        return (modes.mode == MtlsMode::Strict).then(|| PolicyKey {
            namespace: root.clone(),
            name: STRICT.into(),
        });
    }
    Some(PolicyKey {
        namespace: namespace.clone(),
        name: format!("{CONVERTED}{}", decides.name).into(),
    })
}

/// The policy of that name.
pub fn encode_modes(key: PolicyKey, modes: &PortModes) -> Policy {
    let of = |wanted: MtlsMode| {
        let ports: &BTreeMap<u16, MtlsMode> = &modes.ports;
        ports
            .iter()
            .filter(move |(_, mode)| **mode == wanted)
            .map(|(port, _)| *port)
            .collect::<Vec<_>>()
    };
    let ports = match modes.mode {
        MtlsMode::Strict => Match {
            not_destination_ports: of(MtlsMode::Permissive),
            ..nobody()
        },
        MtlsMode::Permissive => Match {
            destination_ports: of(MtlsMode::Strict),
            ..nobody()
        },
    };
    let rule = Rule {
        clauses: vec![Clause { matches: vec![ports] }],
    };
    Policy {
        key,
        scope: Scope::Selector,
        action: Action::Deny,
        rules: vec![rule],
        dry_run: false,
    }
}

fn nobody() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

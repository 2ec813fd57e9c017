//! What enrolment has to do: the difference between the pods that should be captured and those that are. Pure; `enroll`
//! does it, turn by turn, and the simulation asks whether it was the right thing.

#![allow(unreachable_pub, reason = "the simulation compiles this file by itself")]

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use crate::mesh::PortModes;

/// A pod that should be captured. `N` says where its network namespace is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired<N = PathBuf> {
    /// Where its network namespace is; empty where it is not known any more.
    pub netns: N,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its ports take plaintext.
    pub modes: PortModes,
    /// Whether its DNS queries are captured.
    pub dns: bool,
}

/// One step from what is to what should be.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Capture a pod.
    Capture(Arc<str>),
    /// Tell the kernel a pod's new port modes.
    SetModes(Arc<str>),
    /// Let a pod go.
    Release(Arc<str>),
}

/// The difference between what should be and what is. Releases come first: another pod may have the address of one that
/// went. A pod that changed, or was made anew, is captured as it is now and never released in between.
pub fn plan<N: PartialEq>(
    desired: &BTreeMap<Arc<str>, Desired<N>>,
    actual: &BTreeMap<Arc<str>, Desired<N>>,
) -> Vec<Action> {
    let same_pod =
        |a: &Desired<N>, b: &Desired<N>| (&a.netns, &a.addresses, a.dns) == (&b.netns, &b.addresses, b.dns);
    let unwanted = actual.keys().filter(|uid| !desired.contains_key(*uid));
    let releases = unwanted.map(|uid| Action::Release(uid.clone()));
    let rest = desired.iter().filter_map(|(uid, want)| match actual.get(uid) {
        Some(is) if same_pod(want, is) => (want.modes != is.modes).then(|| Action::SetModes(uid.clone())),
        _ => Some(Action::Capture(uid.clone())),
    });
    releases.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::MtlsMode;

    fn pod(netns: &str, address: &str, mode: MtlsMode) -> Desired {
        Desired {
            netns: netns.into(),
            addresses: vec![address.parse().expect("an address")],
            modes: PortModes {
                mode,
                ports: BTreeMap::new(),
            },
            dns: true,
        }
    }

    fn check(desired: &[(&str, Desired)], actual: &[(&str, Desired)], expect: &[Action]) {
        let map = |pods: &[(&str, Desired)]| {
            pods.iter()
                .map(|(uid, pod)| (Arc::from(*uid), pod.clone()))
                .collect()
        };
        assert_eq!(plan(&map(desired), &map(actual)), expect);
    }

    #[test]
    fn the_plan_is_the_difference() {
        use MtlsMode::{Permissive, Strict};
        let a = || pod("/run/netns/a", "10.0.0.1", Permissive);
        check(&[], &[], &[]);
        check(&[("a", a())], &[], &[Action::Capture("a".into())]);
        check(&[("a", a())], &[("a", a())], &[]);
        check(&[], &[("a", a())], &[Action::Release("a".into())]);
        let strict = pod("/run/netns/a", "10.0.0.1", Strict);
        check(&[("a", strict)], &[("a", a())], &[Action::SetModes("a".into())]);
    }

    #[test]
    fn a_pod_that_changed_is_never_released_in_between() {
        let old = pod("/run/netns/a", "10.0.0.1", MtlsMode::Permissive);
        let captured_anew = [Action::Capture("a".into())];
        let moved = pod("/run/netns/b", "10.0.0.1", MtlsMode::Permissive);
        check(&[("a", moved)], &[("a", old.clone())], &captured_anew);
        let other_address = pod("/run/netns/a", "10.0.0.2", MtlsMode::Permissive);
        check(&[("a", other_address)], &[("a", old.clone())], &captured_anew);
        let without_dns = Desired {
            dns: false,
            ..old.clone()
        };
        check(&[("a", without_dns)], &[("a", old)], &captured_anew);
    }

    #[test]
    fn an_address_that_moved_to_another_pod_is_released_first() {
        let old = pod("/run/netns/z", "10.0.0.1", MtlsMode::Permissive);
        let new = pod("/run/netns/a", "10.0.0.1", MtlsMode::Permissive);
        check(
            &[("a", new)],
            &[("z", old)],
            &[Action::Release("z".into()), Action::Capture("a".into())],
        );
    }
}

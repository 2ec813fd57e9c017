//! What the kernel's maps hold for one pair, and the difference between what they hold and what they should. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use crate::kernel::verdicts::Dialled;

/// What the maps hold for the connections of one pod to one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// The apps that the pod may reach directly.
    pub(super) verdicts: BTreeSet<Dialled>,
    /// Where the address is a service's: among how many endpoints connections are spread, and which of those are apps here.
    pub(super) service: Option<Choices>,
}

/// A service's endpoints, as one pod may reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) service: Dialled,
    /// How many there are, here and elsewhere.
    pub(super) endpoints: u32,
    /// Those of them that are dialled directly, by their number.
    pub(super) apps: BTreeMap<u32, SocketAddr>,
}

/// One change of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Revoke(Dialled),
    Unspread(Dialled),
    Unchoose(Dialled, u32),
    Allow(Dialled),
    Choose(Dialled, u32, SocketAddr),
    Spread(Dialled, u32),
}

/// What leads from `old` to `new`. What is taken back comes first; and a service is spread over its endpoints when all of
/// them are there. `others` says whether another pair needs a verdict.
pub(super) fn plan(old: &Entries, new: &Entries, others: impl Fn(&Dialled) -> bool) -> Vec<Action> {
    let gone = old.verdicts.difference(&new.verdicts);
    let mut actions: Vec<_> = gone
        .filter(|verdict| !others(verdict))
        .map(|verdict| Action::Revoke(*verdict))
        .collect();
    if let Some(choices) = &old.service {
        let kept = |number| new.service.as_ref().and_then(|it| it.apps.get(number));
        if new.service.is_none() {
            actions.push(Action::Unspread(choices.service));
        }
        let gone = choices.apps.keys().filter(|number| kept(number).is_none());
        actions.extend(gone.map(|number| Action::Unchoose(choices.service, *number)));
    }
    let come = new.verdicts.difference(&old.verdicts);
    actions.extend(come.map(|verdict| Action::Allow(*verdict)));
    if let Some(choices) = &new.service {
        let had = |number| old.service.as_ref().and_then(|it| it.apps.get(number));
        let come = choices
            .apps
            .iter()
            .filter(|(number, app)| had(number) != Some(*app));
        actions.extend(come.map(|(number, app)| Action::Choose(choices.service, *number, *app)));
        let before = old.service.as_ref().map(|it| it.endpoints);
        if before != Some(choices.endpoints) {
            actions.push(Action::Spread(choices.service, choices.endpoints));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn pod(app: &str) -> Entries {
        Entries {
            verdicts: [(1, addr(app))].into(),
            service: None,
        }
    }

    fn service(endpoints: u32, apps: &[(u32, &str)]) -> Entries {
        let apps: BTreeMap<_, _> = apps.iter().map(|(number, app)| (*number, addr(app))).collect();
        Entries {
            verdicts: apps.values().map(|app| (1, *app)).collect(),
            service: Some(Choices {
                service: (1, addr("10.96.0.1:80")),
                endpoints,
                apps,
            }),
        }
    }

    fn check(old: &Entries, new: &Entries, expect: &[Action]) {
        assert_eq!(plan(old, new, |_| false), expect);
    }

    #[test]
    fn the_plan_is_the_difference_and_takes_back_first() {
        let (a, b, vip) = (addr("10.0.0.2:80"), addr("10.0.0.3:80"), addr("10.96.0.1:80"));
        let none = Entries::default();
        check(&none, &none, &[]);
        check(&none, &pod("10.0.0.2:80"), &[Action::Allow((1, a))]);
        check(&pod("10.0.0.2:80"), &none, &[Action::Revoke((1, a))]);
        let one = service(3, &[(1, "10.0.0.2:80")]);
        let added = [
            Action::Allow((1, a)),
            Action::Choose((1, vip), 1, a),
            Action::Spread((1, vip), 3),
        ];
        check(&none, &one, &added);
        check(&one, &one, &[]);
        let gone = [
            Action::Revoke((1, a)),
            Action::Unspread((1, vip)),
            Action::Unchoose((1, vip), 1),
        ];
        check(&one, &none, &gone);
        let moved = [
            Action::Revoke((1, a)),
            Action::Allow((1, b)),
            Action::Choose((1, vip), 1, b),
        ];
        check(&one, &service(3, &[(1, "10.0.0.3:80")]), &moved);
    }

    #[test]
    fn a_verdict_that_another_pair_needs_stays() {
        let old = service(1, &[(0, "10.0.0.2:80")]);
        let actions = plan(&old, &Entries::default(), |_| true);
        assert!(
            !actions.iter().any(|action| matches!(action, Action::Revoke(_))),
            "{actions:?}"
        );
        assert_eq!(actions.len(), 2);
    }
}

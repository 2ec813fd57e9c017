//! Which rule a request falls under, and who may ask for what: every entry and every policy in turn.

use std::collections::BTreeSet;

use weft_pure::mesh::{
    Action, Inbound, PolicyKey, StringMatch, Workload,
    http::{
        ConditionKey, HostMatch, PathMatch, PathPattern, RequestMatch, RequestTest, ServiceRoutes, TextMatch,
    },
};

use super::authorize::{Answer, covering, holds as policy_holds, named, within};
use crate::{requests::Request, world::World};

/// The name of the rule; `unrouted`, or `404`.
pub(crate) fn rule(routes: &ServiceRoutes, port: u16, request: &Request) -> String {
    let Some(of_port) = routes.http.get(&port) else {
        return "unrouted".into();
    };
    let consumer = of_port
        .consumers
        .iter()
        .find(|(namespace, _)| ***namespace == *request.namespace);
    let table = consumer.map(|(_, table)| table).or(of_port.producer.as_ref());
    let Some(table) = table else {
        return "unrouted".into();
    };
    for entry in &table.entries {
        if test_holds(&entry.test, request) {
            return table.rules[entry.rule].name.to_string();
        }
    }
    "404".into()
}

fn host(request: &Request) -> String {
    let name = request.authority.split(':').next().unwrap_or_default();
    name.trim_end_matches('.').to_lowercase()
}

fn test_holds(test: &RequestTest, request: &Request) -> bool {
    let host = host(request);
    let host_holds = |it: &HostMatch| match it {
        HostMatch::Any => true,
        HostMatch::Exact(name) => host == **name,
        HostMatch::Under(end) => host.ends_with(&**end) && host != **end,
    };
    let (path, lower) = (request.path, request.path.to_lowercase());
    let path_holds = |it: &PathMatch| match it {
        PathMatch::Exact(text) => path == &**text,
        PathMatch::Under(text) if **text == *"/" => true,
        PathMatch::Under(text) => path == &**text || path.starts_with(&format!("{text}/")),
        PathMatch::Prefix(text) => path.starts_with(&**text),
        PathMatch::ExactIgnoringCase(text) => lower == **text,
        PathMatch::PrefixIgnoringCase(text) => lower.starts_with(&**text),
        // The only expression of this world: `/a/.*`.
        PathMatch::Regex(_) => path.starts_with("/a/"),
    };
    let method = |it: &TextMatch| *it == TextMatch::Exact(request.method.into());
    (test.hosts.is_empty() || test.hosts.iter().any(host_holds))
        && test.path.as_ref().is_none_or(path_holds)
        && test.method.as_ref().is_none_or(method)
}

/// What policies say that name a service.
pub(crate) fn of_service(world: &World, keys: &[PolicyKey], conn: &Inbound, request: &Request) -> Answer {
    let find = |key: &PolicyKey| world.parts.policies.iter().find(|policy| policy.key == *key);
    let missing: BTreeSet<_> = keys.iter().filter(|key| find(key).is_none()).cloned().collect();
    if !missing.is_empty() {
        return Answer::Missing(missing);
    }
    let policies: Vec<_> = keys.iter().filter_map(find).collect();
    judged(world, &policies, conn, request)
}

/// What policies say that cover a workload.
pub(crate) fn of_workload(world: &World, workload: &Workload, conn: &Inbound, request: &Request) -> Answer {
    let known = |key: &&PolicyKey| world.parts.policies.iter().any(|policy| policy.key == **key);
    let missing: BTreeSet<_> = workload
        .policies
        .iter()
        .filter(|key| !known(key))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Answer::Missing(missing);
    }
    judged(world, &covering(world, workload), conn, request)
}

fn judged(world: &World, policies: &[&weft_pure::mesh::Policy], conn: &Inbound, request: &Request) -> Answer {
    let of = |action, only_matching: bool| -> BTreeSet<PolicyKey> {
        let enforced = policies.iter().filter(|it| !it.dry_run && it.action == action);
        let counted =
            enforced.filter(|it| !only_matching || policy_holds(world, None, it, conn, Some(request)));
        counted.map(|it| it.key.clone()).collect()
    };
    let (denying, allowing, all) = (
        of(Action::Deny, true),
        of(Action::Allow, true),
        of(Action::Allow, false),
    );
    match () {
        () if !denying.is_empty() => Answer::DeniedBy(denying),
        () if !allowing.is_empty() => Answer::AllowedBy(allowing),
        () if !all.is_empty() => Answer::NotAllowed(all),
        () => Answer::AllowedByNone,
    }
}

/// Whether what only a request has holds; none where nobody can tell.
pub(super) fn holds(said: &RequestMatch, request: &Request, conn: &Inbound) -> Option<bool> {
    if *said == RequestMatch::default() {
        return None;
    }
    let pair = |is: &[StringMatch], is_not: &[StringMatch], value: Option<&str>| {
        (is.is_empty() || named(is, value)) && !named(is_not, value)
    };
    let path = |it: &PathPattern| match it {
        PathPattern::Text(text) => named(std::slice::from_ref(text), Some(request.path)),
        // The only template of this world: `/a/{*}`.
        PathPattern::Template(_) => {
            let rest = request.path.strip_prefix("/a/");
            rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
        }
    };
    let mut held = pair(&said.methods, &said.not_methods, Some(request.method));
    held &= pair(&said.hosts, &said.not_hosts, Some(&host(request)));
    held &= said.paths.is_empty() || said.paths.iter().any(path);
    held &= !said.not_paths.iter().any(path);
    held &= pair(
        &said.request_principals,
        &said.not_request_principals,
        request.principal,
    );
    held &= said.remote_ips.is_empty() || within(&said.remote_ips, conn.source_ip);
    held &= !within(&said.not_remote_ips, conn.source_ip);
    for condition in &said.when {
        // The only keys of this world.
        let value = match condition.key {
            ConditionKey::Header(_) => request.header,
            _ => request.principal,
        };
        held &= pair(&condition.values, &condition.not_values, value);
    }
    Some(held)
}

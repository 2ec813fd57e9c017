//! Which rights weft uses: its roles give these and no others. Who adds one names here what it is used by.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rules::{items, title, words};

/// Role | API group | resources | verbs | the code that asks for it.
const USED: &str = "
ClusterRole weft-agent | | pods namespaces | list watch | node/pods/listing
ClusterRole weft-agent | | pods | patch | node/pods/report: the annotation
ClusterRole weft-agent | | nodes | get patch | node/pods/report: the taint
Role weft-agent | | configmaps | get | cluster/root_cert
ClusterRole weft-controller | | namespaces nodes pods services | list watch | controller/watch
ClusterRole weft-controller | discovery.k8s.io | endpointslices | list watch | controller/watch
ClusterRole weft-controller | gateway.networking.k8s.io | gatewayclasses gateways httproutes grpcroutes tcproutes tlsroutes referencegrants | list watch | controller/watch
ClusterRole weft-controller | security.istio.io | authorizationpolicies peerauthentications requestauthentications | list watch | controller/watch
ClusterRole weft-controller | networking.istio.io | destinationrules gateways serviceentries virtualservices workloadentries | list watch | controller/watch
ClusterRole weft-controller | | namespaces services | get | controller/conditions: find
ClusterRole weft-controller | gateway.networking.k8s.io | gatewayclasses gateways httproutes grpcroutes tcproutes tlsroutes | get | controller/conditions: find
ClusterRole weft-controller | security.istio.io | authorizationpolicies peerauthentications requestauthentications | get | controller/conditions: find
ClusterRole weft-controller | networking.istio.io | destinationrules serviceentries virtualservices workloadentries | get | controller/conditions: find
ClusterRole weft-controller | | namespaces/status services/status | patch | controller/conditions: put
ClusterRole weft-controller | gateway.networking.k8s.io | gatewayclasses/status gateways/status httproutes/status grpcroutes/status tcproutes/status tlsroutes/status | patch | controller/conditions: put
ClusterRole weft-controller | security.istio.io | authorizationpolicies/status peerauthentications/status requestauthentications/status | patch | controller/conditions: put
ClusterRole weft-controller | networking.istio.io | destinationrules/status serviceentries/status virtualservices/status workloadentries/status | patch | controller/conditions: put
ClusterRole weft-controller | events.k8s.io | events | create | controller/status
ClusterRole weft-controller | authentication.k8s.io | tokenreviews | create | controller/tokens
ClusterRole weft-controller | apps | deployments | get list watch create patch delete | controller/waypoints
ClusterRole weft-controller | | services serviceaccounts | get list watch create patch delete | controller/waypoints
ClusterRole weft-controller | policy | poddisruptionbudgets | get list watch create patch delete | controller/waypoints
ClusterRole weft-controller | autoscaling | horizontalpodautoscalers | get list watch create patch delete | controller/waypoints
Role weft-controller | | secrets | get create | controller/root
Role weft-controller | | configmaps | get create patch | controller/root
Role weft-controller | coordination.k8s.io | leases | get create update | controller/lease
ClusterRole weft-uninstall | | pods | list patch | cli/uninstall: left, unmark
ClusterRole weft-uninstall | | namespaces services | list | controller/cleared
ClusterRole weft-uninstall | gateway.networking.k8s.io | gatewayclasses gateways httproutes grpcroutes tcproutes tlsroutes | list | controller/cleared
ClusterRole weft-uninstall | security.istio.io | authorizationpolicies peerauthentications requestauthentications | list | controller/cleared
ClusterRole weft-uninstall | networking.istio.io | destinationrules serviceentries virtualservices workloadentries | list | controller/cleared
ClusterRole weft-uninstall | | namespaces/status services/status | patch | controller/cleared
ClusterRole weft-uninstall | gateway.networking.k8s.io | gatewayclasses/status gateways/status httproutes/status grpcroutes/status tcproutes/status tlsroutes/status | patch | controller/cleared
ClusterRole weft-uninstall | security.istio.io | authorizationpolicies/status peerauthentications/status requestauthentications/status | patch | controller/cleared
ClusterRole weft-uninstall | networking.istio.io | destinationrules/status serviceentries/status virtualservices/status workloadentries/status | patch | controller/cleared
ClusterRole weft-uninstall | apps | deployments | list delete | cli/uninstall: delete_waypoints
ClusterRole weft-uninstall | | services serviceaccounts | list delete | cli/uninstall: delete_waypoints
ClusterRole weft-uninstall | policy | poddisruptionbudgets | list delete | cli/uninstall: delete_waypoints
ClusterRole weft-uninstall | autoscaling | horizontalpodautoscalers | list delete | cli/uninstall: delete_waypoints
Role weft-uninstall | apps | daemonsets | get | cli/uninstall: left
Role weft-uninstall | | secrets configmaps | delete | cli/uninstall: clean
Role weft-uninstall | coordination.k8s.io | leases | delete | cli/uninstall: clean
";

/// One verb on one resource of one group, of one role.
type Right = (String, String, String, String);

/// What an object gives.
fn given(object: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let role = title(object);
    for rule in items(&object["rules"]) {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    rights.insert((role.clone(), group.into(), resource.into(), verb.into()));
                }
            }
        }
    }
    rights
}

fn used() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for line in USED.trim().lines() {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let [role, group, resources, verbs, _] = columns[..] else {
            panic!("not five columns: {line}");
        };
        for resource in resources.split(' ') {
            for verb in verbs.split(' ') {
                rights.insert((role.into(), group.into(), resource.into(), verb.into()));
            }
        }
    }
    rights
}

/// Rights that roles give and nobody uses.
pub(super) fn unused(objects: &[Value]) -> Vec<String> {
    let given: BTreeSet<_> = objects.iter().flat_map(given).collect();
    let unused = given.difference(&used()).map(said).collect::<Vec<_>>();
    unused
        .into_iter()
        .map(|right| format!("{right}, which nothing uses"))
        .collect()
}

/// Rights that are used and that no role gives.
pub(super) fn missing(objects: &[Value]) -> Vec<String> {
    let given: BTreeSet<_> = objects.iter().flat_map(given).collect();
    let missing = used();
    let missing = missing.difference(&given).map(said);
    missing
        .map(|right| format!("{right} is used, and not given"))
        .collect()
}

fn said((role, group, resource, verb): &Right) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{role}: {verb} {resource}{dot}{group}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_verb_too_many_and_one_too_few_are_found() {
        let role = |verbs: &[&str]| {
            let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs});
            json!({"kind": "Role", "metadata": {"name": "weft-agent"}, "rules": [rule]})
        };
        assert_eq!(unused(&[role(&["get"])]), Vec::<String>::new());
        assert_eq!(
            unused(&[role(&["get", "watch"])]),
            ["Role weft-agent: watch configmaps, which nothing uses"]
        );
        let absent = "Role weft-agent: get configmaps is used, and not given";
        assert!(missing(&[role(&["list"])]).iter().any(|it| it == absent));
        assert!(!missing(&[role(&["get"])]).iter().any(|it| it == absent));
    }
}

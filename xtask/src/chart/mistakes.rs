//! Values that are mistakes: the chart refuses them, and says which they are.

use serde_json::{Value, json};

use super::{Case, Expect};

/// A name, values, and what the error must say.
type Mistake = (&'static str, Value, &'static [&'static str]);

/// Of who asks whom.
fn refused_others() -> [Mistake; 3] {
    [
        (
            "nobody to ask",
            json!({"controller": {"enabled": false}}),
            &["agent.controllerAddress"],
        ),
        (
            "a trusted agent without its namespace",
            json!({"controller": {"trustedAgents": ["ztunnel"]}}),
            &["trustedAgents"],
        ),
        (
            "a name of the controller with its port",
            json!({"agent": {"controllerName": "istiod.istio-system.svc:15012"}}),
            &["controllerName"],
        ),
    ]
}

/// All of them.
pub(super) fn refused() -> impl Iterator<Item = Case> {
    let mistakes: [Mistake; 10] = [
        (
            "a misspelt value",
            json!({"trustdomain": "a.example"}),
            &["trustdomain"],
        ),
        (
            "a misspelt value inside",
            json!({"agent": {"worker": 4}}),
            &["agent", "worker"],
        ),
        ("a value in the wrong place", json!({"workers": 4}), &["workers"]),
        (
            "a trust domain that is none",
            json!({"trustDomain": "spiffe://a"}),
            &["trustDomain"],
        ),
        (
            "a number for a tag",
            json!({"image": {"tag": 1.20}}),
            &["tag", "string"],
        ),
        (
            "no replica",
            json!({"controller": {"replicas": 0}}),
            &["replicas"],
        ),
        (
            "a misspelt value of waypoints",
            json!({"waypoints": {"replica": 3}}),
            &["waypoints", "replica"],
        ),
        (
            "a network without its length",
            json!({"clusterCIDRs": ["10.0.0.0"]}),
            &["clusterCIDRs"],
        ),
        (
            "an audience that the controller refuses",
            json!({"tokenAudience": "mine"}),
            &["tokenAudience", "weft-ca"],
        ),
        (
            "a log format that is none",
            json!({"logFormat": "xml"}),
            &["logFormat", "json"],
        ),
    ];
    mistakes
        .into_iter()
        .chain(refused_others())
        .map(|(name, values, named)| Case {
            name,
            values,
            kubernetes: "v1.36.2",
            kinds: &[],
            expect: Expect::Refused(named),
        })
}

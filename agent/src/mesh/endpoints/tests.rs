//! Which endpoints are near, in which order, and how often each has its turn.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::mesh::{Locality, sample};

/// `name region/zone/node`, and the capacity where it is not 1.
fn pod(text: &str) -> Workload {
    let mut words = text.split(' ');
    let (name, place) = (words.next().unwrap(), words.next().unwrap());
    let place: Vec<_> = place.split('/').collect();
    Workload {
        locality: Locality {
            region: place[0].into(),
            zone: place[1].into(),
            ..Locality::default()
        },
        node: place[2].into(),
        capacity: words.next().map_or(1, |capacity| capacity.parse().unwrap()),
        ..sample::pod(name, &["10.0.0.1"])
    }
}

fn endpoints(pods: &[&str], balancing: &LoadBalancing) -> Endpoints {
    let endpoint = |text: &&str| Endpoint {
        workload: Arc::new(pod(text)),
        ports: [].into(),
    };
    Endpoints::new(pods.iter().map(endpoint).collect(), balancing)
}

/// Whom a client meets, the first of each once; and among how many draws.
fn order(endpoints: &Endpoints, client: &str, draw: u64) -> String {
    let client = pod(client);
    let mut names: Vec<&str> = Vec::new();
    for endpoint in endpoints.ordered(&client, draw) {
        if !names.contains(&&*endpoint.workload.name) {
            names.push(&endpoint.workload.name);
        }
    }
    format!("{} of {}", names.join(" "), endpoints.choices(&client, |_| true))
}

const PODS: [&str; 6] = [
    "a1 eu/a/n1",
    "a2 eu/a/n2",
    "b1 eu/b/n3",
    "us us/a/n4",
    "c1 eu/c/n5",
    "c2 eu/c/n5",
];

#[test]
fn any() {
    let endpoints = endpoints(&PODS, &LoadBalancing::default());
    assert_eq!(order(&endpoints, "x eu/a/n1", 0), "a1 a2 b1 us c1 c2 of 6");
    assert_eq!(order(&endpoints, "x eu/a/n1", 4), "c1 c2 a1 a2 b1 us of 6");
    assert_eq!(order(&endpoints, "x //", u64::MAX), "us c1 c2 a1 a2 b1 of 6");
}

#[test]
fn failover() {
    let endpoints = endpoints(&PODS, &LoadBalancing::failover(&LoadBalancing::SAME_NODE));
    let check = |client: &str, draw, expect: &str| {
        assert_eq!(order(&endpoints, client, draw), expect, "{client}, draw {draw}");
    };
    // The node, the zone, the region, and then anything.
    check("x eu/a/n1", 0, "a1 a2 b1 c1 c2 us of 1");
    check("x eu/a/n9", 0, "a1 a2 b1 c1 c2 us of 2");
    check("x eu/a/n9", 1, "a2 a1 b1 c1 c2 us of 2");
    check("x eu/c/n5", 1, "c2 c1 a2 b1 a1 us of 2");
    check("x eu/z/n9", 2, "b1 c1 c2 a1 a2 us of 5");
    check("x us/z/n9", 0, "us a1 a2 b1 c1 c2 of 1");
    check("x ap/a/n1", 0, "a1 a2 b1 us c1 c2 of 6");
    // A zone of the same name in another region is another zone.
    check("x us/a/n1", 0, "us a1 a2 b1 c1 c2 of 1");
}

#[test]
fn strict() {
    let balancing = |scopes: &[RoutingScope]| LoadBalancing {
        mode: BalancingMode::Strict,
        ..LoadBalancing::failover(scopes)
    };
    let check = |scopes: &[RoutingScope], client: &str, expect: &str| {
        let endpoints = endpoints(&PODS, &balancing(scopes));
        assert_eq!(order(&endpoints, client, 0), expect, "{client} within {scopes:?}");
    };
    check(&[RoutingScope::Node], "x eu/c/n5", "c1 c2 of 2");
    check(&[RoutingScope::Node], "x eu/c/n9", " of 0");
    // Only what is asked for counts: the node is in another zone, as far as the client says.
    check(&[RoutingScope::Node], "x us/z/n1", "a1 of 1");
    check(&[RoutingScope::Zone], "x ap/a/n9", "a1 a2 us of 3");
    check(
        &[RoutingScope::Region, RoutingScope::Zone],
        "x eu/a/n9",
        "a1 a2 of 2",
    );
    check(&[RoutingScope::Region, RoutingScope::Zone], "x eu/z/n9", " of 0");
    check(
        &[RoutingScope::Cluster, RoutingScope::Cluster],
        "x ap/z/n9",
        "a1 a2 b1 us c1 c2 of 6",
    );
    check(&[], "x ap/z/n9", "a1 a2 b1 us c1 c2 of 6");
}

/// Who has no locality is near to those that have none either.
#[test]
fn unknown_places() {
    let pods = ["a eu/a/n1", "b //n2", "c //n1"];
    let endpoints = endpoints(&pods, &LoadBalancing::failover(&LoadBalancing::CLOSE));
    assert_eq!(order(&endpoints, "x //n9", 0), "b c a of 2");
    assert_eq!(order(&endpoints, "x eu//n9", 0), "a b c of 1");
    let client = pod("x eu/b/n1");
    let shared = endpoints
        .all()
        .iter()
        .map(|it| endpoints.shared_scopes(&client, &it.workload).len());
    assert_eq!(shared.collect::<Vec<_>>(), [2, 1, 1]);
}

#[test]
fn capacities() {
    let turns = |capacities: &[u32]| shares(capacities.iter().copied());
    assert_eq!(turns(&[1, 1, 1]), [1, 1, 1]);
    assert_eq!(turns(&[7, 7]), [1, 1]);
    assert_eq!(turns(&[10, 20, 0]), [1, 2, 0]);
    assert_eq!(turns(&[0, 0]), [0, 0]);
    assert!(turns(&[]).is_empty());
    // Not more than 16, and not less than 1.
    assert_eq!(turns(&[1, 1000, 500]), [1, 16, 8]);
    assert_eq!(turns(&[u32::MAX, 1, u32::MAX - 1]), [16, 1, 16]);

    let endpoints = endpoints(
        &["a eu/a/n1 3", "b eu/a/n1 1", "c eu/b/n1 0"],
        &LoadBalancing::default(),
    );
    let client = pod("x eu/a/n9");
    let first = |draw| {
        endpoints
            .ordered(&client, draw)
            .next()
            .map(|it| it.workload.name.to_string())
    };
    let met: Vec<_> = (0..4).filter_map(first).collect();
    assert_eq!(met, ["a", "b", "a", "a"]);
    // One that takes nothing new is not a way out either.
    assert_eq!(order(&endpoints, "x eu/a/n9", 1), "b a of 4");
}

fn any_pod() -> impl Strategy<Value = Workload> {
    let word = || select(&["", "a", "b"]);
    (word(), word(), word(), 0u32..4)
        .prop_map(|(region, zone, node, capacity)| pod(&format!("p {region}/{zone}/{node} {capacity}")))
}

proptest! {
    /// The areas against the plain meaning: compare every endpoint's scopes one by one, and sort.
    #[test]
    fn as_a_comparison_of_all(pods in vec(any_pod(), 0..8), client in any_pod(), strict: bool, draw: u64) {
        let scopes = [RoutingScope::Region, RoutingScope::Zone, RoutingScope::Node];
        let mode = if strict { BalancingMode::Strict } else { BalancingMode::Failover };
        let balancing = LoadBalancing { mode, ..LoadBalancing::failover(&scopes) };
        let endpoint = |workload| Endpoint { workload: Arc::new(workload), ports: [].into() };
        let endpoints = Endpoints::new(pods.into_iter().map(endpoint).collect(), &balancing);
        let nearness = |endpoint: &Endpoint| endpoints.shared_scopes(&client, &endpoint.workload).len();
        let allowed = |endpoint: &&Endpoint| {
            endpoint.workload.capacity > 0 && (!strict || nearness(endpoint) == scopes.len())
        };
        let best = endpoints.all().iter().filter(allowed).map(nearness).max();

        let ordered: Vec<_> = endpoints.ordered(&client, draw).map(nearness).collect();
        prop_assert_eq!(ordered.first().copied(), best);
        let choices = endpoints.choices(&client, |_| true);
        prop_assert_eq!(choices > 0, best.is_some());
        let mut first_seen: Vec<*const Endpoint> = Vec::new();
        let mut nearness_seen = Vec::new();
        for endpoint in endpoints.ordered(&client, draw) {
            if !first_seen.contains(&std::ptr::from_ref(endpoint)) {
                first_seen.push(endpoint);
                nearness_seen.push(nearness(endpoint));
            }
        }
        prop_assert!(nearness_seen.is_sorted_by(|a, b| a >= b));
        prop_assert_eq!(first_seen.len(), endpoints.all().iter().filter(allowed).count());
        // All that are nearest, and only those, have a turn.
        let met = |draw| endpoints.ordered(&client, draw).next().map(std::ptr::from_ref);
        let mut met: Vec<_> = (0..choices).filter_map(met).collect();
        met.sort_unstable();
        met.dedup();
        let nearest = endpoints.all().iter().filter(allowed).filter(|it| Some(nearness(it)) == best).count();
        prop_assert_eq!(met.len(), nearest);
    }
}

//! What follows from an API and cgroups that are made up; without processes, so that nothing is ever found.

use std::{fs, process};

use super::*;
use crate::{
    cluster::enrolment::{AMBIENT, DATAPLANE_MODE, Labels},
    node::pods::{MIRROR, STATIC_UID, cgroups::Hierarchy, nri::sandboxes},
};

/// A made-up node: cgroups without processes, and an API.
struct Node {
    root: PathBuf,
    looker: Looker,
    listing: Listing,
    told: Sandboxes,
    start: Instant,
}

const OURS: &str = "kubelet/kubepods/burstable";

fn uid(number: u32) -> String {
    format!("12345678-9abc-def0-1234-{number:012}")
}

fn ambient() -> Labels {
    Labels::from([(DATAPLANE_MODE.to_owned(), AMBIENT.to_owned())])
}

impl Node {
    /// A namespace `in` that is in the mesh and one `out` that is not, and the agent's own pod, number 0.
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("weft-look-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&root);
        let settings = PodSettings {
            cluster: "Kubernetes".to_owned(),
            own_namespace: "weft-system".to_owned(),
            pods_cgroup: None,
            node_netns: PathBuf::new(),
        };
        let tree = Tree::new(vec![Hierarchy::unified(root.clone(), 0)]);
        let finder = Finder::new(root.join("proc"), []);
        let mut node = Self {
            looker: Looker::new(settings, tree, finder),
            root,
            listing: Listing {
                namespaces: [("in".to_owned(), ambient()), ("out".to_owned(), Labels::new())].into(),
                current: true,
                ..Listing::default()
            },
            told: Sandboxes::default(),
            start: Instant::now(),
        };
        node.cgroup(OURS, 0);
        node.shows(0, "out", "agent");
        node
    }

    fn cgroup(&self, parent: &str, number: u32) -> u64 {
        let path = self.root.join(parent).join(format!("pod{}", uid(number)));
        fs::create_dir_all(&path).expect("a folder");
        fs::metadata(path).expect("it was made").ino()
    }

    fn shows(&mut self, number: u32, namespace: &str, name: &str) {
        self.listing.pods.push(ApiPod {
            uid: uid(number),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..ApiPod::default()
        });
    }

    fn look(&mut self, seconds: u64) -> View {
        self.looker.look(
            &self.listing,
            &self.told,
            self.start + Duration::from_secs(seconds),
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn held(view: &View) -> Vec<u64> {
    view.pending.cgroups.keys().copied().collect()
}

fn uids(view: &View) -> Vec<&str> {
    view.pods.iter().map(|pod| &*pod.uid).collect()
}

#[test]
fn a_pod_that_starts_is_held_until_it_is_known_to_be_outside() {
    let mut node = Node::new("starts");
    assert!(held(&node.look(0)).is_empty());
    // Its cgroup is there before the API has shown it.
    let (inside, outside) = (node.cgroup(OURS, 1), node.cgroup(OURS, 2));
    let view = node.look(1);
    assert_eq!(held(&view), [inside.min(outside), inside.max(outside)]);
    assert!(view.pending.cgroups.values().all(Option::is_none));
    assert_eq!(view.pending.levels, [4, 0]);
    node.shows(1, "in", "web");
    node.shows(2, "out", "web");
    let view = node.look(2);
    assert_eq!(held(&view), [inside]);
    let awaited = view.pending.cgroups[&inside]
        .as_ref()
        .expect("its capture is awaited");
    assert_eq!(&*awaited.uid, "Kubernetes//Pod/in/web");
    assert_eq!(uids(&view), ["Kubernetes//Pod/in/web"]);
    assert!(
        matches!(&view.pods[0].netns, NetnsSource::Missing { why, runs: false } if why.contains("no process"))
    );
    assert!(node.looker.is_awaiting());
    // Whoever is not found for long is looked for without haste, and held all the same.
    assert_eq!(held(&node.look(90)), [inside]);
    assert!(!node.looker.is_awaiting());
    // It is gone, and nothing is left of it.
    fs::remove_dir(node.root.join(OURS).join(format!("pod{}", uid(1)))).expect("remove");
    assert!(held(&node.look(91)).is_empty());
}

#[test]
fn a_pod_that_runs_when_it_gets_the_label_is_not_held() {
    let mut node = Node::new("runs");
    let outside = node.cgroup(OURS, 1);
    node.shows(1, "out", "web");
    assert!(held(&node.look(0)).is_empty());
    node.listing.namespaces.insert("out".to_owned(), ambient());
    let view = node.look(1);
    assert!(uids(&view).contains(&"Kubernetes//Pod/out/web"));
    assert!(!held(&view).contains(&outside));
}

#[test]
fn a_pod_that_is_found_with_the_label_is_held() {
    let mut node = Node::new("found");
    let inside = node.cgroup(OURS, 1);
    node.shows(1, "in", "web");
    assert_eq!(held(&node.look(0)), [inside]);
    // Until the label is gone.
    node.listing.namespaces.insert("in".to_owned(), Labels::new());
    let view = node.look(1);
    assert!(held(&view).is_empty() && view.pods.is_empty());
}

#[test]
fn weft_itself_is_never_held() {
    let mut node = Node::new("own");
    node.listing
        .namespaces
        .insert("weft-system".to_owned(), ambient());
    node.cgroup(OURS, 1);
    node.shows(1, "weft-system", "weft-agent-x");
    let view = node.look(0);
    assert!(held(&view).is_empty() && view.pods.is_empty());
}

#[test]
fn a_namespace_that_is_not_shown_yet_is_no_namespace_outside() {
    let mut node = Node::new("namespace");
    node.look(0);
    let starts = node.cgroup(OURS, 1);
    node.shows(1, "new", "web");
    assert_eq!(held(&node.look(1)), [starts]);
    node.listing.namespaces.insert("new".to_owned(), Labels::new());
    assert!(held(&node.look(2)).is_empty());
}

#[test]
fn a_cgroup_that_nobody_knows_is_let_go_only_by_an_api_that_is_there() {
    let mut node = Node::new("unknown");
    node.look(0);
    let unknown = node.cgroup(OURS, 1);
    node.listing.current = false;
    assert_eq!(held(&node.look(1)), [unknown]);
    assert_eq!(held(&node.look(600)), [unknown]);
    node.listing.current = true;
    assert!(held(&node.look(601)).is_empty());
}

#[test]
fn another_kubelets_pods_are_not_ours() {
    let mut node = Node::new("another");
    node.look(0);
    node.cgroup("another/kubepods/burstable", 1);
    let at_another_depth = node.cgroup("kubelet/kubepods", 2);
    let view = node.look(40);
    assert_eq!(held(&view), [at_another_depth]);
    assert_eq!(view.pending.levels, [3, 0]);
    let cgroup = view.pods_cgroup.expect("the root is known");
    let root = fs::metadata(node.root.join("kubelet/kubepods")).expect("it was made");
    assert_eq!((cgroup.id, cgroup.level), (root.ino(), 2));
}

#[test]
fn a_static_pod_is_known_by_its_hash_and_nobody_else_by_that_of_another() {
    let mut node = Node::new("static");
    node.look(0);
    let hash = "0123456789abcdef0123456789abcdef";
    let path = node.root.join(OURS).join(format!("pod{hash}"));
    fs::create_dir_all(&path).expect("a folder");
    let inside = node.cgroup(OURS, 2);
    node.shows(1, "in", "static");
    node.shows(2, "in", "web");
    node.shows(3, "out", "thief");
    let (of_static, of_thief) = (1, 3);
    let mirror = |value: &str| {
        [(MIRROR, value), (STATIC_UID, value)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    };
    node.listing.pods[of_static].annotations = mirror(hash);
    // It says that it is called as the pod 2 is.
    node.listing.pods[of_thief].annotations = mirror(&uid(2));
    let view = node.look(1);
    let waits = |cgroup: u64| {
        view.pending.cgroups[&cgroup]
            .as_ref()
            .map(|it| it.uid.to_string())
    };
    let of_hash = fs::metadata(path).expect("it was made").ino();
    assert_eq!(waits(of_hash).as_deref(), Some("Kubernetes//Pod/in/static"));
    assert_eq!(waits(inside).as_deref(), Some("Kubernetes//Pod/in/web"));
    // Without the kubelet's annotation the other one says nothing.
    node.listing.pods[of_static].annotations.remove(MIRROR);
    let view = node.look(2);
    assert_eq!(view.pending.cgroups[&of_hash], None);
}

#[test]
fn what_the_runtime_tells_of_is_a_pod_before_the_api_shows_it() {
    let mut node = Node::new("told");
    node.look(0);
    let start = node.start;
    let tell = |node: &mut Node, id: &str, namespace: &str, number: u32| {
        let pod = sandboxes::told(id, namespace, &uid(number), "/nowhere");
        node.told.start(pod, start).expect("it says enough");
    };
    for (id, namespace, number) in [("a", "in", 1), ("b", "out", 2), ("c", "unheard of", 3)] {
        tell(&mut node, id, namespace, number);
    }
    let (inside, outside) = (node.cgroup(OURS, 1), node.cgroup(OURS, 2));
    let view = node.look(1);
    let awaits = |view: &View, id: &str| match &view.sandboxes[id] {
        Standing::Awaits(awaited) => Some(awaited.uid.to_string()),
        _ => None,
    };
    let web = "Kubernetes//Pod/in/web";
    assert_eq!(awaits(&view, "a").as_deref(), Some(web));
    assert_eq!(view.sandboxes["b"], Standing::Outside);
    assert_eq!(view.sandboxes["c"], Standing::Unknown);
    assert_eq!(uids(&view), [web]);
    assert!(
        matches!(&view.pods[0].netns, NetnsSource::Missing { why, .. } if why.contains("/nowhere")),
        "{:?}",
        view.pods[0]
    );
    // Who is outside by the runtime's word is not held, and who is inside is until it is captured.
    assert_eq!(held(&view), [inside]);
    assert_ne!(inside, outside);
    // Its sandbox is made anew: nobody waits for the first any more.
    tell(&mut node, "z", "in", 1);
    let view = node.look(2);
    assert_eq!(view.sandboxes["a"], Standing::Outside);
    assert_eq!(awaits(&view, "z").as_deref(), Some(web));
    // The API knows better: it is of the agent's own namespace, or has a label.
    node.shows(1, "weft-system", "web");
    let view = node.look(3);
    assert_eq!(view.sandboxes["z"], Standing::Outside);
    assert!(view.pods.is_empty() && held(&view).is_empty());
    // One that the API never shows is no pod of the cluster.
    node.listing.pods.retain(|pod| pod.uid != uid(1));
    assert_eq!(uids(&node.look(59)), [web]);
    assert!(uids(&node.look(61)).is_empty());
}

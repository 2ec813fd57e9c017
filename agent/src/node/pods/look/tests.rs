//! What follows from an API and cgroups that are made up; without processes, so that nothing is ever found.

use std::{fs, process, time::SystemTime};

use super::*;
use crate::{
    cluster::enrolment::{AMBIENT, DATAPLANE_MODE, Labels},
    node::pods::{
        MIRROR, STATIC_UID,
        cgroups::{CgroupId, Hierarchy},
        nri::sandboxes,
    },
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
    view.holds.cgroups.keys().copied().collect()
}

/// Whether what it dials is refused: by name, or because nothing is said of it.
fn is_refused(view: &View, cgroup: u64) -> bool {
    let holds = &view.holds;
    holds.cgroups.contains_key(&cgroup) || holds.unseen && !holds.released.contains(&cgroup)
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
    assert!(held(&view).is_empty() && is_refused(&view, inside) && is_refused(&view, outside));
    assert_eq!(view.holds.levels, [3, 4]);
    assert!(view.holds.unseen);
    node.shows(1, "in", "web");
    node.shows(2, "out", "web");
    let view = node.look(2);
    assert_eq!(held(&view), [inside]);
    assert!(view.holds.released.contains(&outside));
    let awaited = view.holds.cgroups[&inside]
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
    let view = node.look(91);
    assert!(held(&view).is_empty() && !view.holds.released.contains(&inside));
}

/// Makes a folder, and says what the kernel knows it by.
fn made(node: &Node, path: &str) -> u64 {
    let path = node.root.join(path);
    fs::create_dir_all(&path).expect("a folder");
    fs::metadata(path).expect("it was made").ino()
}

#[test]
fn whoever_was_there_before_is_named_before_anybody_is_held_for_being_unknown() {
    let mut node = Node::new("before");
    // Outside, in the mesh, and of nobody.
    let (outside, inside, nobodys) = (
        node.cgroup(OURS, 1),
        node.cgroup(OURS, 2),
        node.cgroup("kubelet/kubepods", 3),
    );
    let age = SystemTime::now() - UNKNOWN * 2;
    let folder = node.root.join("kubelet/kubepods").join(format!("pod{}", uid(3)));
    let folder = fs::File::open(folder).expect("it was made");
    folder.set_modified(age).expect("an age");
    node.shows(1, "out", "web");
    node.shows(2, "in", "web");
    let view = node.look(0);
    assert!(view.holds.unseen && view.pods_cgroup.is_some());
    assert_eq!(held(&view), [inside]);
    for released in [outside, nobodys] {
        assert!(view.holds.released.contains(&released), "{view:?}");
    }
    assert!(!view.holds.released.contains(&inside));
}

#[test]
fn what_is_no_pods_is_not_held_and_a_pods_container_is_never_let_go() {
    let mut node = Node::new("strange");
    let strange = made(&node, "kubelet/kubepods/strange");
    let below = made(&node, "kubelet/kubepods/strange/below");
    let beside = made(&node, "kubelet/kubepods/burstable/strange");
    let empty = made(&node, "kubelet/kubepods/kubepods-besteffort.slice");
    let qos = made(&node, OURS);
    // A guaranteed pod's container is as deep as another's pod.
    let pod = node.cgroup("kubelet/kubepods", 1);
    let container = made(&node, &format!("kubelet/kubepods/pod{}/container", uid(1)));
    // A static pod's, that a person has named and nobody has shown.
    let odd = made(&node, "kubelet/kubepods/podmy_static-pod");
    let inside_odd = made(&node, "kubelet/kubepods/podmy_static-pod/container");
    let released = node.look(0).holds.released;
    for it in [strange, beside] {
        assert!(released.contains(&it));
    }
    for it in [below, empty, qos, pod, container, odd, inside_odd] {
        assert!(!released.contains(&it));
    }
    let both = BTreeSet::from([pod, odd]);
    let view = node.look(1);
    assert!(both.iter().all(|it| is_refused(&view, *it)));
    // Both are nobody's, as it turns out.
    let released = node.look(62).holds.released;
    assert!(released.is_superset(&both) && !released.contains(&inside_odd));
    // It gets pods after all: they have names of their own.
    let late = node.cgroup("kubelet/kubepods/strange", 4);
    let view = node.look(63);
    assert!(is_refused(&view, late));
    assert!(!view.holds.released.contains(&strange) && view.holds.released.contains(&below));
}

#[test]
fn a_folder_that_a_kubelet_makes_later_is_gone_into_at_once() {
    let mut node = Node::new("later");
    node.look(0);
    let (outside, inside) = (
        node.cgroup("kubelet/kubepods/besteffort", 1),
        node.cgroup("kubelet/kubepods/besteffort", 2),
    );
    node.shows(1, "out", "web");
    let view = node.look(1);
    assert!(is_refused(&view, inside));
    assert!(view.holds.released.contains(&outside));
}

#[test]
fn nobody_is_held_for_being_unknown_where_not_everybody_is_known() {
    // No folder has all pods.
    let mut node = Node::new("two-roots");
    node.cgroup("another/kubepods", 1);
    node.shows(1, "out", "web");
    let view = node.look(0);
    assert!(view.pods_cgroup.is_none() && !view.holds.unseen);
    // They lie deeper than a kubelet lays them.
    let mut node = Node::new("deeper");
    let deep = node.cgroup("kubelet/kubepods/burstable/below", 1);
    node.shows(1, "in", "web");
    let view = node.look(0);
    assert!(view.pods_cgroup.is_some() && !view.holds.unseen);
    assert_eq!((held(&view), view.holds.levels), (vec![deep], [5, 0]));
}

#[test]
fn what_could_not_be_read_is_not_gone() {
    let mut node = Node::new("unread");
    let runs = node.cgroup(OURS, 1);
    node.shows(1, "out", "web");
    assert!(node.look(0).holds.unseen);
    // It gets the label while it runs, and is not found any more.
    node.listing.namespaces.insert("out".to_owned(), ambient());
    let (folder, aside) = (node.root.join(OURS), node.root.with_extension("aside"));
    fs::rename(&folder, &aside).expect("rename");
    fs::write(&folder, "no folder").expect("write");
    // Too early for a walk through everything.
    assert!(!node.look(0).holds.unseen);
    fs::remove_file(&folder).expect("remove");
    fs::rename(&aside, &folder).expect("rename");
    let view = node.look(2);
    assert!(view.holds.unseen && view.holds.released.contains(&runs));
    assert!(held(&view).is_empty());
}

#[test]
fn a_pod_that_is_held_stays_so_while_it_cannot_be_read() {
    let mut node = Node::new("unread-held");
    let (inside, outside, beside) = (
        node.cgroup(OURS, 1),
        node.cgroup(OURS, 2),
        node.cgroup("kubelet/kubepods", 3),
    );
    node.shows(1, "in", "web");
    node.shows(2, "out", "web");
    node.shows(3, "in", "beside");
    assert_eq!(
        BTreeSet::from_iter(held(&node.look(0))),
        BTreeSet::from([inside, beside])
    );
    let (folder, aside) = (node.root.join(OURS), node.root.with_extension("aside"));
    fs::rename(&folder, &aside).expect("rename");
    fs::write(&folder, "no folder").expect("write");
    // What was read and is not there any more is gone for all that.
    fs::remove_dir(node.root.join("kubelet/kubepods").join(format!("pod{}", uid(3)))).expect("remove");
    // Too early for a walk through everything.
    let view = node.look(0);
    assert!(!view.holds.unseen);
    assert_eq!(held(&view), [inside]);
    let awaited = view.holds.cgroups[&inside].as_ref();
    assert_eq!(awaited.map(|it| &*it.uid), Some("Kubernetes//Pod/in/web"));
    assert!(view.holds.released.contains(&outside) && !view.holds.released.contains(&beside));
    assert!(view.holds.levels.contains(&4));
    // It is taken out of the mesh meanwhile.
    node.listing.namespaces.insert("in".to_owned(), Labels::new());
    let view = node.look(0);
    assert!(held(&view).is_empty() && view.holds.released.contains(&inside));
    fs::remove_dir_all(aside).expect("remove");
}

#[test]
fn a_cgroup_that_cannot_be_read_is_not_gone_because_another_hierarchys_was() {
    let node = Node::new("hybrid");
    let folder = |parent: &str, id: Option<u64>| PodFolder {
        path: node.root.join(parent),
        cgroup: id.map(|id| CgroupId { id, level: 1 }),
        age: Duration::ZERO,
    };
    let (unified, v1) = (folder("kubelet", Some(7)), folder("v1", None));
    let seen = || Seen {
        since: node.start,
        folders: vec![unified.clone(), v1.clone()],
        held: true,
    };
    let read = [v1.clone()];
    assert_eq!(seen().again(&read, false).folders, [v1.clone(), unified.clone()]);
    assert_eq!(seen().again(&read, true).folders, read);
    // It is not there at all.
    fs::remove_dir_all(&node.root).expect("remove");
    assert_eq!(seen().again(&read, false).folders, read);
}

#[test]
fn who_is_unknown_is_held_by_the_lease_alone_where_there_is_one() {
    let mut node = Node::new("lease");
    node.look(0);
    let unknown = node.cgroup(OURS, 1);
    let view = node.look(1);
    assert!(view.holds.unseen && held(&view).is_empty());
    assert!(!view.holds.released.contains(&unknown));
    assert!(node.look(62).holds.released.contains(&unknown));
    // Without one it is named.
    node.cgroup("another/kubepods", 2);
    node.shows(2, "out", "web");
    let late = node.cgroup(OURS, 3);
    let view = node.look(100);
    assert!(!view.holds.unseen);
    assert_eq!(view.holds.cgroups.get(&late), Some(&None));
}

#[test]
fn a_pod_whose_cgroup_is_made_anew_is_held_as_a_new_one() {
    let mut node = Node::new("anew");
    let first = node.cgroup(OURS, 1);
    node.shows(1, "out", "web");
    assert!(node.look(0).holds.released.contains(&first));
    // It ran before it was in the mesh.
    node.listing.namespaces.insert("out".to_owned(), ambient());
    assert!(node.look(1).holds.released.contains(&first));
    let folder = node.root.join(OURS).join(format!("pod{}", uid(1)));
    fs::rename(&folder, node.root.join("aside")).expect("rename");
    let second = node.cgroup(OURS, 1);
    assert_ne!(first, second);
    let view = node.look(2);
    assert!(held(&view).contains(&second) && !view.holds.released.contains(&second));
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
    assert!(is_refused(&node.look(1), starts));
    node.listing.namespaces.insert("new".to_owned(), Labels::new());
    assert!(!is_refused(&node.look(2), starts));
}

#[test]
fn a_cgroup_that_nobody_knows_is_let_go_only_by_an_api_that_is_there() {
    let mut node = Node::new("unknown");
    node.look(0);
    let unknown = node.cgroup(OURS, 1);
    node.listing.current = false;
    assert!(is_refused(&node.look(1), unknown));
    assert!(is_refused(&node.look(600), unknown));
    node.listing.current = true;
    assert!(!is_refused(&node.look(601), unknown));
}

#[test]
fn another_kubelets_pods_are_not_ours() {
    let mut node = Node::new("another");
    node.look(0);
    node.cgroup("another/kubepods/burstable", 1);
    let at_another_depth = node.cgroup("kubelet/kubepods", 2);
    let view = node.look(40);
    assert!(is_refused(&view, at_another_depth));
    assert_eq!(view.holds.levels, [3, 4]);
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
    let waits = |cgroup: u64| view.holds.cgroups[&cgroup].as_ref().map(|it| it.uid.to_string());
    let of_hash = fs::metadata(path).expect("it was made").ino();
    assert_eq!(waits(of_hash).as_deref(), Some("Kubernetes//Pod/in/static"));
    assert_eq!(waits(inside).as_deref(), Some("Kubernetes//Pod/in/web"));
    // Without the kubelet's annotation the other one says nothing.
    node.listing.pods[of_static].annotations.remove(MIRROR);
    let view = node.look(2);
    assert!(is_refused(&view, of_hash) && !held(&view).contains(&of_hash));
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

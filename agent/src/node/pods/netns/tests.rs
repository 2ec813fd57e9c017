//! What is taken for a pod's process, in a made-up /proc.

use std::{fs, process, time::Duration};

use super::*;

/// A made-up /proc, and a made-up cgroup.
struct Made(PathBuf);

impl Made {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-netns-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("pod")).expect("a folder for the test");
        Self(path)
    }

    /// A process with a name that is meant to mislead.
    fn process(&self, pid: u32, state: &str, started: u64) {
        let folder = self.0.join("proc").join(pid.to_string());
        fs::create_dir_all(folder.join("ns")).expect("a folder");
        let stat =
            format!("{pid} (a) R 1 (b) {state} 7 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {started} 20\n");
        fs::write(folder.join("stat"), stat).expect("stat");
        fs::write(folder.join("ns/net"), "").expect("a file in place of a namespace");
    }

    fn members(&self, pids: &[u32]) {
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(self.0.join("pod/cgroup.procs"), text).expect("cgroup.procs");
    }

    fn identity(&self, pid: u32) -> Identity {
        let file = fs::metadata(self.0.join(format!("proc/{pid}/ns/net"))).expect("it is there");
        (file.dev(), file.ino())
    }

    fn finder(&self, foreign: &[u32]) -> Finder {
        Finder::new(self.0.join("proc"), foreign.iter().map(|pid| self.identity(*pid)))
    }

    fn folders(&self) -> [PodFolder; 1] {
        [PodFolder {
            path: self.0.join("pod"),
            cgroup: None,
            age: Duration::ZERO,
        }]
    }

    fn of(&self, pid: u32, started: u64) -> Process {
        Process {
            started,
            pid,
            folder: self.0.join("pod"),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_number_that_another_process_has_by_now_is_not_the_pods() {
    let made = Made::new("reuse");
    made.process(40, "S", 1_000);
    made.members(&[40]);
    let finder = made.finder(&[]);
    let process = made.of(40, 1_000);
    assert!(finder.open(&process).is_ok());
    // The process has moved to another cgroup.
    made.members(&[]);
    assert!(finder.open(&process).is_err());
    // It has ended, and another one in the same pod has its number.
    made.members(&[40]);
    made.process(40, "S", 2_000);
    assert!(finder.open(&process).is_err());
    // It has ended, and nobody has waited for it.
    made.process(40, "Z", 1_000);
    assert!(finder.open(&process).is_err());
    fs::remove_dir_all(made.0.join("proc/40")).expect("remove");
    assert!(finder.open(&process).is_err());
}

#[test]
fn the_nodes_own_namespace_is_no_pods() {
    let made = Made::new("node");
    made.process(1, "S", 1);
    made.process(40, "S", 1_000);
    made.members(&[1]);
    let pod = made.0.join("pod");
    assert_eq!(
        made.finder(&[1]).find(&made.folders(), None, &[]).err(),
        Some(Missing::OnlyNodes(pod))
    );
}

#[test]
fn the_namespace_of_a_pods_starter_is_no_pods() {
    let made = Made::new("starter");
    // Number 7 is everybody's parent here, and 40 has not left its namespace yet.
    made.process(7, "S", 1);
    made.process(40, "S", 1_000);
    let net = made.0.join("proc/40/ns/net");
    fs::remove_file(&net).expect("remove");
    fs::hard_link(made.0.join("proc/7/ns/net"), net).expect("link");
    made.members(&[40]);
    let finder = made.finder(&[]);
    let identity = made.identity(7);
    assert!(finder.is_of_starter(&made.of(40, 1_000), identity));
    // Inside the pod it may well be the parent's.
    made.members(&[7, 40]);
    assert!(!finder.is_of_starter(&made.of(40, 1_000), identity));
}

#[test]
fn what_is_missing_is_said() {
    let made = Made::new("missing");
    let finder = made.finder(&[]);
    assert_eq!(finder.find(&[], None, &[]).err(), Some(Missing::NoCgroup));
    made.members(&[]);
    let nobody = Some(Missing::NoProcess(made.0.join("pod")));
    assert_eq!(finder.find(&made.folders(), None, &[]).err(), nobody);
    // A number of another PID namespace, and one of a process that has just ended.
    made.members(&[0, 41]);
    assert_eq!(finder.find(&made.folders(), None, &[]).err(), nobody);
}

#[test]
fn the_first_process_of_a_pod_is_asked_first() {
    let made = Made::new("first");
    for (pid, started) in [(50, 900), (40, 1_000), (60, 950)] {
        made.process(pid, "S", started);
    }
    made.members(&[40, 50, 60]);
    let mut candidates = made.finder(&[]).candidates(&made.0.join("pod"));
    candidates.sort_unstable();
    assert_eq!(
        candidates.iter().map(|it| it.pid).collect::<Vec<_>>(),
        [50, 60, 40]
    );
}

#[test]
fn a_place_that_the_runtime_tells_is_the_nodes_and_not_ours() {
    let made = Made::new("told");
    // As on a node: /var/run is a link to /run, from the root of that node.
    let root = made.0.join("proc/1/root");
    fs::create_dir_all(root.join("run/netns")).expect("a folder");
    fs::create_dir_all(root.join("var")).expect("a folder");
    std::os::unix::fs::symlink("/run", root.join("var/run")).expect("a link");
    fs::write(root.join("run/netns/cni-1"), "").expect("a file in place of a namespace");
    let told = Path::new("/var/run/netns/cni-1");
    let finder = made.finder(&[]);
    let file = fs::metadata(root.join("run/netns/cni-1")).expect("it is there");
    let identity = (file.dev(), file.ino());
    assert_eq!(finder.open_at(told).expect("it is found").1, identity);
    // It is no namespace, and nothing else is known of the pod: that is what is said.
    let why = finder.find(&[], Some(told), &[]).err();
    assert!(
        matches!(&why, Some(Missing::Look { at, .. }) if at.as_str() == "/var/run/netns/cni-1"),
        "{why:?}"
    );
    // The node's own is no pod's, whoever says it.
    let of_node = Finder::new(made.0.join("proc"), [identity]);
    let why = of_node.find(&[], Some(told), &[]).err();
    assert!(
        matches!(&why, Some(Missing::Nodes { at }) if at.as_str() == "/var/run/netns/cni-1"),
        "{why:?}"
    );
    // What is wrong with the pod's own processes is said before that.
    made.process(40, "S", 1_000);
    made.members(&[40]);
    let why = made.finder(&[40]).find(&made.folders(), Some(told), &[]).err();
    assert_eq!(why, Some(Missing::OnlyNodes(made.0.join("pod"))));
    // A process's, by its number in our own /proc.
    made.process(50, "S", 1_000);
    let of_process = finder.open_at(Path::new("/proc/50/ns/net")).expect("it is there");
    assert_eq!(of_process.1, made.identity(50));
}

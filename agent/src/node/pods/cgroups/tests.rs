//! Pods' folders in made-up trees: every driver, runtime and layout.

use std::process;

use super::*;

const UID: &str = "12345678-9abc-def0-1234-56789abcdef0";
const SLICED: &str = "12345678_9abc_def0_1234_56789abcdef0";
const HASH: &str = "0123456789abcdef0123456789abcdef";

/// A made-up tree of folders, with a `cgroup.procs` in each.
struct Made(PathBuf);

impl Made {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-cgroups-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn folder(&self, path: &str, pids: &[u32]) {
        let folder = self.0.join(path);
        fs::create_dir_all(&folder).expect("a folder");
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(folder.join("cgroup.procs"), text).expect("cgroup.procs");
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new(vec![Hierarchy::unified(self.0.clone(), 0)]);
        tree.explore(&[]);
        tree
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pods_folder_is_found_in_every_layout() {
    let layouts = [
        // systemd, of each class, with each runtime.
        (
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICED}.slice"),
            "cri-containerd-a.scope",
            UID,
            3,
        ),
        (
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICED}.slice"),
            "crio-a.scope",
            UID,
            3,
        ),
        (
            format!("kubepods.slice/kubepods-pod{SLICED}.slice"),
            "docker-a.scope",
            UID,
            2,
        ),
        // Slices of slices: a kubelet below one of its own (kind), and below --cgroup-root.
        (
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICED}.slice"
            ),
            "cri-containerd-a.scope",
            UID,
            4,
        ),
        (
            format!(
                "machine.slice/docker-b.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICED}.slice"
            ),
            "cri-containerd-a.scope",
            UID,
            5,
        ),
        (
            format!("node.slice/node-a.slice/node-a-kubepods.slice/node-a-kubepods-pod{SLICED}.slice"),
            "crio-a.scope",
            UID,
            4,
        ),
        // cgroupfs, of each class.
        (format!("kubepods/burstable/pod{UID}"), "a", UID, 3),
        (format!("kubepods/besteffort/pod{UID}"), "crio-a", UID, 3),
        (format!("kubepods/pod{UID}"), "docker/a", UID, 2),
        (
            format!("docker/b/kubelet/kubepods/burstable/pod{UID}"),
            "a",
            UID,
            6,
        ),
        (format!("my/own/root/kubepods/pod{UID}"), "a", UID, 5),
        // The static pod's, which is a hash.
        (format!("kubepods/burstable/pod{HASH}"), "a", HASH, 3),
        (
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"),
            "crio-a.scope",
            HASH,
            3,
        ),
    ];
    for (number, (path, container, uid, level)) in layouts.iter().enumerate() {
        let made = Made::new(&format!("layout-{number}"));
        made.folder("system.slice/sshd.service", &[1]);
        made.folder("system.slice/pod-like.service", &[2]);
        made.folder("kubepods/burstable", &[]);
        made.folder(path, &[]);
        made.folder(&format!("{path}/{container}"), &[40, 0, 41]);
        made.folder(&format!("{path}/{container}/below"), &[42]);
        let found = made.tree().look(&[]).pods;
        assert_eq!(
            found.keys().map(String::as_str).collect::<Vec<_>>(),
            [*uid],
            "{path}"
        );
        let folders = &found[*uid];
        assert_eq!(folders[0].path, made.0.join(path));
        assert_eq!(
            folders[0].cgroup.map(|cgroup| cgroup.level),
            Some(*level),
            "{path}"
        );
        assert_eq!(
            processes(&folders[0].path),
            BTreeSet::from([40, 41, 42]),
            "{path}"
        );
    }
}

#[test]
fn a_new_pod_is_seen_without_another_walk() {
    let made = Made::new("new");
    made.folder("kubepods/burstable", &[]);
    made.folder("kubepods/besteffort", &[]);
    let mut tree = made.tree();
    assert!(tree.look(&[]).pods.is_empty());
    assert_eq!(tree.parents().count(), 3);
    made.folder(&format!("kubepods/besteffort/pod{UID}"), &[7]);
    assert_eq!(tree.look(&[]).pods.keys().collect::<Vec<_>>(), [UID]);
    fs::remove_dir_all(made.0.join("kubepods/besteffort")).expect("remove");
    assert!(tree.look(&[]).pods.is_empty());
}

#[test]
fn each_kubelet_has_a_root_of_its_own() {
    for (folder, root) in [
        (
            "/sys/fs/cgroup/node-a/kubepods/burstable/podx",
            Some("/sys/fs/cgroup/node-a/kubepods"),
        ),
        (
            "/c/a-kubepods.slice/a-kubepods-burstable.slice/a-kubepods-burstable-podx.slice",
            Some("/c/a-kubepods.slice"),
        ),
        // Of a kubelet inside a pod of another.
        ("/c/kubepods/pody/docker/kubepods/podx", Some("/c/kubepods")),
        ("/c/elsewhere/podx", None),
    ] {
        assert_eq!(root_of(Path::new(folder)), root.map(Path::new), "{folder}");
    }
}

#[test]
fn names_that_are_no_pods_are_none() {
    for name in [
        "kubepods",
        "kubepods.slice",
        "pod",
        "podx",
        "libpod-0123456789abcdef0123456789abcdef0123.scope",
        "cri-containerd-12345678.scope",
    ] {
        assert_eq!(uid_of(name, &[]), None, "{name}");
    }
    // A UID that somebody wrote by hand is found because it is known.
    let odd = ["my_static-pod".to_owned()];
    assert_eq!(
        uid_of("kubepods-podmy_static_pod.slice", &odd),
        Some(odd[0].clone())
    );
    assert_eq!(uid_of("podanother", &odd), None);
}

#[test]
fn hierarchies_are_found_where_they_are_mounted() {
    let v1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
              cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
              cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
    let hybrid =
        format!("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n{v1}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
    // A container that has a part of the tree at the usual place, and the node's at another.
    let container = "cgroup2 /sys/fs/cgroup cgroup2 ro 0 0\ncgroup2 /host/sys/fs/cgroup cgroup2 ro 0 0\n";
    let memory = || Hierarchy::v1("/sys/fs/cgroup/memory".into());
    for (mounts, known, expect) in [
        (
            "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            vec![("/sys/fs/cgroup", 0)],
            vec![Hierarchy::unified("/sys/fs/cgroup".into(), 0)],
        ),
        (v1, vec![], vec![memory()]),
        // A node that is a container: its root is a part of the machine's tree.
        (
            "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            vec![],
            vec![Hierarchy::part("/sys/fs/cgroup".into())],
        ),
        (
            "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            vec![("/sys/fs/cgroup", 2)],
            vec![Hierarchy::unified("/sys/fs/cgroup".into(), 2)],
        ),
        (
            &hybrid,
            vec![("/sys/fs/cgroup/unified", 0)],
            vec![Hierarchy::unified("/sys/fs/cgroup/unified".into(), 0), memory()],
        ),
        (
            container,
            vec![("/sys/fs/cgroup", 5), ("/host/sys/fs/cgroup", 0)],
            vec![Hierarchy::unified("/host/sys/fs/cgroup".into(), 0)],
        ),
        ("proc /proc proc rw 0 0\n", vec![], vec![]),
    ] {
        let depths = known.into_iter().collect::<std::collections::HashMap<_, _>>();
        assert_eq!(
            hierarchies(mounts, |path| depths.get(path.to_str()?).copied()),
            expect,
            "{mounts}"
        );
    }
}

#[test]
fn a_root_that_is_called_like_a_pod_is_none_nor_are_its_slices() {
    for name in [
        "pods-kubepods-burstable.slice",
        "pods-kubepods.slice",
        "pod-kubepods-besteffort.slice",
        "podman-kubepods-burstable.slice",
        "podman.slice",
        "pods.slice",
        "node-pods.slice",
        "burstable",
        "pod",
        "kubepods",
    ] {
        assert!(!is_named_as_pod(name), "{name}");
    }
    for name in [
        format!("pods-kubepods-burstable-pod{SLICED}.slice"),
        format!("kubepods-pod{SLICED}.slice"),
        "podman-kubepods-podmy_static_pod.slice".to_owned(),
        format!("pod{UID}"),
        "podmy-static_pod".to_owned(),
    ] {
        assert!(is_named_as_pod(&name), "{name}");
    }
    for (number, (path, level)) in [
        (
            format!("pods.slice/pods-kubepods.slice/pods-kubepods-burstable.slice/pods-kubepods-burstable-pod{SLICED}.slice"),
            4,
        ),
        (
            format!("podman.slice/podman-kubepods.slice/podman-kubepods-pod{SLICED}.slice"),
            3,
        ),
        (format!("pods/kubepods/burstable/pod{UID}"), 4),
        (format!("podman/kubepods/besteffort/pod{UID}"), 4),
    ]
    .iter()
    .enumerate()
    {
        let made = Made::new(&format!("root-{number}"));
        made.folder(path, &[1]);
        let found = made.tree().look(&[]).pods;
        assert_eq!(found.keys().collect::<Vec<_>>(), [UID], "{path}");
        let levels: Vec<_> = found[UID].iter().filter_map(|folder| folder.cgroup).collect();
        assert_eq!(levels[0].level, *level, "{path}");
    }
}

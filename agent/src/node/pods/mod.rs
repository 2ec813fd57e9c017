//! Which pods of this node are to be captured, and where their network namespaces are: without a CNI plug-in, and without
//! waiting for the API to know a pod's address.
//!
//! Level-triggered. What comes in is what the API shows of this node ([`Listing`]), and the folders of the kubelet's cgroups;
//! what goes out is a [`View`]: the pods, and the cgroups of those that are on their way and must not dial out before they are
//! captured. Nothing is done here: `control` and `enroll` do it.
//!
//! ```text
//! API: pods, namespaces ──▶ cluster::enrolment: in the mesh?  ──┐
//! cgroups: a folder with the pod's UID ──▶ a process in it ──▶  ├──▶ View ──▶ control ──▶ enroll
//!          /proc/<pid>/ns/net, proved to be the pod's          ──┘
//! ```
//!
//! What is not closed, and why, is said at [`View::holds`].

mod cgroups;
pub mod listing;
mod look;
mod netns;
pub mod nri;
pub mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use self::{
    cgroups::{Hierarchy, Tree, hierarchies},
    look::Looker,
    netns::Finder,
    nri::Sandboxes,
};
use crate::{
    cluster::enrolment::Labels,
    feed::LocalPod,
    kernel::{depth, folders::FolderChanges, maps::PodsCgroup, verdicts},
    net::netns::NetnsSource,
};

/// How often everything is looked at when nothing seems to happen.
const PERIOD: Duration = Duration::from_secs(1);
/// The same, while a pod that is to be captured starts: its sandbox may be there at any moment.
const EAGER: Duration = Duration::from_millis(10);
/// The same, where the kernel does not tell of new folders.
const UNTOLD: Duration = Duration::from_millis(50);

/// Set by the kubelet on what shows a static pod in the API; only kubelets may.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The UID by which the kubelet itself knows such a pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// A pod as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiPod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations`.
    pub annotations: Labels,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Whether `status.phase` is `Succeeded` or `Failed`.
    pub ended: bool,
    /// `status.podIPs`; none where the kubelet has not said them yet.
    pub addresses: Vec<IpAddr>,
}

/// What the API shows of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The pods that are bound to it.
    pub pods: Vec<ApiPod>,
    /// The labels of namespaces, by their names; at least of those that have pods here.
    pub namespaces: BTreeMap<String, Labels>,
    /// Whether it is as new as the API is: no watch is broken. While it is not, nobody is let go for not being in it.
    pub current: bool,
}

/// What pods are looked for with.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// The cluster's name, the first part of workloads' uids.
    pub cluster: String,
    /// The namespace that weft itself runs in: its pods are never captured.
    pub own_namespace: String,
    /// The cgroup2 folder under which the node's pods are, and its depth in the whole tree; none looks everywhere, and takes
    /// for this node's what a kubelet's folder has that has one of this node's pods.
    pub pods_cgroup: Option<(PathBuf, u32)>,
    /// The node's own network namespace, which is no pod's.
    pub node_netns: PathBuf,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The pods that should be captured, by their workloads' uids; those that are not found too ([`NetnsSource::Missing`]).
    pub pods: Vec<LocalPod>,
    /// Those that are held on their way into the mesh, and those that are not.
    ///
    /// A pod that starts is held by the kernel before the agent has seen it, however late that is: whatever lies under
    /// [`View::pods_cgroup`] and is not known ([`Holds::unseen`]), for ten seconds after the agent has last looked.
    ///
    /// What stays open. A pod that starts while no agent looks: nothing holds it back (a start-up taint keeps pods away until
    /// the first one does), and its sockets of before are judged at its capture. An agent that gets no processor time for ten
    /// seconds counts as none. A pod whose sandbox is made anew keeps its cgroup: it is held again once the agent has seen
    /// that. Nodes whose runtime keeps containers out of cgroup2 (cgroup v1, and hybrid layouts with a runc of before 1.1):
    /// there is no cgroup to know a starting pod by, so that its apps may dial in the moments between the making of its
    /// network and its capture. Nodes whose pods lie under more than one folder, or not as a kubelet lays them: a cgroup is
    /// held there once the agent has seen it, and an app may be faster; and what is held there of a pod that the API has not
    /// shown yet, there or while a folder cannot be read, stays held after an agent that is killed, until another one looks.
    /// UDP other than DNS, which is not the mesh's at any time. Nodes whose own network namespace the agent cannot open: pods
    /// that share it could not be told from the others. Connections *to* a pod that starts, until its capture: no program of
    /// the kernel's stands in its network namespace before that, and what its app accepts in plaintext against its policies is
    /// ended at the capture (`node::exposed`), not before its first byte. Where the container runtime waits for the capture
    /// ([`nri`]) no app runs by then, and neither of the two is open.
    pub holds: Holds,
    /// The sandboxes that the container runtime has told of, by its own ids.
    pub sandboxes: BTreeMap<String, Standing>,
    /// The cgroup under which this node's pods were found.
    pub pods_cgroup: Option<PodsCgroup>,
}

/// What is to become of a sandbox that the container runtime has told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: its pod is not the mesh's.
    Outside,
    /// It is not known yet whether it is.
    Unknown,
    /// Its pod is to be captured.
    Awaits(Awaited),
}

/// Which cgroups of pods the kernel is to hold: whose processes must not dial out yet, and whose may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// By their ids, with what ends it; nothing but a later view where nobody knows the pod yet. Such a one is here only where
    /// it is not held for being unseen ([`Holds::unseen`]).
    pub cgroups: BTreeMap<u64, Option<Awaited>>,
    /// The ids of all others: of pods that are not the mesh's or have run before they were, and of what is no pod's.
    pub released: BTreeSet<u64>,
    /// The depths at which they lie; 0 for none.
    pub levels: [u32; 2],
    /// Whether all of [`View::pods_cgroup`] is in one of the two, so that what is in neither has not been seen yet: it is not to
    /// dial either.
    pub unseen: bool,
}

impl Holds {
    /// Whether a pod with this workload's uid is among them.
    pub fn awaits(&self, uid: &str) -> bool {
        self.cgroups
            .values()
            .flatten()
            .any(|awaited| &*awaited.uid == uid)
    }
}

/// The capture that a pod waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The workload's uid.
    pub uid: Arc<str>,
    /// The namespace that must be captured. A pod that was made anew has its predecessor's uid, and another one of these.
    pub netns: NetnsSource,
}

/// A view, and when it was last found to be so.
#[derive(Clone, Debug)]
pub struct Newest {
    /// What should be.
    pub view: Arc<View>,
    /// By the kernel's monotonic clock.
    pub looked: Duration,
}

/// The pods of this node. Looks on by itself until it is dropped.
#[derive(Clone, Debug)]
pub struct Pods {
    views: watch::Receiver<Option<Newest>>,
}

impl Pods {
    /// Looks for the pods of `listing`, from the first one on. `told` is what the container runtime says of them.
    ///
    /// # Errors
    /// When the mounts, the node's network namespace or the agent's own cannot be read.
    pub fn spawn(
        settings: PodSettings,
        listing: watch::Receiver<Option<Arc<Listing>>>,
        told: watch::Receiver<Arc<Sandboxes>>,
    ) -> io::Result<Self> {
        let given = settings
            .pods_cgroup
            .as_ref()
            .map(|(path, level)| Hierarchy::pods(path.clone(), *level));
        let mounted = hierarchies(&fs::read_to_string("/proc/self/mounts")?, depth::of);
        let v1 = |hierarchy: &Hierarchy| given.is_none() || !hierarchy.is_unified();
        let hierarchies: Vec<_> = given
            .iter()
            .cloned()
            .chain(mounted.into_iter().filter(v1))
            .collect();
        if hierarchies.is_empty() {
            return Err(io::Error::new(ErrorKind::NotFound, "no cgroup is mounted"));
        }
        let own = identity(Path::new("/proc/self/ns/net"))?;
        // They cannot always be seen: see `node_netns`. A node may be a namespace of a machine's.
        let others = [settings.node_netns.as_path(), Path::new("/proc/1/ns/net")];
        let others = others.into_iter().filter_map(|path| identity(path).ok());
        let finder = Finder::new("/proc".into(), others.chain([own]));
        let looker = Looker::new(settings, Tree::new(hierarchies), finder);
        let (publish, views) = watch::channel(None);
        tokio::spawn(run(looker, listing, told, publish));
        Ok(Self { views })
    }

    /// Waits for the first view: until the API has shown the node's pods.
    pub async fn first(&mut self) -> Arc<View> {
        loop {
            if let Some(view) = self.view() {
                return view;
            }
            self.changed().await;
        }
    }

    /// Waits for another view than the last one.
    pub async fn changed(&mut self) {
        if self.views.changed().await.is_err() {
            // The listing has ended, and the agent will.
            std::future::pending::<()>().await;
        }
    }

    /// What should be by now, which stays to be waited for with [`Pods::changed`].
    pub fn newest(&self) -> Option<Newest> {
        self.views.borrow().clone()
    }

    /// What should be; none before the API has shown the node's pods.
    pub fn view(&mut self) -> Option<Arc<View>> {
        let newest = self.views.borrow_and_update();
        newest.as_ref().map(|newest| Arc::clone(&newest.view))
    }
}

fn identity(path: &Path) -> io::Result<netns::Identity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

async fn run(
    mut looker: Looker,
    mut listing: watch::Receiver<Option<Arc<Listing>>>,
    mut told: watch::Receiver<Arc<Sandboxes>>,
    publish: watch::Sender<Option<Newest>>,
) {
    let mut changes = FolderChanges::open()
        .inspect_err(|error| {
            tracing::warn!(%error, "the kernel does not tell of new cgroups (is fs.inotify.max_user_instances reached?): they are looked for 20 times a second");
        })
        .ok();
    loop {
        let shown = listing.borrow_and_update().clone();
        let sandboxes = Arc::clone(&told.borrow_and_update());
        let mut wait = PERIOD;
        if let Some(shown) = shown {
            let looked = spawn_blocking(move || {
                let view = looker.look(&shown, &sandboxes, Instant::now());
                (looker, view)
            });
            let Ok((back, view)) = looked.await else {
                tracing::error!("looking for pods has failed: pods that start are not captured any more");
                return;
            };
            looker = back;
            publish.send_if_modified(|last| renew(last, view));
            let is_told = changes.is_some();
            let any_new = changes
                .as_mut()
                .is_some_and(|changes| changes.watch(looker.parents()));
            wait = match (any_new, looker.is_awaiting(), is_told) {
                // What came between the look and the watch is looked at at once.
                (true, ..) => Duration::ZERO,
                (false, true, _) => EAGER,
                (false, false, true) => PERIOD,
                (false, false, false) => UNTOLD,
            };
        }
        tokio::select! {
            changed = listing.changed() => if changed.is_err() { return },
            () = another(&mut told) => {}
            () = next(changes.as_mut()) => {}
            () = sleep(wait) => {}
            () = publish.closed() => return,
        }
    }
}

/// Puts a view in the place of the last one, and says whether it is another one. That it was looked is noted in any case.
fn renew(last: &mut Option<Newest>, view: View) -> bool {
    let looked = verdicts::now();
    match last {
        Some(last) if *last.view == view => {
            last.looked = looked;
            false
        }
        _ => {
            let view = Arc::new(view);
            *last = Some(Newest { view, looked });
            true
        }
    }
}

/// Waits until the container runtime has told of something; for ever where nobody asks it.
async fn another(told: &mut watch::Receiver<Arc<Sandboxes>>) {
    if told.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the kernel tells of something.
async fn next(changes: Option<&mut FolderChanges>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// The names by which a pod's cgroup may be called: its UID, and for one that the API only mirrors the kubelet's own for it.
/// That annotation by itself proves nothing: anyone may write it.
fn keys(pod: &ApiPod) -> impl Iterator<Item = &str> {
    let mirrored = pod.annotations.contains_key(MIRROR);
    let own = pod.annotations.get(STATIC_UID).filter(|_| mirrored);
    [Some(&pod.uid), own].into_iter().flatten().map(String::as_str)
}

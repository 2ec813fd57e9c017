//! Changes of a real file are seen, once each, and nothing else is.

use std::{error::Error as _, fs, os::unix::fs::symlink};

use tokio::time::timeout;

use super::*;

/// Longer than a change takes to be seen, by much.
const SOON: Duration = Duration::from_secs(10);
/// Long enough for a change to be seen.
const A_WHILE: Duration = Duration::from_millis(500);

/// A directory of a test's own, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-watch-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn mesh(&self) -> PathBuf {
        self.0.join("mesh.yaml")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mesh(pods: usize) -> String {
    let pod = |i| format!("- {{name: pod-{i}, namespace: demo}}\n");
    format!("workloads:\n{}", (0..pods).map(pod).collect::<String>())
}

/// The number of workloads of the next mesh, or the error that came instead.
async fn next(watch: &mut FileWatch) -> Result<usize, String> {
    let changed = timeout(SOON, watch.changed()).await.expect("no change was seen");
    changed
        .map(|file| file.mesh.workloads().len())
        .map_err(|err| err.to_string())
}

async fn nothing(watch: &mut FileWatch) {
    assert!(
        timeout(A_WHILE, watch.changed()).await.is_err(),
        "a change was seen where there was none"
    );
}

#[tokio::test]
async fn changes() {
    let directory = Directory::new("changes");
    let path = directory.mesh();
    let mut watch = FileWatch::new(&path, "node-a");
    let unreadable = format!("cannot read the mesh file {}", path.display());
    assert_eq!(next(&mut watch).await, Err(unreadable.clone()));
    nothing(&mut watch).await;

    fs::write(&path, mesh(1)).unwrap();
    assert_eq!(next(&mut watch).await, Ok(1));
    // The same length, at once: too soon for the time of the file to tell.
    fs::write(&path, mesh(1).replace("pod-0", "pod-x")).unwrap();
    assert_eq!(next(&mut watch).await, Ok(1));
    nothing(&mut watch).await;

    // Written anew with the same text, or only touched.
    fs::write(&path, mesh(1).replace("pod-0", "pod-x")).unwrap();
    nothing(&mut watch).await;

    fs::write(&path, "workloads: 5").unwrap();
    assert_eq!(next(&mut watch).await, Err("the mesh file is not valid".into()));
    nothing(&mut watch).await;
    fs::write(&path, mesh(2)).unwrap();
    assert_eq!(next(&mut watch).await, Ok(2));

    fs::remove_file(&path).unwrap();
    assert_eq!(next(&mut watch).await, Err(unreadable));
    fs::write(&path, mesh(2)).unwrap();
    assert_eq!(next(&mut watch).await, Ok(2));
}

/// A service that is answered for by a waypoint, and manifests in a file and in a folder.
const WITH_MANIFESTS: &str = "
workloads:
- {name: gate-1, namespace: demo, labels: {app: gate}, tunnelProtocol: HBONE, nativeTunnel: true}
services:
- {name: gate, namespace: demo, vips: [10.0.0.1], selector: {app: gate}}
- {name: web, namespace: demo, vips: [10.0.0.2], endpoints: [], ports: [{port: 80}], waypoint: {service: demo/gate}}
manifests: [rule.yaml, more]
";

/// A DestinationRule of the service, with this many subsets.
fn rule(subsets: usize) -> String {
    let subsets: String = (0..subsets).map(|i| format!("  - {{name: v{i}}}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: demo}}\n\
         spec:\n  host: web\n  subsets:\n{subsets}"
    )
}

/// How many subsets the service of the next mesh has, and how many whose tokens are believed; or the error.
async fn next_routes(watch: &mut FileWatch) -> Result<(usize, usize), String> {
    let changed = timeout(SOON, watch.changed()).await.expect("no change was seen");
    let file = changed.map_err(|err| format!("{err}: {}", err.source().unwrap()))?;
    let web = crate::mesh::ServiceKey {
        namespace: "demo".into(),
        hostname: "web.demo.svc.cluster.local".into(),
    };
    let routes = file.mesh.http_routes(&web).unwrap();
    Ok(routes.map_or((0, 0), |routes| {
        let values = routes.values();
        (values.traffic.subsets.len(), values.authentications.len())
    }))
}

#[tokio::test]
async fn manifests_are_watched_as_well() {
    let directory = Directory::new("manifests");
    let (file, folder) = (directory.0.join("rule.yaml"), directory.0.join("more"));
    fs::write(directory.mesh(), WITH_MANIFESTS).unwrap();
    fs::write(&file, rule(1)).unwrap();
    let mut watch = FileWatch::new(directory.mesh(), "node-a");
    let error = next_routes(&mut watch).await.unwrap_err();
    assert!(
        error.contains("manifests[1]") && error.contains("more cannot be read"),
        "{error}"
    );
    nothing(&mut watch).await;
    fs::create_dir(&folder).unwrap();
    assert_eq!(next_routes(&mut watch).await, Ok((1, 0)));
    fs::write(&file, rule(2)).unwrap();
    assert_eq!(next_routes(&mut watch).await, Ok((2, 0)));
    // Only what is a manifest by its name.
    fs::write(folder.join("notes.txt"), "a: [").unwrap();
    fs::write(folder.join(".jwt.yaml"), "a: [").unwrap();
    nothing(&mut watch).await;
    let jwt = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: demo}\n\
               spec: {jwtRules: [{issuer: me, jwks: '{\"keys\": []}'}]}\n";
    fs::write(folder.join("jwt.yaml"), jwt).unwrap();
    assert_eq!(next_routes(&mut watch).await, Ok((2, 1)));
    fs::remove_file(folder.join("jwt.yaml")).unwrap();
    assert_eq!(next_routes(&mut watch).await, Ok((2, 0)));
    fs::write(&file, rule(2)).unwrap();
    nothing(&mut watch).await;
}

/// As the kubelet writes a ConfigMap: the file is a link into a directory that is a link, and that one is swapped.
#[tokio::test]
async fn a_config_map() {
    let directory = Directory::new("configmap");
    let root = &directory.0;
    for (version, pods) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("mesh.yaml"), mesh(pods)).unwrap();
    }
    symlink("v1", root.join("data")).unwrap();
    symlink("data/mesh.yaml", directory.mesh()).unwrap();
    let mut watch = FileWatch::new(directory.mesh(), "node-a");
    assert_eq!(next(&mut watch).await, Ok(1));
    symlink("v2", root.join("new")).unwrap();
    fs::rename(root.join("new"), root.join("data")).unwrap();
    assert_eq!(next(&mut watch).await, Ok(2));
}

#[tokio::test]
async fn a_call_that_is_dropped_loses_nothing() {
    let directory = Directory::new("dropped");
    fs::write(directory.mesh(), mesh(3)).unwrap();
    let mut watch = FileWatch::new(directory.mesh(), "node-a");
    for _ in 0..20 {
        let dropped = timeout(Duration::ZERO, watch.changed()).await;
        if let Ok(seen) = dropped {
            assert_eq!(seen.unwrap().mesh.workloads().len(), 3);
            return nothing(&mut watch).await;
        }
    }
    assert_eq!(next(&mut watch).await, Ok(3));
}

/// The control loop has other things to do several times a second.
#[tokio::test]
async fn a_large_file_is_read_to_its_end_by_calls_that_are_dropped() {
    let directory = Directory::new("large");
    fs::write(directory.mesh(), mesh(5_000)).unwrap();
    let mut watch = FileWatch::new(directory.mesh(), "node-a");
    let read = async {
        loop {
            if let Ok(seen) = timeout(Duration::from_millis(1), watch.changed()).await {
                return seen.unwrap().mesh.workloads().len();
            }
        }
    };
    assert_eq!(timeout(SOON * 6, read).await, Ok(5_000));
}

#[tokio::test]
async fn a_look_sees_at_once_what_has_changed() {
    let directory = Directory::new("look");
    fs::write(directory.mesh(), mesh(1)).unwrap();
    let mut watch = FileWatch::new(directory.mesh(), "node-a");
    assert_eq!(next(&mut watch).await, Ok(1));
    assert!(watch.look().await.is_none());
    for pods in 2..6 {
        fs::write(directory.mesh(), mesh(pods)).unwrap();
        let seen = watch.look().await.expect("a change");
        assert_eq!(seen.unwrap().mesh.workloads().len(), pods);
        assert!(watch.look().await.is_none());
    }
}

#[test]
fn files_that_cannot_be_read() {
    let directory = Directory::new("unreadable");
    let check = |bytes: &[u8], expect: &str| {
        fs::write(directory.mesh(), bytes).unwrap();
        let err = load(&directory.mesh(), "node-a").unwrap_err();
        let source = std::error::Error::source(&err)
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(source.contains(expect), "{source}");
    };
    check(&vec![b'#'; LARGEST_FILE + 1], "it is larger than 16 MiB");
    check(b"workloads: [\xff]", "invalid utf-8 sequence");
    check(
        b"workloads: [{name: A}]",
        "workloads[0].name: \"A\" is not a name",
    );
    assert!(load(&directory.0, "node-a").is_err());
    let endless = read(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(endless, FeedError::Read { .. }));
}

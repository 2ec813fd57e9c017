//! The end-to-end suite, against any real cluster: `cargo xtask test kube --kubeconfig FILE [--image REF] [--keep]`.
//!
//! It needs two nodes that are ready, the rights of an administrator, and weft's image on the nodes or where they can pull it;
//! no DNS, no internet and no other image. It installs by the chart, runs the scenes below in their order, each of which says
//! what it has seen, uninstalls, and looks for what is left. A cluster that has weft already is refused.

mod apps;
mod cluster;
mod commands;
mod leftovers;
mod mesh;
mod options;
mod scenes;
mod waypoints;

use std::time::Instant;

use anyhow::Result;
use apps::World;
use cluster::Cluster;
use mesh::Mesh;
use options::Options;

#[test]
#[ignore = "needs a cluster: cargo xtask test kube --kubeconfig FILE"]
fn the_mesh_on_a_real_cluster() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if let Err(error) = runtime.block_on(suite()) {
        panic!("{error:#}");
    }
}

async fn suite() -> Result<()> {
    let options = Options::from_environment()?;
    let cluster = Cluster::connect(&options.kubeconfig).await?;
    let nodes = cluster.preflight().await?;
    println!("nodes: {} and {}", nodes[0], nodes[1]);
    let mesh = Mesh::new(&cluster, &options);
    let world = World::new(&cluster, &options.image, nodes);
    let outcome = Box::pin(scenes(&mesh, &world)).await;
    if options.keep {
        println!(
            "kept: the namespaces {} and {}, and weft",
            apps::INSIDE,
            apps::OUTSIDE
        );
        return outcome;
    }
    // After a failure too, so that the next run finds a clean cluster; what failed first is what is told.
    let cleaned = clean(&mesh, &world).await;
    outcome.and(cleaned)
}

/// What is promised, in the order in which a cluster meets it.
async fn scenes(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    waypoints::define(world).await?;
    world.begin().await?;
    scene("install", mesh.install()).await?;
    scene(
        "a label enrols running pods, without a restart",
        scenes::enrol(mesh, world),
    )
    .await?;
    scene(
        "between nodes: mutual TLS, by the agents' own account",
        scenes::traffic(mesh, world),
    )
    .await?;
    scene("weft status and weft analyze", commands::ask(mesh, world)).await?;
    scene("a policy refuses an identity", scenes::policy(world)).await?;
    scene("STRICT refuses who is outside of the mesh", scenes::strict(world)).await?;
    scene(
        "a waypoint: routes, a policy of layer 7, its end",
        Box::pin(waypoints::scene(mesh, world)),
    )
    .await?;
    scene(
        "200 pods whose first act is to connect",
        scenes::starts(mesh, world),
    )
    .await?;
    scene("an upgrade under load", Box::pin(scenes::upgrade(mesh, world))).await?;
    scene(
        "the label removed: what is open goes on",
        scenes::unenrol(mesh, world),
    )
    .await?;
    scene(
        "pods in the mesh, a policy and a waypoint, for the uninstall to undo",
        leftovers::begin(mesh, world),
    )
    .await
}

async fn clean(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    scene("uninstall", mesh.uninstall()).await?;
    scene("nothing is left", leftovers::none(world)).await?;
    world.end().await
}

/// Says what is tried, and how long it took.
async fn scene(name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    work.await
        .map_err(|error| error.context(format!("scene: {name}")))?;
    println!("✓ {name} ({:.1} s)", started.elapsed().as_secs_f32());
    Ok(())
}

//! The end-to-end suite, against any real cluster: `cargo xtask test kube --kubeconfig FILE [--image REF] [--keep]`.
//!
//! It needs two nodes that are ready, the rights of an administrator, and weft's image on the nodes or where they can pull it;
//! no DNS, no internet and no other image. It installs by the chart, runs the scenes below in their order, each of which says
//! what it has seen, uninstalls, and looks for what is left. A cluster that has weft already is refused before anything is done
//! to it, since what the suite installs it uninstalls.

mod apps;
mod cluster;
mod commands;
mod leftovers;
mod mesh;
mod options;
mod scenes;
mod waypoints;
mod why;

use std::time::Instant;

use anyhow::Result;
use apps::World;
use cluster::{Cluster, together};
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
    // From here on things are made, and so taken away again.
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
    match (outcome, cleaned) {
        (Err(failed), Err(left)) => Err(failed.context(format!("the cluster is not as it was: {left:#}"))),
        (outcome, cleaned) => outcome.and(cleaned),
    }
}

/// What is promised, in the order in which a cluster meets it.
async fn scenes(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    scene(world, "apps, and no mesh", Box::pin(begin(world))).await?;
    scene(world, "install", mesh.install()).await?;
    scene(
        world,
        "a label enrols running pods, without a restart",
        scenes::enrol(mesh, world),
    )
    .await?;
    scene(
        world,
        "between nodes: mutual TLS, by the agents' own account",
        scenes::traffic(mesh, world),
    )
    .await?;
    scene(world, "weft status and weft analyze", commands::ask(mesh, world)).await?;
    scene(
        world,
        "a policy refuses an identity",
        Box::pin(scenes::policy(world)),
    )
    .await?;
    scene(
        world,
        "STRICT refuses who is outside of the mesh",
        Box::pin(scenes::strict(world)),
    )
    .await?;
    scene(
        world,
        "a waypoint: routes, a policy of layer 7, its end",
        Box::pin(waypoints::scene(mesh, world)),
    )
    .await?;
    scene(
        world,
        "200 pods whose first act is to connect",
        scenes::starts(mesh, world),
    )
    .await?;
    scene(
        world,
        "an upgrade under load",
        Box::pin(scenes::upgrade(mesh, world)),
    )
    .await?;
    scene(
        world,
        "the label removed: what is open goes on",
        scenes::unenrol(mesh, world),
    )
    .await?;
    scene(
        world,
        "pods in the mesh, a policy and a waypoint, for the uninstall to undo",
        leftovers::begin(mesh, world),
    )
    .await
}

async fn begin(world: &World<'_>) -> Result<()> {
    waypoints::define(world).await?;
    world.begin().await
}

/// Every step, whatever became of the others: what one leaves must not be in the next run's way.
async fn clean(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    together([
        scene(world, "uninstall", mesh.uninstall()).await,
        scene(world, "nothing is left", leftovers::none(world)).await,
        world.end().await,
    ])
}

/// Says what is tried, how long it took, and if it failed, all that may tell why while it can be seen.
async fn scene(world: &World<'_>, name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    let outcome = work.await;
    let took = started.elapsed().as_secs_f32();
    match &outcome {
        Ok(()) => println!("✓ {name} ({took:.1} s)"),
        Err(error) => {
            println!("✗ {name} ({took:.1} s): {error:#}");
            Box::pin(why::tell(world)).await;
        }
    }
    outcome.map_err(|error| error.context(format!("scene: {name}")))
}

//! Makes waypoints: for each Gateway that is one of ours a ServiceAccount, a Service, a Deployment, a PodDisruptionBudget and,
//! where it asks for that, a HorizontalPodAutoscaler; and says on the Gateway what became of it.
//!
//! One loop, level-triggered: `objects` says what is to be, `actual` watches what is there of it, `plan` compares the two, `apply`
//! does what is missing. Only the replica that holds the Lease writes. What a Gateway owns goes with it, by Kubernetes' own
//! collection of what nobody owns; an object of the same name that is not ours is never touched.

mod actual;
mod apply;
mod covers;
mod objects;
mod parts;
mod plan;
mod settings;
mod status;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{Api, Client};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

pub use self::settings::{Settings, pod_fields, resources};
use self::{
    apply::{Applier, Trouble},
    parts::{Key, Part},
    plan::Actual,
};
use super::{
    compile::{ObjectRef, WaypointGateway},
    conditions::Statuses,
    lease::while_leading,
};
use crate::cluster::{client::explain, objects::Service};

/// After a change it is waited so long for more of them.
const QUIET: Duration = Duration::from_millis(100);
/// How often everything is looked at without a change.
const LOOK: Duration = Duration::from_secs(5);
/// The port of the controller's Service.
const CONTROLLER_PORT: u16 = 15012;

/// What is to be, as it was compiled.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// The waypoints of ours, in order.
    pub(super) gateways: Vec<WaypointGateway>,
    /// The classes that are ours.
    pub(super) classes: Vec<ObjectRef>,
}

/// What the loop hears of.
pub(super) struct Inputs {
    /// Whether we are the ones who write.
    pub(super) leads: watch::Receiver<bool>,
    /// None before everything has been compiled once.
    pub(super) wanted: watch::Receiver<Option<Arc<Wanted>>>,
    /// Whose certificates a waypoint believes the controller, PEM.
    pub(super) roots: watch::Receiver<String>,
}

/// What a waypoint is told of its surroundings.
#[derive(Clone, Debug, Default, PartialEq)]
struct Surroundings {
    /// host:port of the controller.
    controller: String,
    /// PEM.
    roots: String,
}

/// Makes and keeps waypoints until nobody compiles any more.
pub(super) async fn deploy(
    client: Client,
    settings: Settings,
    mut inputs: Inputs,
    statuses: watch::Sender<Statuses>,
) {
    let mut changes = actual::watch(&client);
    let mut deployer = Deployer {
        applier: Applier::new(client.clone()),
        client,
        settings,
        actual: Actual::new(),
        missing: BTreeSet::from(Part::ALL),
        address: None,
    };
    loop {
        let changed = tokio::select! {
            change = changes.recv() => change.map(|change| deployer.take(change)),
            changed = inputs.wanted.changed() => changed.ok(),
            changed = inputs.leads.changed() => changed.ok(),
            changed = inputs.roots.changed() => changed.ok(),
            () = sleep(LOOK) => Some(()),
        };
        if changed.is_none() {
            return;
        }
        sleep(QUIET).await;
        deployer.drain(&mut changes);
        inputs.roots.mark_unchanged();
        let wanted = inputs.wanted.borrow_and_update().clone();
        let leads = *inputs.leads.borrow_and_update();
        if let Some(wanted) = wanted
            && leads
            && deployer.missing.is_empty()
        {
            deployer.turn(&wanted, &inputs, &statuses).await;
        }
    }
}

struct Deployer {
    client: Client,
    settings: Settings,
    applier: Applier,
    actual: Actual,
    /// The kinds that have not been listed yet.
    missing: BTreeSet<Part>,
    /// Where the controller was found last.
    address: Option<String>,
}

impl Deployer {
    fn take(&mut self, change: actual::Change) {
        if let actual::Change::Replace(part, _) = &change {
            self.missing.remove(part);
        }
        actual::apply(&mut self.actual, change);
    }

    fn drain(&mut self, changes: &mut mpsc::Receiver<actual::Change>) {
        while let Ok(change) = changes.try_recv() {
            self.take(change);
        }
    }

    async fn turn(&mut self, wanted: &Wanted, inputs: &Inputs, statuses: &watch::Sender<Statuses>) {
        let Some(around) = self.surroundings(inputs).await else {
            return;
        };
        let desired = self.desired(wanted, &around);
        let held = held(wanted);
        let actions = plan::plan(
            &desired,
            |key| held.contains(&(&key.namespace, &key.name)),
            &self.actual,
        );
        self.applier.forget_others(&desired);
        for action in actions {
            if !*inputs.leads.borrow() {
                return;
            }
            let acting = self.applier.act(action, &mut self.actual, Instant::now());
            match while_leading(&inputs.leads, acting).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = explain(&error), "waypoints wait for the API");
                    break;
                }
                None => return,
            }
        }
        let new = self.statuses(wanted);
        statuses.send_if_modified(|old| {
            let differs = **old != new;
            if differs {
                *old = Arc::new(new);
            }
            differs
        });
    }

    fn desired(&self, wanted: &Wanted, around: &Surroundings) -> BTreeMap<Key, serde_json::Value> {
        let accepted = wanted.gateways.iter().filter(|it| it.wishes.fault.is_none());
        accepted
            .flat_map(|it| objects::objects(it, &self.settings, around))
            .collect()
    }

    fn statuses(&self, wanted: &Wanted) -> BTreeMap<ObjectRef, super::conditions::Status> {
        let gateways = wanted.gateways.iter().map(|it| {
            let troubles: Vec<(Part, &Trouble)> = self.applier.troubles(&it.gateway).collect();
            (it.gateway.clone(), status::gateway(it, &self.actual, &troubles))
        });
        let classes = wanted.classes.iter().map(|it| (it.clone(), status::class()));
        gateways.chain(classes).collect()
    }

    /// Where the controller is, and whom to trust; none while nobody knows.
    async fn surroundings(&mut self, inputs: &Inputs) -> Option<Surroundings> {
        let controller = match &self.settings.controller {
            Some(controller) => controller.clone(),
            None => self.own_address().await?,
        };
        Some(Surroundings {
            controller,
            roots: inputs.roots.borrow().clone(),
        })
    }

    /// The address of our Service, so that no DNS is needed. Where there is none for a moment (Helm removes it before us, somebody
    /// makes it anew), or the API does not say, it is the last one: another would start every waypoint anew.
    async fn own_address(&mut self) -> Option<String> {
        let Settings {
            namespace, service, ..
        } = &self.settings;
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        match services.get_opt(service).await {
            Ok(Some(found)) => {
                let address = found.spec.cluster_ip.and_then(|it| it.parse().ok());
                self.address = Some(match address {
                    Some(address) => std::net::SocketAddr::new(address, CONTROLLER_PORT).to_string(),
                    // It has no address of its own.
                    None => format!("{service}.{namespace}.svc:{CONTROLLER_PORT}"),
                });
            }
            Ok(None) if self.address.is_none() => {
                tracing::warn!("waypoints wait for the Service {namespace}/{service}: it is not there");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = explain(&error), "waypoints wait for the API"),
        }
        self.address.clone()
    }
}

/// The waypoints at which nothing is done, because they ask for what cannot be: what is there stays.
fn held(wanted: &Wanted) -> BTreeSet<(&String, &String)> {
    let faulty = wanted.gateways.iter().filter(|it| it.wishes.fault.is_some());
    faulty
        .map(|it| (&it.gateway.namespace, &it.gateway.name))
        .collect()
}

//! The service accounts that waypoints run as: besides agents, they alone may see the mesh.

use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use tokio_util::sync::CancellationToken;

use super::{compile::WaypointGateway, tokens::Caller};

/// Those of every Gateway that is a waypoint of ours, kept up to date by whoever compiles. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct WaypointAccounts(Arc<RwLock<Option<Accounts>>>);

/// By namespace and name, each with what says that it is one no more.
type Accounts = FxHashMap<(String, String), CancellationToken>;

/// Whether a caller is a waypoint.
#[derive(Debug)]
pub(super) enum Standing {
    /// It is, until this is cancelled.
    Waypoint(CancellationToken),
    /// It is not.
    Other,
    /// Nothing has been compiled yet.
    Unknown,
}

impl WaypointAccounts {
    /// Takes in what was compiled: all of the waypoints, where any changed. A waypoint's pods run as the service account that has its
    /// Gateway's name.
    pub(super) fn update(&self, waypoints: Option<&[WaypointGateway]>) {
        let mut accounts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = accounts.get_or_insert_default();
        let Some(waypoints) = waypoints else { return };
        let mut now = Accounts::default();
        for WaypointGateway { gateway, .. } in waypoints {
            let account = (gateway.namespace.clone(), gateway.name.clone());
            let kept = before.remove(&account).unwrap_or_default();
            now.insert(account, kept);
        }
        for gone in std::mem::replace(before, now).into_values() {
            gone.cancel();
        }
    }

    /// Whether a caller is one.
    pub(super) fn standing(&self, caller: &Caller) -> Standing {
        let accounts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(accounts) = accounts.as_ref() else {
            return Standing::Unknown;
        };
        let account = (caller.namespace.clone(), caller.service_account.clone());
        match accounts.get(&account) {
            Some(until) => Standing::Waypoint(until.clone()),
            None => Standing::Other,
        }
    }
}

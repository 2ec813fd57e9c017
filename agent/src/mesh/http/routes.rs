//! Routes in the form in which they are asked, and where a mesh finds them.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use thiserror::Error;

use super::{RequestAuthentication, ServiceRoutes};
use crate::mesh::{PolicyKey, ServiceKey};

/// What a mesh has for waypoints.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Where two are of one service, the first counts.
    pub routes: Vec<Arc<Routes>>,
    /// Where two have the same key, the first counts.
    pub authentications: Vec<Arc<RequestAuthentication>>,
}

/// The same, by name.
#[derive(Clone, Debug, Default)]
pub struct Index {
    routes: FxHashMap<ServiceKey, Arc<Routes>>,
    authentications: FxHashMap<PolicyKey, Arc<RequestAuthentication>>,
}

impl Index {
    pub(in crate::mesh) fn new(parts: Parts) -> Self {
        let mut index = Self::default();
        for routes in parts.routes {
            let service = routes.values().service.clone();
            index.routes.entry(service).or_insert(routes);
        }
        for it in parts.authentications {
            index.authentications.entry(it.key.clone()).or_insert(it);
        }
        index
    }

    pub(in crate::mesh) fn routes(&self, service: &ServiceKey) -> Option<&Arc<Routes>> {
        self.routes.get(service)
    }

    pub(in crate::mesh) fn authentication(&self, key: &PolicyKey) -> Option<&Arc<RequestAuthentication>> {
        self.authentications.get(key)
    }
}

/// The routes of one service, indexed. Made once, when they arrive.
#[derive(Debug)]
pub struct Routes {
    values: ServiceRoutes,
}

impl Routes {
    /// Indexes them.
    ///
    /// # Errors
    /// Where they contradict themselves, or an expression is none.
    pub fn new(values: ServiceRoutes) -> Result<Self, RoutesError> {
        Ok(Self { values })
    }

    /// As they came.
    pub fn values(&self) -> &ServiceRoutes {
        &self.values
    }
}

/// Those of the same values are the same.
impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

/// Why routes cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoutesError {
    /// An expression that is none, or too large.
    #[error("{rule}: `{expression}` is no expression that can be used: {why}")]
    Expression {
        /// Whose.
        rule: String,
        /// As it was written.
        expression: String,
        /// What is wrong with it.
        why: String,
    },
    /// An entry of a rule that is not there.
    #[error("an entry is of rule {0}, which is not there")]
    NoSuchRule(usize),
}

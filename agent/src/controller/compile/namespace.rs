//! What the objects of one namespace mean.

use std::{collections::BTreeMap, sync::Arc};

use super::{Settings, resources::InNamespace, shared::Shared, unit::Unit};
use crate::cluster::objects::Node;

/// What a namespace's objects are compiled with.
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) shared: &'a Shared,
    pub(super) nodes: &'a BTreeMap<String, Node>,
}

/// What the objects of one namespace mean.
pub(super) fn compile(_: &Context<'_>, _: &Arc<str>, _: &InNamespace) -> Unit {
    Unit::default()
}

//! Istio's VirtualService, DestinationRule and RequestAuthentication.

mod actions;
mod authentication;
mod delegates;
mod destination_rule;
mod destinations;
mod http;
mod matches;
mod passed;
mod retries;
mod traffic;
mod virtual_service;

pub use authentication::{Authentication, authentication, needs_token};
pub use destination_rule::{DestinationRule, OfService, SubsetOf, destination_rule, merged_traffic};

pub(super) use destinations::SAME_PORT;
pub use virtual_service::names_no_host;
pub(super) use virtual_service::{ExportTo, VirtualService, virtual_service};

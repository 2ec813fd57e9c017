//! PURE. What routes and policies of the Gateway API and of Istio mean, as [`crate::mesh::http`]'s values, and what is wrong with
//! single objects.
//!
//! No I/O, no clock, no panic: what cannot be read is a [`Diagnostic`], and what is in doubt is closed. Called by
//! `controller::compile` and by mesh files.

mod diagnostic;
pub mod documents;
mod read;

pub use diagnostic::{Diagnostic, ObjectRef, Severity};
pub use read::{Labels, Reader, Selector, port, there};

//! The Kubernetes API as weft sees it: objects with the fields that are read, and watches that go on.

pub mod client;
pub mod enrolment;
pub mod labels;
pub mod objects;

mod deadline;
mod root_cert;

pub use root_cert::{CONFIG_MAP, ROOT_CERT, root_cert};

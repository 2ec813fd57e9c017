//! The controller: watches Kubernetes, compiles what it says into a mesh, and serves that to every agent.

pub mod compile;

//! The pure parts of weft by themselves: the very files of `agent`, not copies.
//!
//! Three use them, because all of weft would bring its kernel programs, TLS and HTTP/2 along, minutes of building for
//! functions that need none of them: the simulation (`tests/simulation`), which is compiled with optimisations to ask a
//! million questions; the counts of instructions (`bench/benches/counts`), which must not change with code that has
//! nothing to do with them, as they would through how the compiler cuts a large crate; and `cargo xtask mutate`.

/// What `route` and `authorize` are.
#[path = "../../src/mesh/mod.rs"]
pub mod mesh;

/// What a CONNECT says. Its unit tests are not found from here: a file that is named by its path looks for its modules
/// beside itself.
#[cfg(not(test))]
#[path = "../../src/hbone/headers.rs"]
#[allow(dead_code, reason = "some of it is for the rest of weft")]
pub mod headers;

/// What enrolment has to do.
#[path = "../../src/node/enroll/plan.rs"]
pub mod plan;

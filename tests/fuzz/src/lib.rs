//! What the fuzzer calls. `targets` is also compiled into the ordinary tests, which run every seed.

pub mod targets;

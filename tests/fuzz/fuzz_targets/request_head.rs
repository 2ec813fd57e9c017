//! `cargo xtask fuzz request_head`: see `targets::request_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::request_head(data));

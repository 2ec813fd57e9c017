//! `cargo xtask fuzz connect_head`: see `targets::connect_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::connect_head(data));

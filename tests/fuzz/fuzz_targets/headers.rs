//! `cargo xtask fuzz headers`: see `targets::headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::headers(data));

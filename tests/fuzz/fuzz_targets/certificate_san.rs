//! `cargo xtask fuzz certificate_san`: see `targets::certificate_san`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::certificate_san(data));

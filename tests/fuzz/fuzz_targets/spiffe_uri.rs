//! `cargo xtask fuzz spiffe_uri`: see `targets::spiffe_uri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::spiffe_uri(data));

//! `cargo xtask fuzz mesh_file`: see `targets::mesh_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::mesh_file(data));

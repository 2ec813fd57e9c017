//! `cargo xtask fuzz dns_message`: see `targets::dns_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::targets::dns_message(data));

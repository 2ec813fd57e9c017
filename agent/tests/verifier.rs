//! Every program loads under the kernel's verifier, each in a test of its own, in both builds; prints how many
//! instructions the verifier walked through. Needs root.

#![cfg(debug_assertions)] // only these builds carry both objects

use std::io::Write as _;

use weft::kernel::{OBJECT, OBJECT_WITH_LOG, verify::verify};

/// Far below the kernel's limit of a million: a program that comes near has become another program.
const MOST_INSTRUCTIONS: u32 = 20_000;

fn check(name: &str) {
    for (build, object) in [("release", OBJECT), ("with log", OBJECT_WITH_LOG)] {
        let programs = verify(object).unwrap_or_else(|error| panic!("{build}: load the object: {error:?}"));
        assert_eq!(
            programs.len(),
            10,
            "{build}: a program without a test: {programs:?}"
        );
        let program = programs.into_iter().find(|program| program.name == name);
        let program = program.unwrap_or_else(|| panic!("{build}: no program {name}"));
        let info = program
            .result
            .unwrap_or_else(|error| panic!("{build}: {name}: {error}"));
        let instructions = info.verified_instruction_count();
        let shown = instructions.map_or("not counted by this kernel".to_owned(), |count| count.to_string());
        // Not println!, which a test that passes keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "{build:>8}  {name:<18}  instructions verified: {shown}"
        );
        assert!(
            instructions.is_none_or(|count| count < MOST_INSTRUCTIONS),
            "{build}: {name}: {shown}"
        );
    }
}

macro_rules! programs {
    ($($name:ident),*) => { $(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )* };
}

programs!(
    weft_connect4,
    weft_connect6,
    weft_sockops,
    weft_sk_lookup,
    weft_getpeername4,
    weft_getpeername6,
    weft_sendmsg4,
    weft_sendmsg6,
    weft_recvmsg4,
    weft_recvmsg6
);

//! Every program loads under the kernel's verifier, in both builds; prints how many instructions it walked through.
//! Needs root.

use weft::kernel::{OBJECT, OBJECT_WITH_LOG, load::verify};

#[test]
fn every_program_passes_the_verifier() {
    for (build, object) in [("release", OBJECT), ("with log", OBJECT_WITH_LOG)] {
        let programs = verify(object).unwrap_or_else(|error| panic!("{build}: load the object: {error:?}"));
        assert_eq!(programs.len(), 6, "{build}: {programs:?}");
        for program in programs {
            let info = program
                .result
                .unwrap_or_else(|error| panic!("{build}: {}: {error}", program.name));
            let instructions = info
                .verified_instruction_count()
                .expect("this kernel counts instructions");
            println!(
                "{build:>8}  {:<20} {instructions:>6} instructions verified",
                program.name
            );
            assert!(
                instructions > 0 && instructions < 10_000,
                "{build}: {}: {instructions}",
                program.name
            );
        }
    }
}

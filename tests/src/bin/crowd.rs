//! `weft-crowd`: one end of thousands of connections, in a pod. Started by `weft_tests::crowd`, never by people.

use std::env;

fn main() -> anyhow::Result<()> {
    weft_tests::crowd::run(&env::args().skip(1).collect::<Vec<_>>())
}

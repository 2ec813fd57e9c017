//! `weft` itself; the feature `next-layout`, without which it is not built, gives its maps another layout. Tests upgrade
//! from one to the other and back.

#[path = "../src/main.rs"]
mod weft;

fn main() -> std::process::ExitCode {
    weft::main()
}

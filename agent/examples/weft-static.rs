//! `weft` itself, for the image that CI starts: `cargo xtask image --debug` links it without libraries, which cargo can do for
//! one program beside the libraries that are built already, but not for `weft` without replacing the one that tests run.

#[path = "../src/main.rs"]
mod weft;

fn main() -> std::process::ExitCode {
    weft::main()
}

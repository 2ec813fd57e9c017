//! `weft-pause <uid>`: the process that a test pod's sockets belong to. Standard input is the socket on which
//! `weft_tests::pause` asks for them; it ends when that closes. Started by the test world, never by people.

use std::{env, io, os::fd::AsFd};

use anyhow::{Context, Result};
use weft_tests::{pause, process::become_user};

fn main() -> Result<()> {
    let uid = env::args()
        .nth(1)
        .context("usage: weft-pause <uid>, started by the test world")?;
    let uid = uid.parse().with_context(|| format!("{uid:?} is not a user id"))?;
    become_user(uid).with_context(|| format!("become user {uid}"))?;
    pause::serve(io::stdin().as_fd()).context("lend sockets")
}

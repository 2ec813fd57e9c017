//! What an agent may do, and what others may read of what it writes: as little as will do.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, ensure};
use weft_tests::{
    PodSpec, Server,
    app::{echo, round_trip},
    with_world,
};

/// The capabilities that README and `weft agent --help` name: NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF.
const NEEDED: u64 = 1 << 12 | 1 << 19 | 1 << 21 | 1 << 39;

#[test]
fn an_agent_keeps_no_capability_that_it_does_not_need() {
    with_world(|world| {
        // Of another user, whose namespaces are the hard ones to open.
        let client = world.pod("a", PodSpec::new("client").uid(1234))?;
        let server = world.pod("b", PodSpec::new("server").uid(1234))?;
        let agents = world.start_agents()?;
        let _server = Server::start(server.listen(8080)?, echo)?;
        let mut stream = client.connect(server.addr(8080))?;
        round_trip(&mut stream, b"hello")?;
        for agent in &agents {
            let pid = agent.pid().context("the agent runs")?;
            let threads = fs::read_dir(format!("/proc/{pid}/task"))?.collect::<io::Result<Vec<_>>>()?;
            ensure!(threads.len() > 3, "{} threads", threads.len());
            for thread in threads {
                let status = fs::read_to_string(thread.path().join("status"))?;
                let field = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim().to_owned())
                        .with_context(|| format!("no {name}"))
                };
                let capabilities = |name| Ok::<_, anyhow::Error>(u64::from_str_radix(&field(name)?, 16)?);
                for kept in ["CapEff:", "CapPrm:", "CapBnd:"] {
                    ensure!(capabilities(kept)? == NEEDED, "{kept} {}", field(kept)?);
                }
                for none in ["CapInh:", "CapAmb:"] {
                    ensure!(capabilities(none)? == 0, "{none} {}", field(none)?);
                }
                ensure!(field("NoNewPrivs:")? == "1");
                ensure!(field("Umask:")? == "0077");
            }
        }
        Ok(())
    });
}

#[test]
fn nobody_else_may_read_what_an_agent_writes() {
    with_world(|world| {
        let _pod = world.pod("a", PodSpec::new("pod"))?;
        let _agent = world.start_agent("a")?;
        let mut unseen = vec![world.node("a").pin_dir().to_owned(), world.ca()?.to_owned()];
        let mut seen = 0;
        while let Some(path) = unseen.pop() {
            let meta = fs::symlink_metadata(&path)?;
            ensure!(meta.mode() & 0o077 == 0, "{}: {:o}", path.display(), meta.mode());
            seen += 1;
            if meta.is_dir() {
                let entries = fs::read_dir(&path)?.map(|entry| entry.map(|entry| entry.path()));
                unseen.extend(entries.collect::<io::Result<Vec<_>>>()?);
            }
        }
        // Maps, programs and links, root.pem and root-key.pem.
        ensure!(seen > 10, "{seen} files");
        Ok(())
    });
}

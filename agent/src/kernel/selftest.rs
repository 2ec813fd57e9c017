//! Whether the programs see this very process: asked once, after they were attached.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Socket, Type};
use thiserror::Error;

use super::maps::SocketStates;

/// Why the programs cannot be relied on.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// Sockets on loopback.
    #[error("connect to a listener of our own on 127.0.0.1")]
    Socket(#[from] io::Error),
    /// The socket storage.
    #[error("write the socket storage of the kernel's programs")]
    Storage(#[from] aya::maps::MapError),
    /// The programs run for other processes only.
    #[error(
        "the attached programs do not see this process, so apps would not see who dialled them: --cgroup-root must \
         contain the agent's own cgroup (`0::` in /proc/self/cgroup)"
    )]
    NotSeen,
}

/// Dials a listener of our own on behalf of a made-up client, and looks whether the accepted socket was told.
///
/// # Errors
/// When it was not, which means that the agent runs outside of the cgroup that the programs are attached to.
pub fn run(states: &SocketStates) -> Result<(), SelfTestError> {
    let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 7)); // RFC 5737: never a real one
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let dialler = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    states.mark_on_behalf(&dialler, client)?;
    dialler.connect(&listener.local_addr()?.into())?;
    let (accepted, _) = listener.accept()?;
    if states.on_behalf_of(&accepted) == Some(client) {
        Ok(())
    } else {
        Err(SelfTestError::NotSeen)
    }
}

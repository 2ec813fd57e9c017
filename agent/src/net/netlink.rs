//! Questions to the kernel over netlink, one at a time: the routes and links of a namespace, and the end of a connection.
//! Blocking, and quick: the kernel answers at once. A socket belongs to the namespace it was made in ([`Netns::enter`]).
//!
//! [`Netns::enter`]: super::netns::Netns::enter

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{
    Socket, SocketAddr as NetlinkAddr,
    protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel answers within the call; a socket whose answer is lost must not stop the agent.
const ANSWER: Duration = Duration::from_secs(2);
/// Room for any single answer.
const LARGEST: usize = 64 * 1024;
/// linux/sock_diag.h.
const SOCK_DESTROY: u16 = 21;
/// linux/tcp_states.h. A socket in one of these may still send or be accepted; the others have ended, or have no peer.
const OPEN_STATES: [u8; 6] = [ESTABLISHED, 2, 3, 4, 8, 12];
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// The index of the loopback device of every namespace.
const LOOPBACK: u32 = 1;
/// Groups of changes (linux/rtnetlink.h): links, and routes and rules of both families.
const CHANGES: [u32; 5] = [1, 7, 8, 11, 19];

/// A socket for questions about links, routes and namespaces.
pub struct Routes(Socket);

impl Routes {
    /// Opens it in the namespace that the calling thread is in.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> io::Result<Self> {
        connect(NETLINK_ROUTE).map(Self)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The kernel's answer, such as ENETUNREACH for a route that is not there.
    pub fn ask(&self, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let answer = exchange(&self.0, encode(question, NLM_F_REQUEST, None))?;
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an acknowledgement is no answer"))
    }
}

/// Tells when links, routes or rules of a namespace have changed.
pub struct Changes(Socket);

impl Changes {
    /// Listens in the namespace that the calling thread is in.
    ///
    /// # Errors
    /// Those of socket(2), and of joining the groups.
    pub fn open() -> io::Result<Self> {
        let socket = connect(NETLINK_ROUTE)?;
        for group in CHANGES {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Whether something has changed since this was last asked. Too many changes to be told count as one.
    pub fn any(&self) -> bool {
        let mut buffer = Vec::with_capacity(LARGEST);
        let mut any = false;
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return any,
                // ENOBUFS.
                Err(_) if !any => any = true,
                Err(_) => return true,
            }
        }
    }
}

/// A TCP socket of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified for one that listens.
    pub remote: SocketAddr,
    /// Whether it listens.
    pub listens: bool,
    /// What the kernel knows it by.
    pub cookie: u64,
}

/// The TCP sockets of the namespace that the calling thread is in: those that listen, and those whose connection begins or
/// has not ended.
///
/// # Errors
/// Those of socket(2), and the kernel's answer.
pub fn tcp_sockets() -> io::Result<Vec<TcpSocket>> {
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let socket = connect(NETLINK_SOCK_DIAG)?;
        let question = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: if family == AF_INET {
                SocketId::new_v4()
            } else {
                SocketId::new_v6()
            },
        });
        dump(
            &socket,
            encode(question, NLM_F_REQUEST | NLM_F_DUMP, None),
            |answer| {
                if let SockDiagMessage::InetResponse(answer) = answer {
                    sockets.extend(tcp_socket(&answer.header));
                }
            },
        )?;
    }
    Ok(sockets)
}

fn tcp_socket(answer: &InetResponseHeader) -> Option<TcpSocket> {
    let listens = answer.state == LISTEN;
    let id = &answer.socket_id;
    let end = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
    (listens || OPEN_STATES.contains(&answer.state)).then(|| TcpSocket {
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
        listens,
        cookie: u64::from_ne_bytes(id.cookie),
    })
}

/// The addresses of the namespace that the calling thread is in which others may know it by: neither loopback nor of one
/// link only. Those that are still being probed for duplicates are among them.
///
/// # Errors
/// Those of socket(2), and the kernel's answer.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let socket = connect(NETLINK_ROUTE)?;
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut addresses = Vec::new();
    dump(
        &socket,
        encode(question, NLM_F_REQUEST | NLM_F_DUMP, None),
        |answer| {
            if let RouteNetlinkMessage::NewAddress(answer) = answer {
                addresses.extend(own_address(&answer).filter(is_for_others));
            }
        },
    )?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The local end, where the device has two.
fn own_address(answer: &AddressMessage) -> Option<IpAddr> {
    let local = answer.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        answer.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn is_for_others(address: &IpAddr) -> bool {
    let of_one_link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !of_one_link
}

/// Ends a TCP connection of the namespace that the calling thread is in, given as its local and its remote address, and
/// the cookie of its socket: its owner gets ECONNABORTED, the peer a reset (`SOCK_DESTROY`, Linux 4.9). One that is not
/// there is fine. Never without the cookie: where the kernel finds no such connection it looks for a listener, and would
/// end that.
///
/// # Errors
/// The kernel's answer: EOPNOTSUPP where it was built without CONFIG_INET_DIAG_DESTROY.
pub fn destroy(ends: (SocketAddr, SocketAddr), socket_cookie: u64) -> io::Result<()> {
    // A socket that its app has bound to a device is found by that device only, and all others by any.
    let devices = [LOOPBACK].into_iter().chain(devices());
    for device in devices {
        if destroy_by(ends, socket_cookie, device)? {
            break;
        }
    }
    Ok(())
}

/// Whether there was one.
fn destroy_by(
    (local, remote): (SocketAddr, SocketAddr),
    socket_cookie: u64,
    device: u32,
) -> io::Result<bool> {
    let socket = connect(NETLINK_SOCK_DIAG)?;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: device,
            cookie: socket_cookie.to_ne_bytes(),
        },
    });
    let bytes = encode(request, NLM_F_REQUEST | NLM_F_ACK, Some(SOCK_DESTROY));
    match exchange::<SockDiagMessage>(&socket, bytes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        answered => answered.map(|_| true),
    }
}

/// The indexes of the namespace's devices; none where the kernel does not say.
fn devices() -> Vec<u32> {
    let mut devices = Vec::new();
    // SAFETY: the list ends with an entry without a name, and is freed once, after its last use.
    unsafe {
        let list = libc::if_nameindex();
        let mut entry = list;
        while !entry.is_null() && !(*entry).if_name.is_null() {
            devices.push((*entry).if_index);
            entry = entry.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
    }
    devices
}

fn connect(protocol: isize) -> io::Result<Socket> {
    let socket = Socket::new(protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// `kind` where it is not the one that the library gives the message.
fn encode<T: NetlinkSerializable>(message: T, flags: u16, kind: Option<u16>) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    if let Some(kind) = kind {
        message.header.message_type = kind;
        message.header.emit(&mut bytes);
    }
    bytes
}

/// Sends, and takes all answers.
fn dump<T: NetlinkDeserializable>(
    socket: &Socket,
    question: Vec<u8>,
    mut each: impl FnMut(T),
) -> io::Result<()> {
    socket.send(&question, 0)?;
    let mut buffer = Vec::with_capacity(LARGEST);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
            // Each begins at a multiple of four.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => each(answer),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Sends, and takes the first answer; nothing where that is an acknowledgement.
fn exchange<T: NetlinkDeserializable>(socket: &Socket, bytes: Vec<u8>) -> io::Result<Option<T>> {
    socket.send(&bytes, 0)?;
    let mut buffer = Vec::with_capacity(LARGEST);
    socket.recv(&mut buffer, 0)?;
    let message = NetlinkMessage::<T>::deserialize(&buffer).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}

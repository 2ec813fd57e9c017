//! Reading and writing the kernel's contexts. Context fields are read volatile: the verifier wants each access as it
//! is declared, and the compiler would otherwise merge or widen them.

use core::{
    ffi::c_void,
    ptr::{addr_of, addr_of_mut, null_mut, read_volatile, write_volatile},
};

use agent_common::{Address, Handshake, SocketState, Tuple};
use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
        BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT, bpf_sk_lookup, bpf_sock,
        bpf_sock_addr, bpf_sock_ops,
    },
    helpers::{
        bpf_bind, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt, bpf_sk_storage_get,
        bpf_sock_ops_cb_flags_set,
    },
};

use crate::maps::{OWN, SOCKETS};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;
/// linux/tcp.h.
const TCP_CONGESTION: u32 = 13;
/// asm-generic/socket.h.
const SOL_SOCKET: u32 = 1;
/// As above.
const SO_BINDTODEVICE: u32 = 25;

macro_rules! read {
    ($ptr:expr, $($field:ident).+) => {
        // SAFETY: the kernel gives the program a valid context.
        unsafe { read_volatile(addr_of!((*$ptr).$($field).+)) }
    };
}
macro_rules! write {
    ($ptr:expr, $field:ident, $value:expr) => {
        // SAFETY: as above; the verifier allows writes to this field only where the kernel does.
        unsafe { write_volatile(addr_of_mut!((*$ptr).$field), $value) }
    };
}
/// The four words at `first`, one read each.
#[inline(always)]
fn words(first: *const u32) -> Address {
    // SAFETY: callers pass the address of a four-word field of a context.
    unsafe {
        Address {
            w0: read_volatile(first),
            w1: read_volatile(first.add(1)),
            w2: read_volatile(first.add(2)),
            w3: read_volatile(first.add(3)),
        }
    }
}

/// The state of a socket, which may not have any yet.
#[inline(always)]
pub fn state(sk: *mut c_void) -> Option<&'static mut SocketState> {
    storage(sk, 0)
}

/// The state of a socket, made when it has none.
#[inline(always)]
pub fn state_or_new(sk: *mut c_void) -> Option<&'static mut SocketState> {
    storage(sk, BPF_SK_STORAGE_GET_F_CREATE.into())
}

#[inline(always)]
fn storage(sk: *mut c_void, flags: u64) -> Option<&'static mut SocketState> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is the context's socket; the kernel answers null or a value that lives as long as the socket.
    unsafe {
        let value = bpf_sk_storage_get(addr_of!(SOCKETS) as *mut c_void, sk, null_mut(), flags);
        value.cast::<SocketState>().as_mut()
    }
}

/// Whether an agent has marked the socket as its own, of this version or of another.
#[inline(always)]
pub fn is_own(sk: *mut c_void) -> bool {
    if sk.is_null() {
        return false;
    }
    // SAFETY: as above.
    let mark = unsafe { bpf_sk_storage_get(addr_of!(OWN) as *mut c_void, sk, null_mut(), 0) };
    !mark.is_null()
}

/// Sets a socket's state word by word (no `memmove` in eBPF).
#[inline(always)]
pub fn set_state(to: &mut SocketState, addr: &Address, port: u32, flags: u32) {
    let to: *mut SocketState = to;
    let from: *const Address = addr;
    // SAFETY: both point to whole values.
    unsafe {
        write_volatile(addr_of_mut!((*to).addr.w0), read_volatile(addr_of!((*from).w0)));
        write_volatile(addr_of_mut!((*to).addr.w1), read_volatile(addr_of!((*from).w1)));
        write_volatile(addr_of_mut!((*to).addr.w2), read_volatile(addr_of!((*from).w2)));
        write_volatile(addr_of_mut!((*to).addr.w3), read_volatile(addr_of!((*from).w3)));
        write_volatile(addr_of_mut!((*to).port), port);
        write_volatile(addr_of_mut!((*to).flags), flags);
        write_volatile(addr_of_mut!((*to).draw), 0);
    }
}

/// A copy of a socket's state for the handshake map.
#[inline(always)]
pub fn handshake(state: &SocketState, flags: u32) -> Handshake {
    let addr = words(addr_of!(state.addr).cast());
    Handshake {
        addr,
        port: read!(addr_of!(*state), port),
        flags,
        draw: read!(addr_of!(*state), draw),
        ..Handshake::default()
    }
}

/// A copy of the address in a map's value.
#[inline(always)]
pub fn address(from: &Address) -> Address {
    words(addr_of!(*from).cast())
}

/// `struct bpf_sock_addr`: the context of connect and getpeername.
#[derive(Clone, Copy)]
pub struct SockAddr(pub *mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub fn ctx(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    pub fn sk(self) -> *mut bpf_sock {
        // SAFETY: the union has one member.
        unsafe { read_volatile(addr_of!((*self.0).__bindgen_anon_1.sk)) }
    }

    #[inline(always)]
    pub fn protocol(self) -> u32 {
        read!(self.0, protocol)
    }

    /// The device that the socket is bound to; 0 for none.
    #[inline(always)]
    pub fn device(self) -> u32 {
        let sk = self.sk();
        if sk.is_null() { 0 } else { read!(sk, bound_dev_if) }
    }

    /// The address that an AF_INET socket is bound to; unspecified for none. Two functions, because one that chose
    /// would make the compiler compute a pointer, which the verifier forbids.
    #[inline(always)]
    pub fn source4(self) -> Address {
        let sk = self.sk();
        if sk.is_null() {
            Address::default()
        } else {
            Address::v4(read!(sk, src_ip4))
        }
    }

    /// As `source4`, for an AF_INET6 socket; IPv4-mapped when it is bound to IPv4.
    #[inline(always)]
    pub fn source6(self) -> Address {
        let sk = self.sk();
        if sk.is_null() {
            return Address::default();
        }
        // SAFETY: the field has four words.
        words(unsafe { addr_of!((*sk).src_ip6) }.cast())
    }

    /// The port that the socket has already, in host order; 0 for none.
    #[inline(always)]
    pub fn source_port(self) -> u16 {
        let sk = self.sk();
        if sk.is_null() {
            0
        } else {
            read!(sk, src_port) as u16
        }
    }

    /// Port in host order; the context has it in network order in its low half.
    #[inline(always)]
    pub fn port(self) -> u16 {
        u16::from_be(read!(self.0, user_port) as u16)
    }

    #[inline(always)]
    pub fn address4(self) -> Address {
        Address::v4(read!(self.0, user_ip4))
    }

    #[inline(always)]
    pub fn address6(self) -> Address {
        // SAFETY: the field has four words.
        words(unsafe { addr_of!((*self.0).user_ip6) }.cast())
    }

    #[inline(always)]
    pub fn set4(self, addr: &Address, port: u16) {
        write!(self.0, user_ip4, addr.w3);
        write!(self.0, user_port, u32::from(port.to_be()));
    }

    #[inline(always)]
    pub fn set6(self, addr: &Address, port: u16) {
        // SAFETY: the field has four words.
        unsafe {
            let first = addr_of_mut!((*self.0).user_ip6).cast::<u32>();
            write_volatile(first, addr.w0);
            write_volatile(first.add(1), addr.w1);
            write_volatile(first.add(2), addr.w2);
            write_volatile(first.add(3), addr.w3);
        }
        write!(self.0, user_port, u32::from(port.to_be()));
    }

    /// Gives the socket `addr` as its source, with the port left to connect. Fails for a socket that has a port.
    #[inline(always)]
    pub fn bind4(self, addr: &Address) -> bool {
        // struct sockaddr_in { family, port, addr, zero[8] }
        let mut name = [AF_INET, addr.w3, 0, 0];
        // SAFETY: `name` is 16 bytes long.
        unsafe { bpf_bind(self.0, name.as_mut_ptr().cast(), 16) == 0 }
    }

    /// As `bind4`, for an AF_INET6 socket.
    #[inline(always)]
    pub fn bind6(self, addr: &Address) -> bool {
        // struct sockaddr_in6 { family, port, flowinfo, addr[16], scope_id }
        let mut name = [AF_INET6, 0, addr.w0, addr.w1, addr.w2, addr.w3, 0];
        // SAFETY: `name` is 28 bytes long.
        unsafe { bpf_bind(self.0, name.as_mut_ptr().cast(), 28) == 0 }
    }

    /// Lets connect choose the source again.
    #[inline(always)]
    pub fn unbind4(self) {
        self.bind4(&any());
    }

    /// As `unbind4`, for an AF_INET6 socket.
    #[inline(always)]
    pub fn unbind6(self) {
        self.bind6(&any());
    }
}

/// `::`, without the compiler's knowing: it would call `memset`, which an eBPF program does not have.
#[inline(always)]
fn any() -> Address {
    address(&Address::default())
}

/// `struct bpf_sock_ops`.
#[derive(Clone, Copy)]
pub struct SockOps(pub *mut bpf_sock_ops);

impl SockOps {
    #[inline(always)]
    pub fn op(self) -> u32 {
        read!(self.0, op)
    }

    #[inline(always)]
    pub fn sk(self) -> *mut c_void {
        // SAFETY: the union has one member.
        unsafe { read_volatile(addr_of!((*self.0).__bindgen_anon_2.sk)) }.cast()
    }

    /// Has the program called when the socket's state changes.
    #[inline(always)]
    pub fn watch_state(self) {
        self.watch(BPF_SOCK_OPS_STATE_CB_FLAG);
    }

    /// The same, and when it has to send something again.
    #[inline(always)]
    pub fn watch_state_and_retransmissions(self) {
        self.watch(BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG);
    }

    #[inline(always)]
    fn watch(self, what: u32) {
        let flags = read!(self.0, bpf_sock_ops_cb_flags) | what;
        // SAFETY: the helper takes the program's own context.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }

    /// Binds the socket to loopback: what it sends from here on has no way out of the pod, whoever it is connected to.
    #[inline(always)]
    pub fn confine(self) {
        let mut name = *b"lo\0\0";
        // SAFETY: the helper takes the program's own context, and reads as many bytes as there are.
        unsafe {
            bpf_setsockopt(
                self.0.cast(),
                SOL_SOCKET as i32,
                SO_BINDTODEVICE as i32,
                name.as_mut_ptr().cast(),
                name.len() as i32,
            )
        };
    }

    /// What the kernel knows the socket by: unique until reboot.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the helper takes the program's own context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// What the socket's network namespace is known by.
    #[inline(always)]
    pub fn netns_cookie(self) -> u64 {
        // SAFETY: the helper takes the program's own context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// Bytes of a dialling socket that closes: those sent and acknowledged, and those received. The kernel counts a SYN and a
    /// FIN as a byte each; after an end that was not orderly the count may be one off.
    #[inline(always)]
    pub fn bytes(self) -> (u64, u64) {
        // SAFETY: for this op the union holds the arguments: the state before and the one after.
        let before = unsafe { read_volatile(addr_of!((*self.0).__bindgen_anon_1.args).cast::<u32>()) };
        let (sent, received) = (read!(self.0, bytes_acked), read!(self.0, bytes_received));
        if before == BPF_TCP_SYN_SENT {
            return (0, 0);
        }
        let ended = before == BPF_TCP_FIN_WAIT2 || before == BPF_TCP_CLOSING || before == BPF_TCP_LAST_ACK;
        let control = 1 + u64::from(ended);
        (
            sent.saturating_sub(control),
            received.saturating_sub(u64::from(ended)),
        )
    }

    /// Gives an app's end of a connection to the agent a congestion control that does not pace, whatever the host's
    /// choice is: inside a pod nothing is ever congested, and pacing costs a timer for each packet. What fails is speed.
    #[inline(always)]
    pub fn unpace(self) {
        let mut name = *b"reno\0";
        // SAFETY: the helper takes the program's own context, and reads as many bytes as there are.
        unsafe {
            bpf_setsockopt(
                self.0.cast(),
                IPPROTO_TCP as i32,
                TCP_CONGESTION as i32,
                name.as_mut_ptr().cast(),
                name.len() as i32,
            )
        };
    }

    /// Whether the state that the socket changes to is the last one.
    #[inline(always)]
    pub fn is_closed(self) -> bool {
        // SAFETY: for this op the union holds the arguments: the state before and the one after.
        let after = unsafe { read_volatile(addr_of!((*self.0).__bindgen_anon_1.args).cast::<u32>().add(1)) };
        after == BPF_TCP_CLOSE
    }

    /// The connection as this socket sees it.
    #[inline(always)]
    pub fn tuple(self) -> Tuple {
        let v4 = (read!(self.0, local_ip4), read!(self.0, remote_ip4));
        let (local, remote) = if read!(self.0, family) == AF_INET6 {
            // SAFETY: the fields have four words each.
            unsafe {
                (
                    words(addr_of!((*self.0).local_ip6).cast()),
                    words(addr_of!((*self.0).remote_ip6).cast()),
                )
            }
        } else {
            (Address::v4(v4.0), Address::v4(v4.1))
        };
        Tuple {
            local,
            remote,
            local_port: read!(self.0, local_port) as u16,
            // Network order in the high half of the word.
            remote_port: read!(self.0, remote_port).to_be() as u16,
        }
    }

    /// The connection as its other end sees it.
    #[inline(always)]
    pub fn peer_tuple(self) -> Tuple {
        let tuple = self.tuple();
        Tuple {
            local: tuple.remote,
            remote: tuple.local,
            local_port: tuple.remote_port,
            remote_port: tuple.local_port,
        }
    }
}

/// `struct bpf_sk_lookup`: a SYN that looks for a listener.
#[derive(Clone, Copy)]
pub struct Lookup(pub *mut bpf_sk_lookup);

impl Lookup {
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        read!(self.0, protocol)
    }

    /// The SYN's connection as the dialling socket sees it.
    #[inline(always)]
    pub fn tuple(self) -> Tuple {
        let v4 = (read!(self.0, remote_ip4), read!(self.0, local_ip4));
        let (local, remote) = if read!(self.0, family) == AF_INET6 {
            // SAFETY: the fields have four words each.
            unsafe {
                (
                    words(addr_of!((*self.0).remote_ip6).cast()),
                    words(addr_of!((*self.0).local_ip6).cast()),
                )
            }
        } else {
            (Address::v4(v4.0), Address::v4(v4.1))
        };
        Tuple {
            local,
            remote,
            local_port: u16::from_be(read!(self.0, remote_port)),
            remote_port: read!(self.0, local_port) as u16,
        }
    }
}

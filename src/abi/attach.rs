//! What the preload library and the master say to each other over the attach socket (SOCK_SEQPACKET, one message
//! each way per request; numbers in the machine's byte order, since both ends run on it).

/// The environment variable: abstract socket name, `:`, token in hexadecimal.
pub const VARIABLE: &str = "ROUNDSMAN_ATTACH";
/// Version of these messages.
pub const VERSION: u16 = 1;
/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = 16;
/// Room for an IPv4 or IPv6 socket address as the kernel lays it out (`sockaddr_in6`), or for an [`SocketOption`].
pub const ADDRESS_BYTES: usize = 28;

/// The abstract name that every queue's receiving end is bound to: this, the listener in decimal, `:`, anything. By it
/// a process knows a stand-in that it got by exec or over a Unix socket.
pub const QUEUE_NAME: &str = "roundsman-queue:";

/// What the library asks for.
pub mod op {
    /// bind(2) on the socket that comes with the message.
    pub const BIND: u16 = 1;
    /// listen(2) on a listener that an earlier bind named.
    pub const LISTEN: u16 = 2;
    /// The server closed a stand-in.
    pub const UNLISTEN: u16 = 3;
    /// The process found a stand-in that another one bound (exec, SCM_RIGHTS): it wants the counters page.
    pub const ADOPT: u16 = 4;
    /// From now on this connection says who lives: the answer is the stop signal's number, and nothing follows it.
    pub const LEASE: u16 = 5;
    /// setsockopt(2) on a listener: the address is a [`super::SocketOption`].
    pub const SET_OPTION: u16 = 6;
    /// getsockopt(2) on a listener.
    pub const GET_OPTION: u16 = 7;
    /// connect(2) on a socket that was bound and does not listen: the server wants its own socket back.
    pub const GIVE_BACK: u16 = 8;
    /// listen(2) on a socket that nobody here bound: whether it is the one that all workers share (policy none).
    pub const RECOGNIZE: u16 = 9;
    /// After [`super::YOURSELF`]: the server's socket, bound now, comes with the message; without one, the number is the
    /// errno for which it could not be bound.
    pub const BOUND: u16 = 10;
    /// shutdown(2) on a stand-in: what UNLISTEN is for one process, this is for all that have it.
    pub const SHUT: u16 = 11;
}

/// A request.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`VERSION`].
    pub version: u16,
    /// One of [`op`].
    pub op: u16,
    /// The process that asks.
    pub pid: u32,
    /// Proof that it is one of ours.
    pub token: [u8; TOKEN_BYTES],
    /// For BIND: length of the address; for BOUND: 0 or the errno; for the others: the listener.
    pub number: u32,
    /// For BIND and BOUND: the address. For options: a [`SocketOption`].
    pub address: [u8; ADDRESS_BYTES],
}

/// The longest option value that travels.
pub const OPTION_BYTES: usize = 16;

/// A socket option, as large as an address.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SocketOption {
    /// As in setsockopt(2).
    pub level: i32,
    /// As in setsockopt(2): the option.
    pub name: i32,
    /// Bytes of `value` in use.
    pub len: u32,
    /// Its first `len` bytes are the value.
    pub value: [u8; OPTION_BYTES],
}

const _: () = assert!(core::mem::size_of::<SocketOption>() == ADDRESS_BYTES);

/// The answer is an errno; 0 is success.
pub const STATUS: u16 = 0;
/// The queue's receiving end, the counters page, and the queue's sending end come with the answer; the stand-in takes
/// the socket's place. The server keeps the sending end: so its queue never ends, and it does not spin when the
/// master is gone.
pub const SHARED: u16 = 1;
/// Not ours: bind it with the kernel.
pub const PASS: u16 = 2;
/// Policy none: the listening socket itself and the counters page come with the answer.
pub const LISTENER: u16 = 3;
/// The socket of an earlier bind comes with the answer.
pub const BACK: u16 = 4;
/// The address is a [`SocketOption`] with its value.
pub const VALUE: u16 = 5;
/// Nobody has the address yet: the server binds its socket by itself, with the rights that it has, and says how that
/// went ([`op::BOUND`]).
pub const YOURSELF: u16 = 6;
/// Another process binds that address at this moment, or it is being closed: to be asked again soon.
pub const LATER: u16 = 7;

/// The most descriptors that come with an answer.
pub const MAX_FDS: usize = 3;

/// An answer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u16,
    /// [`STATUS`], [`SHARED`], [`PASS`], [`LISTENER`], [`BACK`], [`VALUE`], [`YOURSELF`] or [`LATER`].
    pub kind: u16,
    /// The errno, the listener, or the signal.
    pub number: u32,
    /// For VALUE: a [`SocketOption`]. For the answer to ADOPT: the listener's address.
    pub address: [u8; ADDRESS_BYTES],
}

/// Sizes of the messages in bytes.
pub const REQUEST_BYTES: usize = core::mem::size_of::<Request>();
/// See [`REQUEST_BYTES`].
pub const REPLY_BYTES: usize = core::mem::size_of::<Reply>();

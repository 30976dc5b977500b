//! Messages between the preload library and the master over the attach socket: SOCK_SEQPACKET, one message each way per
//! request, numbers in the machine's byte order.

/// The environment variable by which a server's library finds the master: abstract socket name, `:`, token in hexadecimal, and
/// [`HAS_TRANSLATIONS`] where the worker has a record of translated addresses.
pub const VARIABLE: &str = "ROUNDSMAN_ATTACH";
/// Tells a program without a stand-in that it may be given connections whose addresses are translated.
pub const HAS_TRANSLATIONS: &str = ":t";
/// Version of these messages.
pub const VERSION: u16 = 1;
/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = 16;
/// Room for an IPv4 or IPv6 socket address as the kernel lays it out (`sockaddr_in6`), or for an [`SocketOption`].
pub const ADDRESS_BYTES: usize = 28;

/// Prefix of the abstract name of every queue's receiving end; the listener in decimal, `:`, and anything unique follow. A
/// process recognizes a stand-in by it that it got by exec or over a Unix socket.
pub const QUEUE_NAME: &str = "roundsman-queue:";

/// Request kinds.
pub mod op {
    /// bind(2) on the socket that comes with the message.
    pub const BIND: u16 = 1;
    /// listen(2) on a listener that an earlier bind named.
    pub const LISTEN: u16 = 2;
    /// The server closed a stand-in.
    pub const UNLISTEN: u16 = 3;
    /// The process found a stand-in that another one bound (exec, SCM_RIGHTS) and wants the counters page.
    pub const ADOPT: u16 = 4;
    /// The process lives as long as this connection. The answer is the stop signal's number; no message follows it.
    pub const LEASE: u16 = 5;
    /// setsockopt(2) on a listener: the address is a [`super::SocketOption`].
    pub const SET_OPTION: u16 = 6;
    /// getsockopt(2) on a listener.
    pub const GET_OPTION: u16 = 7;
    /// connect(2) on a stand-in that does not listen: the server wants its own socket back.
    pub const GIVE_BACK: u16 = 8;
    /// listen(2) on a socket that this process did not bind: is it the one that all workers share (policy none)?
    pub const RECOGNIZE: u16 = 9;
    /// After [`super::YOURSELF`]: the server's bound socket comes with the message; without a socket, the number is bind(2)'s
    /// errno.
    pub const BOUND: u16 = 10;
    /// shutdown(2) on a stand-in: UNLISTEN for all processes that have it.
    pub const SHUT: u16 = 11;
    /// A server that was asked to stop connects to `address`, while a thread of it waits in accept(2) of this listener.
    pub const CONNECTS: u16 = 12;
    /// The process wants the access log's ring, where the counters page says that there is one.
    pub const LOG: u16 = 13;
    /// The process wants the record of translated addresses, where the counters page or the variable says that there is one.
    pub const TRANSLATIONS: u16 = 14;
    /// A connection comes back to the master, with the message: number is the listener, and the address begins with
    /// [`super::TRANSLATED`] where a PROXY header named its ends. Nothing is answered.
    pub const MOVE: u16 = 15;
    /// Over this connection [`MOVE`] may come.
    pub const MOVES: u16 = 16;
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`VERSION`].
    pub version: u16,
    /// One of [`op`].
    pub op: u16,
    /// The sender's pid.
    pub pid: u32,
    /// Proof that the sender belongs to a worker.
    pub token: [u8; TOKEN_BYTES],
    /// For BIND: length of the address; for BOUND: 0 or the errno; for the others: the listener.
    pub number: u32,
    /// For BIND and BOUND: the address. For options: a [`SocketOption`].
    pub address: [u8; ADDRESS_BYTES],
}

/// The longest option value.
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

/// The number is an errno; 0 is success.
pub const STATUS: u16 = 0;
/// With the queue's receiving end, which replaces the socket, the counters page, and the queue's sending end. The server
/// keeps the latter open, so that its queue never ends and it does not spin once the master is gone. A fourth descriptor is
/// the doorbell's page.
pub const SHARED: u16 = 1;
/// Not served by the master: to be bound with the kernel.
pub const PASS: u16 = 2;
/// Policy none: with the listening socket itself and the counters page.
pub const LISTENER: u16 = 3;
/// With the socket of an earlier bind.
pub const BACK: u16 = 4;
/// The address is a [`SocketOption`] with the value asked for.
pub const VALUE: u16 = 5;
/// The address is free: the server binds its socket itself, with its own rights, and reports the result ([`op::BOUND`]).
pub const YOURSELF: u16 = 6;
/// Another process is binding that address, or it is being closed: the request is to be repeated soon.
pub const LATER: u16 = 7;

/// With the access log's memory file and its doorbell.
pub const LOG: u16 = 8;
/// With the memory file of translated addresses.
pub const TRANSLATIONS: u16 = 9;

/// See [`op::MOVE`].
pub const TRANSLATED: u8 = 1;

/// The most descriptors in a reply.
pub const MAX_FDS: usize = 4;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u16,
    /// [`STATUS`], [`SHARED`], [`PASS`], [`LISTENER`], [`BACK`], [`VALUE`], [`YOURSELF`], [`LATER`], [`LOG`] or
    /// [`TRANSLATIONS`].
    pub kind: u16,
    /// The errno, the listener, or the signal.
    pub number: u32,
    /// For VALUE: a [`SocketOption`]. In the reply to ADOPT: the listener's address.
    pub address: [u8; ADDRESS_BYTES],
}

/// Sizes of the messages in bytes.
pub const REQUEST_BYTES: usize = core::mem::size_of::<Request>();
/// See [`REQUEST_BYTES`].
pub const REPLY_BYTES: usize = core::mem::size_of::<Reply>();

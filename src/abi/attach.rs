//! What the preload library and the master say to each other over the attach socket (SOCK_SEQPACKET, one message
//! each way per request; numbers in the machine's byte order, since both ends run on it).

/// The environment variable: abstract socket name, `:`, token in hexadecimal.
pub const VARIABLE: &str = "ROUNDSMAN_ATTACH";
/// Version of these messages.
pub const VERSION: u16 = 1;
/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = 16;
/// Room for an IPv4 or IPv6 socket address as the kernel lays it out (`sockaddr_in6`).
pub const ADDRESS_BYTES: usize = 28;

/// What the library asks.
pub mod ask {
    /// bind(2) on the socket that comes with the message.
    pub const BIND: u16 = 1;
    /// listen(2) on a listener that an earlier bind named.
    pub const LISTEN: u16 = 2;
    /// The server closed a stand-in.
    pub const UNLISTEN: u16 = 3;
}

/// A request.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`VERSION`].
    pub version: u16,
    /// One of [`ask`].
    pub what: u16,
    /// The process that asks.
    pub pid: u32,
    /// Proof that it is one of ours.
    pub token: [u8; TOKEN_BYTES],
    /// For BIND: length of the address; for the others: the listener.
    pub number: u32,
    /// For BIND: the address.
    pub address: [u8; ADDRESS_BYTES],
}

/// The answer is an errno of bind(2) or listen(2).
pub const FAILED: u16 = 0;
/// The queue and the counters page come with the answer; the stand-in takes the socket's place.
pub const SHARED: u16 = 1;
/// Not ours: bind it with the kernel.
pub const PASS: u16 = 2;

/// An answer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u16,
    /// [`FAILED`], [`SHARED`] or [`PASS`].
    pub kind: u16,
    /// The errno, or the listener.
    pub number: u32,
    /// For SHARED: the address that is bound, for getsockname(2).
    pub address: [u8; ADDRESS_BYTES],
}

/// Sizes of the messages in bytes.
pub const REQUEST_BYTES: usize = core::mem::size_of::<Request>();
/// See [`REQUEST_BYTES`].
pub const REPLY_BYTES: usize = core::mem::size_of::<Reply>();

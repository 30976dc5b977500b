//! The payload of hand-off messages.
//!
//! To a relay worker: one tag of 8 bytes per socket and nothing else, so that FIONREAD on the queue is 8 times the number of
//! waiting sockets. The tag is the time of the accept, or [`NOTHING`]: master and relay worker run the same executable
//! image, so it needs no version.
//!
//! To a server (direct): one socket per message, since one message is one accept(2), and a payload of a fixed size, so
//! that FIONREAD is that many times the number of waiting sockets.
//!
//! Where PROXY headers are read, hand-offs also carry the addresses that these named: the payloads are longer, all of a queue by the same
//! number of bytes ([`TranslatedTag`], [`DirectTranslated`]).

use super::attach::ADDRESS_BYTES;

/// Size of a relay worker's tag in bytes.
pub const TAG_BYTES: usize = 8;
/// A relay worker's tag of an empty message; no accept time is 0.
pub const NOTHING: [u8; TAG_BYTES] = [0; TAG_BYTES];

/// An address as the kernel lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Bytes of `address` in use; 0: none is known.
    pub len: u16,
    pub address: [u8; ADDRESS_BYTES],
}

impl Endpoint {
    pub const NONE: Self = Self { len: 0, address: [0; ADDRESS_BYTES] };
}

/// A relay worker's tag with the addresses that a PROXY header named; in an empty message, and without a header, none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TranslatedTag {
    /// As a short tag.
    pub accepted: u64,
    pub client: Endpoint,
    /// Where the client connected to.
    pub destination: Endpoint,
    pub reserved: [u8; 4],
}

/// Size of [`TranslatedTag`] in bytes.
pub const TRANSLATED_TAG_BYTES: usize = core::mem::size_of::<TranslatedTag>();

/// Tag of a socket.
pub const SOCKET: u8 = 1;
/// Tag of a message without a socket, left in a stalled worker's queue: it is gone once the worker receives again.
pub const EMPTY: u8 = 0;
/// Tag of a socket that never was connected: it ends the wait of a thread in accept(2), and is not counted.
pub const WAKE: u8 = 2;
/// Tag of a socket whose bytes somebody may have read or written before: another worker, or the master a PROXY header.
pub const USED: u8 = 3;

/// Size of a direct message's payload in bytes.
pub const DIRECT_BYTES: usize = core::mem::size_of::<Direct>();

/// A direct message's payload.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Direct {
    /// [`VERSION`].
    pub version: u8,
    /// [`SOCKET`], [`EMPTY`], [`WAKE`] or [`USED`].
    pub tag: u8,
    /// Length of `address` in bytes; 0 when the client has none (a Unix socket).
    pub address_len: u16,
    /// The client's address from accept(2).
    pub address: [u8; ADDRESS_BYTES],
    /// Counts the sockets sent to this worker, over all its queues; see [`super::page::header::RELEASED`].
    pub number: u64,
    /// When it was accepted: CLOCK_MONOTONIC in nanoseconds.
    pub accepted: u64,
}

/// A direct message's payload with the addresses that a PROXY header named: the client's is in `direct`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DirectTranslated {
    pub direct: Direct,
    /// Where the client connected to; unknown without a header.
    pub destination: Endpoint,
    pub reserved: [u8; 2],
}

/// Size of [`DirectTranslated`] in bytes.
pub const DIRECT_TRANSLATED_BYTES: usize = core::mem::size_of::<DirectTranslated>();

/// Version of [`Direct`] and [`DirectTranslated`].
pub const VERSION: u8 = 3;

//! The payload of hand-off messages.
//!
//! To a relay worker: one tag of 8 bytes per socket and nothing else, so that FIONREAD on the queue is 8 times the number of
//! waiting sockets. The tag is the time of the accept, or [`NOTHING`]: master and relay worker run the same executable
//! image, so it needs no version.
//!
//! To a server (direct): one socket per message, since one message is one accept(2), and a payload of a fixed size, so
//! that FIONREAD is that many times the number of waiting sockets.

/// Size of a relay worker's tag in bytes.
pub const TAG_BYTES: usize = 8;
/// A relay worker's tag of an empty message; no accept time is 0.
pub const NOTHING: [u8; TAG_BYTES] = [0; TAG_BYTES];

/// Tag of a socket.
pub const SOCKET: u8 = 1;
/// Tag of a message without a socket, left in a stalled worker's queue: it is gone once the worker receives again.
pub const EMPTY: u8 = 0;
/// Tag of a socket that never was connected: it ends the wait of a thread in accept(2), and is not counted.
pub const WAKE: u8 = 2;

/// Size of a direct message's payload in bytes.
pub const DIRECT_BYTES: usize = core::mem::size_of::<Direct>();

/// A direct message's payload.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Direct {
    /// [`VERSION`].
    pub version: u8,
    /// [`SOCKET`], [`EMPTY`] or [`WAKE`].
    pub tag: u8,
    /// Length of `address` in bytes; 0 when the client has none (a Unix socket).
    pub address_len: u16,
    /// The client's address from accept(2).
    pub address: [u8; super::attach::ADDRESS_BYTES],
    /// Counts the sockets sent to this worker, over all its queues; see [`super::page::header::RELEASED`].
    pub number: u64,
    /// When it was accepted: CLOCK_MONOTONIC in nanoseconds.
    pub accepted: u64,
}

/// Version of [`Direct`].
pub const VERSION: u8 = 2;

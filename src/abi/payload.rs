//! The payload of a hand-off message to a relay worker.
//!
//! One byte per socket and nothing else, so that FIONREAD on the queue is the number of waiting sockets. The
//! byte is a tag: master and relay worker run the same executable image, so it needs no version of its own.

/// Tag of a socket.
pub const SOCKET: u8 = 1;
/// Tag of an empty message: no socket, left in a stalled worker's queue to see it wake up.
pub const EMPTY: u8 = 0;

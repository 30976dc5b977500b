//! Hand-off: accepted sockets travel over a Unix socket pair, one queue per worker and listener.

pub mod access;
pub mod bell;
mod bytes;
mod client;
pub mod page;
mod queue;
pub mod rescue;
pub mod translations;
pub mod upstreams;

pub use client::ClientRecord;
pub use client::{Client, address_bytes, address_of};
pub use queue::{Carries, QueueRecord, QueueRx, QueueTx, Reception, TakenBack};

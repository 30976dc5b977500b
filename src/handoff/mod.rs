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

pub use client::Client;
pub use queue::{Carries, QueueRx, QueueTx, Reception, TakenBack};

//! Hand-off: accepted sockets travel over a Unix socket pair, one queue per worker and listener.

pub mod access;
pub mod bell;
pub mod page;
mod queue;
pub mod rescue;
pub mod upstreams;

pub use queue::{QueueRx, QueueTx, Reception};

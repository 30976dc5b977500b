//! Hand-off: accepted sockets travel over a Unix socket pair, one queue per worker and listener.

pub mod page;
mod queue;
pub mod rescue;

pub use queue::{Carries, QueueRx, QueueTx, Reception};

//! The control socket: newline-delimited JSON between the daemon and `roundsman ls`, `reload`, `scale` and the like.

pub mod client;
pub mod place;
pub mod render;
pub mod server;
pub mod snapshot;

use serde::{Deserialize, Serialize};

use crate::config::instances::Change;

/// What a client asks, one per line. Unknown fields are refused, so that a misspelt option is noticed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state of all services.
    Ls {},
    /// A rolling reload.
    Reload {},
    /// All workers anew.
    Restart {},
    /// No workers for now.
    Stop {},
    /// Workers again.
    Start {},
    /// Another number of slots.
    Scale {
        /// How many.
        to: Change,
    },
}

/// What the daemon says of something that takes its time: steps, then one of the others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// It goes on.
    Step(String),
    /// It is done.
    Done(String),
    /// It cannot be, or it failed.
    Error(String),
}

/// An answer of the daemon.
#[derive(Debug)]
pub enum Answer {
    /// This line, now.
    Now(Vec<u8>),
    /// Lines that follow.
    Later,
}

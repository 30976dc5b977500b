//! The control socket: newline-delimited JSON between the daemon and `roundsman ls`, `reload`, `scale` and the like.

pub mod ask;
pub mod requests;
pub mod server;
pub mod socket_path;
pub mod status;

use serde::{Deserialize, Serialize};

use crate::config::instances::Change;

/// The version of the protocol: it grows when something that a client relied on changes its meaning.
pub const PROTOCOL: u32 = 1;

/// What a client asks, one per line. Unknown fields are refused, so that a misspelt option is noticed. Where a service
/// may be named and is not, all are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The versions of protocol and program.
    Hello {},
    /// The state of all services.
    Ls {},
    /// A rolling reload, after the configuration file was read again.
    Reload {
        service: Option<String>,
    },
    Restart {
        service: Option<String>,
    },
    /// No workers for now.
    Stop {
        service: Option<String>,
    },
    Start {
        service: Option<String>,
    },
    /// Another number of slots.
    Scale {
        /// Which; needed where there are several.
        service: Option<String>,
        to: Change,
    },
    /// What servers wrote. The daemon answers with a line for each of theirs, closes the connection behind the last, and
    /// listens to no more requests on it.
    Logs {
        service: Option<String>,
        slot: Option<u32>,
        /// How many of those that came before.
        #[serde(default)]
        lines: usize,
        /// Whether those that come are wanted, too.
        #[serde(default)]
        follow: bool,
        /// Whether what the daemon logged of the service is wanted among them.
        #[serde(default)]
        events: bool,
    },
    /// What workers in Node sent by `process.send`: as [`Request::Logs`].
    Messages {
        service: Option<String>,
        slot: Option<u32>,
        /// How many of those that came before.
        #[serde(default)]
        lines: usize,
        /// Whether those that come are wanted, too.
        #[serde(default)]
        follow: bool,
    },
    /// A message to workers in Node.
    Send {
        service: Option<String>,
        /// One slot of it.
        slot: Option<u32>,
        /// What: any JSON.
        message: serde_json::Value,
    },
}

/// The answer to [`Request::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
}

/// What the daemon says of something that takes its time: steps, then one of the others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Step(String),
    Done(String),
    /// It cannot be, or it failed.
    Error(String),
}

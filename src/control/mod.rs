//! The control socket: newline-delimited JSON between the daemon and `roundsman ls`, `reload`, `scale` and the like.

pub mod ask;
pub mod history;
pub mod requests;
pub mod server;
pub mod socket_path;
pub mod status;
pub mod waits;

use serde::{Deserialize, Serialize};

use crate::config::instances::Change;

/// Version of the protocol, raised by incompatible changes.
pub const PROTOCOL: u32 = 1;

/// A request, one per line. Unknown fields are refused, so that a misspelt option is noticed. Without a service all
/// are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The versions of protocol and program.
    Hello {},
    /// The state of all services.
    Ls {},
    /// Reads the configuration file again, then replaces all workers one by one; with a slot, replaces that slot's worker
    /// with the configuration in force.
    Reload {
        service: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
    },
    Restart {
        service: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
    },
    /// Stops all workers.
    Stop {
        service: Option<String>,
    },
    Start {
        service: Option<String>,
    },
    /// Another program takes the daemon's place, in the same process, with its workers and connections: the file that it was
    /// started from, or another one, by its absolute path.
    Upgrade {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<std::path::PathBuf>,
    },
    /// Ends the daemon, gracefully. It closes the connection when it is gone. A service is meant to be its only one.
    Quit {
        service: Option<String>,
    },
    /// New connections go to the other slots, or to the other upstreams.
    Drain {
        service: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
        /// Its address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upstream: Option<String>,
        /// Whether the last one that takes connections may be drained, too.
        #[serde(default)]
        force: bool,
    },
    /// New connections go to a slot or an upstream again, or to all.
    Undrain {
        service: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upstream: Option<String>,
    },
    /// Sets the weight of a slot or of an upstream.
    Weight {
        service: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
        /// Its address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upstream: Option<String>,
        /// 0 to 256.
        weight: u32,
        /// Whether the last one that takes connections may get 0, too.
        #[serde(default)]
        force: bool,
    },
    /// Sets the number of slots.
    Scale {
        /// Required where there are several.
        service: Option<String>,
        to: Change,
    },
    /// Output of servers. The daemon answers with a line for each of theirs, closes the connection after the last, and
    /// reads no more requests on it.
    Logs {
        service: Option<String>,
        slot: Option<u32>,
        /// Number of past lines.
        #[serde(default)]
        lines: usize,
        /// Whether to continue with new lines.
        #[serde(default)]
        follow: bool,
        /// Whether what the daemon logged of the service is wanted among them.
        #[serde(default)]
        events: bool,
    },
    /// The daemon's events: starts, exits, reloads, upstreams; answered like [`Request::Logs`].
    Events {
        service: Option<String>,
        slot: Option<u32>,
        /// Number of past events.
        #[serde(default)]
        lines: usize,
        /// Whether to continue with new events.
        #[serde(default)]
        follow: bool,
    },
    /// Messages that workers in Node sent with `process.send`; answered like [`Request::Logs`].
    Messages {
        service: Option<String>,
        slot: Option<u32>,
        /// Number of past lines.
        #[serde(default)]
        lines: usize,
        /// Whether to continue with new lines.
        #[serde(default)]
        follow: bool,
    },
    /// Sends a message to workers in Node.
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

/// Progress of a request: any number of steps, then one of the others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Step(String),
    Done(String),
    Error(String),
}

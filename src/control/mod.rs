//! The control socket: newline-delimited JSON between the daemon and `roundsman ls` (and its like).

pub mod client;
pub mod place;
pub mod render;
pub mod server;
pub mod snapshot;

use serde::{Deserialize, Serialize};

/// What a client asks, one per line. Unknown fields are refused, so that a misspelt option is noticed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state of all services.
    Ls {},
}

/// What the daemon answers when it cannot do what was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub error: String,
}

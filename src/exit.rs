//! How the program ends when it fails: an exit code and the line that goes with it.

use std::fmt;
use std::io::{self, Write};

use crate::codes::{CONFIG, OS, USAGE};
use crate::config::error::{ConfigError, Kind, LoadError};
use crate::control::server::NameTaken;
use crate::daemon::upgrade::takeover::TakeoverError;
use crate::daemon::{DaemonError, ListenError};
use crate::sys::reason;
use crate::worker::delivery::DeliveryError;

/// An exit code and its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The process's exit code.
    pub code: u8,
    /// For stderr: what failed, why, what to do.
    pub message: String,
}

impl Exit {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failed system call: code 71.
    pub fn os(doing: &str, error: &io::Error) -> Self {
        Self::new(OS, format!("{doing}: {}", reason(error)))
    }
}

/// A line for stderr. Nothing happens where it cannot be written, as on a terminal that has gone.
pub fn tell(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "roundsman: {text}");
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

impl From<LoadError> for Exit {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Options(error) => error.into(),
            LoadError::ForOneService { .. } => Self::new(USAGE, error.to_string()),
            LoadError::Unreadable(_) | LoadError::Mistakes { .. } => Self::new(CONFIG, error.to_string()),
        }
    }
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Self {
        let code = match &error.kind {
            Kind::Command(error) => error.exit_code(),
            _ => USAGE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<DeliveryError> for Exit {
    fn from(error: DeliveryError) -> Self {
        let code = match error {
            DeliveryError::Config(error) => return error.into(),
            DeliveryError::Command(ref error) => error.exit_code(),
            DeliveryError::Attach(_) => OS,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ListenError> for Exit {
    fn from(error: ListenError) -> Self {
        let code = if matches!(error, ListenError::Bind(_)) { OS } else { USAGE };
        Self::new(code, error.to_string())
    }
}

impl From<DaemonError> for Exit {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Delivery(error) => error.into(),
            DaemonError::NameTaken(error) => error.into(),
            DaemonError::Os { .. } | DaemonError::LogFile(_) | DaemonError::Listen(_) => {
                Self::new(OS, error.to_string())
            }
        }
    }
}

impl From<TakeoverError> for Exit {
    fn from(error: TakeoverError) -> Self {
        let code = if matches!(error, TakeoverError::Os { .. }) { OS } else { 1 };
        Self::new(code, error.to_string())
    }
}

impl From<NameTaken> for Exit {
    fn from(error: NameTaken) -> Self {
        Self::new(USAGE, error.to_string())
    }
}

//! Exit codes and the one line that goes with them.

use std::fmt;

use crate::config::error::{ConfigError, Kind, LoadError};
use crate::control::server::NameTaken;
use crate::launch::LaunchError;
use crate::program::command::CommandError;

/// An exit code and its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The process's exit code.
    pub code: u8,
    /// For stderr: what failed, why, what to do.
    pub message: String,
}

/// Bad flags or arguments.
pub const USAGE: u8 = 2;
/// No daemon to talk to (EX_UNAVAILABLE).
pub const NO_DAEMON: u8 = 69;
/// The daemon is another user's (EX_NOPERM).
pub const NOT_PERMITTED: u8 = 77;
/// A mistake in the configuration file (EX_CONFIG).
pub const CONFIG: u8 = 78;
/// The system refused something (EX_OSERR).
pub const OS: u8 = 71;
/// The command is there but cannot be executed, as in the shell.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as in the shell.
pub const NOT_FOUND: u8 = 127;

impl Exit {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failed system call: code 71.
    pub fn os(doing: &str, error: &dyn fmt::Display) -> Self {
        Self::new(OS, format!("{doing}: {error}"))
    }
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
            Kind::Command(error) => code_of(error),
            _ => USAGE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<CommandError> for Exit {
    fn from(error: CommandError) -> Self {
        Self::new(code_of(&error), error.to_string())
    }
}

impl From<LaunchError> for Exit {
    fn from(error: LaunchError) -> Self {
        let code = match &error {
            LaunchError::Command(error) => code_of(error),
            LaunchError::NotExecutable { .. } => NOT_EXECUTABLE,
            LaunchError::Exhausted { .. } => OS,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NameTaken> for Exit {
    fn from(error: NameTaken) -> Self {
        Self::new(USAGE, error.to_string())
    }
}

fn code_of(error: &CommandError) -> u8 {
    match error {
        CommandError::Empty | CommandError::NulByte => USAGE,
        CommandError::NotFound { .. } => NOT_FOUND,
        CommandError::NotExecutable { .. } => NOT_EXECUTABLE,
    }
}

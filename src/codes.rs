//! The program's exit codes.

/// Bad flags or arguments.
pub const USAGE: u8 = 2;
/// No daemon to talk to (EX_UNAVAILABLE).
pub const NO_DAEMON: u8 = 69;
/// The system refused something (EX_OSERR).
pub const OS: u8 = 71;
/// The daemon is another user's (EX_NOPERM).
pub const NOT_PERMITTED: u8 = 77;
/// A mistake in the configuration file (EX_CONFIG).
pub const CONFIG: u8 = 78;
/// The command is there but cannot be executed, as in the shell.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as in the shell.
pub const NOT_FOUND: u8 = 127;

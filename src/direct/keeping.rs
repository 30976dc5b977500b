//! Direct delivery to programs that cannot be preloaded, since they make their system calls themselves: a keeper answers these
//! (seccomp user notification). Whether the kernel and the servers' rights allow it is tried.

use std::process::Command;

use crate::keeper::probe::{GOOD, ROLE, WITHOUT_SOCKETS};
use crate::launch;
use crate::sys::process::Credentials;
use crate::sys::reason;

/// What a keeper can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    All,
    /// The listener is a socket of the keeper's, without the options that the server has set on its own.
    WithoutOptions,
}

impl Keeping {
    /// Tries it under the servers' credentials.
    ///
    /// # Errors
    /// Why it is not possible.
    pub fn find(user: Option<&Credentials>) -> Result<Self, String> {
        let output = launch::trial(Command::new("/proc/self/exe").arg(ROLE), user, None)
            .map_err(|error| format!("a trial of it cannot be started: {}", reason(&error)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().next() {
            Some(GOOD) => Ok(Self::All),
            Some(WITHOUT_SOCKETS) => Ok(Self::WithoutOptions),
            Some(refused) => Err(refused.to_owned()),
            None => Err("a trial of it failed".to_owned()),
        }
    }
}

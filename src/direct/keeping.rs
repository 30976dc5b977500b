//! Direct delivery to programs that cannot be preloaded, since they make their system calls themselves: a keeper answers these
//! (seccomp user notification). Whether the kernel and the servers' rights allow it is tried.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::abi::attach::VARIABLE;
use crate::keeper::probe::{GOOD, NAME, ROLE, WITHOUT_SOCKETS};
use crate::launch;
use crate::program::wrapper::Wrapped;
use crate::sys::process::Credentials;
use crate::sys::{image, process, reason};

/// For the trial.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether a process calls itself a keeper: it has duplicates of what it gave its server.
pub fn is_keeper(pid: u32) -> bool {
    process::session_and_name(pid).is_some_and(|(_, name)| name.as_bytes() == NAME.to_bytes())
}

/// What a keeper can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    All,
    /// The listener is a socket of the keeper's, without the options that the server has set on its own.
    WithoutOptions,
}

impl Keeping {
    /// Tries it under the servers' credentials; behind `wrappers` with `image`, which their keeper inherits.
    ///
    /// # Errors
    /// Why it is not possible.
    pub fn find(
        user: Option<&Credentials>,
        wrappers: Option<(&Path, &Wrapped)>,
        image: Option<BorrowedFd<'_>>,
    ) -> Result<Self, String> {
        let mut command = Command::new("/proc/self/exe");
        match (wrappers, image) {
            (Some((program, wrapped)), Some(image)) => {
                let words = wrapped.with(&[image::path_of(image).into(), ROLE.into()]);
                command = Command::new(program);
                command.args(words.iter().skip(1));
            }
            _ => drop(command.arg(ROLE)),
        }
        let output = launch::trial(command.env(VARIABLE, ROLE), LIMIT, user, image)
            .map_err(|error| format!("a trial of it cannot be started: {}", reason(&error)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().next() {
            Some(GOOD) => Ok(Self::All),
            Some(WITHOUT_SOCKETS) => Ok(Self::WithoutOptions),
            Some(refused) => Err(refused.to_owned()),
            None => Err(match String::from_utf8_lossy(&output.stderr).lines().next() {
                Some(message) => format!("a trial of it failed: {message}"),
                None => "a trial of it failed".to_owned(),
            }),
        }
    }
}

//! Whether a command's program loads the preload library from a place: its own loader is asked, in place of it.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::process::{Command, Output};

use crate::launch;
use crate::program::command::CommandLine;
use crate::program::elf::Dynamic;
use crate::program::wrapper::Wrapped;
use crate::sys::process::Credentials;
use crate::sys::reason;

/// What will load the library.
#[derive(Debug)]
pub struct Target<'a> {
    pub command: &'a CommandLine,
    /// What runs in the end.
    pub program: &'a Dynamic,
    /// Wrappers before it, which may change the user, the root or the environment.
    pub wrapped: Option<Wrapped>,
    /// The servers' user, if not ours.
    pub user: Option<&'a Credentials>,
}

/// What a trial has shown.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Loads,
    /// It does not load it from there.
    Refused(String),
    /// It loads it from nowhere.
    Never(String),
}

impl Target<'_> {
    /// Whether its processes may have other users than the one they are started as.
    pub fn changes_user(&self) -> bool {
        self.wrapped.is_some() || (self.user.is_none() && nix::unistd::geteuid().is_root())
    }

    /// Has the program's loader list what it would load, with the library at `path`; `kept` stays open at its number. Wrappers
    /// run as they would, with the loader in place of the program.
    pub fn tries(&self, path: &str, kept: Option<BorrowedFd<'_>>) -> Outcome {
        self.outcome(self.wrapped.as_ref(), path, kept)
    }

    fn outcome(&self, wrapped: Option<&Wrapped>, path: &str, kept: Option<BorrowedFd<'_>>) -> Outcome {
        let list = [self.program.loader.clone().into(), "--list".into(), self.program.program.clone().into()];
        let bare = || {
            let mut command = Command::new(&list[0]);
            command.args(&list[1..]);
            command
        };
        let mut command = wrapped.and_then(|wrapped| self.behind(wrapped, &list)).unwrap_or_else(bare);
        let output = match launch::trial(command.env("LD_PRELOAD", path), self.user, kept) {
            Ok(output) => output,
            Err(error) => {
                let program = command.get_program().to_string_lossy().into_owned();
                return Outcome::Refused(format!("{program} cannot be started: {}", reason(&error)));
            }
        };
        let program = self.program.program.display();
        match Listing::of(&output, path) {
            Listing::Listed => Outcome::Loads,
            Listing::Refused(message) => {
                Outcome::Refused(format!("the loader of {program} does not load {path}: {message}"))
            }
            Listing::WithoutIt => match wrapped {
                // Some loaders say nothing of what they cannot load.
                Some(Wrapped { by, .. }) if self.outcome(None, path, kept) == Outcome::Loads => {
                    Outcome::Never(format!(
                        "{by} clears the environment of what it starts, and with it LD_PRELOAD and ROUNDSMAN_ATTACH"
                    ))
                }
                _ => Outcome::Refused(format!("the loader of {program} does not load {path}")),
            },
            // It fails without the library, too, or minds what is run in place of the program: what it starts will show.
            Listing::Failed(_) if wrapped.is_some() => Outcome::Loads,
            Listing::Failed(message) => {
                Outcome::Refused(format!("the loader of {program} does not load {path}: {message}"))
            }
        }
    }

    fn behind(&self, wrapped: &Wrapped, list: &[OsString]) -> Option<Command> {
        let words = wrapped.with(list);
        let mut command = Command::new(self.command.program().ok()?);
        command.args(words.get(1..)?);
        Some(command)
    }
}

/// What a loader says.
enum Listing {
    Listed,
    /// All but the library.
    WithoutIt,
    /// It could not load the library.
    Refused(String),
    /// No list.
    Failed(String),
}

impl Listing {
    fn of(output: &Output, path: &str) -> Self {
        let errors = String::from_utf8_lossy(&output.stderr);
        let message = errors.lines().next().unwrap_or("no message").to_owned();
        if let Some(refused) = errors.lines().find(|line| line.contains(path)) {
            return Self::Refused(refused.to_owned());
        }
        match (String::from_utf8_lossy(&output.stdout).contains(path), output.status.success()) {
            (true, true) => Self::Listed,
            (false, true) => Self::WithoutIt,
            (_, false) => Self::Failed(message),
        }
    }
}

//! Whether a command's program loads the preload library from a place: its own loader is asked, in place of it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::launch;
use crate::program::command::CommandLine;
use crate::program::elf::Dynamic;
use crate::program::wrapper::Wrapped;
use crate::sys::process::Credentials;
use crate::sys::reason;
use crate::sys::rights::as_server;

/// All trials for a command take no longer: whoever asks for them has nothing else done meanwhile.
const LIMIT: Duration = Duration::from_secs(2);
/// The same for those that follow one which took too long, so that many of one reload cost little more than one.
const LIMIT_AFTER: Duration = Duration::from_millis(500);
const FOLLOWS: Duration = Duration::from_secs(10);

/// When a trial last took too long.
static TOO_LONG: Mutex<Option<Instant>> = Mutex::new(None);

/// The time that the trials for a command have.
#[derive(Debug)]
pub struct Patience(Instant);

impl Patience {
    pub fn new() -> Self {
        let last = *TOO_LONG.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if last.is_some_and(|last| last.elapsed() < FOLLOWS) { LIMIT_AFTER } else { LIMIT };
        Self(Instant::now() + limit)
    }

    /// As [`launch::trial`], within what is left.
    fn run(
        &self,
        command: &mut Command,
        user: Option<&Credentials>,
        kept: Option<BorrowedFd<'_>>,
    ) -> io::Result<Output> {
        let left = self.0.saturating_duration_since(Instant::now());
        let output = launch::trial(command, left, user, kept);
        if output.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            *TOO_LONG.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        output
    }
}

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
    /// Something else has failed, for this reason: what it starts will show.
    Untold(String),
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
    pub fn tries(&self, path: &str, kept: Option<BorrowedFd<'_>>, patience: &Patience) -> Outcome {
        let shown = self.program.program.display();
        let read = as_server(self.user, || File::open(&self.program.program).map(drop));
        if read.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return Outcome::Never(format!(
                "{shown} cannot be read by the servers' user, and so not be tried with the preload library (chmod a+r \
                 makes it readable)"
            ));
        }
        let list = [self.program.loader.clone().into(), "--list".into(), self.program.program.clone().into()];
        let Some(mut command) = self.command(&list) else {
            return Outcome::Refused(format!("{} is not found", self.command));
        };
        let too_long = || Outcome::Never(format!("{}, tried with the preload library, does not end", self.command));
        let output = match patience.run(command.env("LD_PRELOAD", path), self.user, kept) {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return too_long(),
            Err(error) => {
                let program = command.get_program().to_string_lossy().into_owned();
                return Outcome::Refused(format!("{program} cannot be started: {}", reason(&error)));
            }
        };
        match Listing::of(&output, path) {
            Listing::Listed => Outcome::Loads,
            Listing::Refused(message) => {
                Outcome::Refused(format!("the loader of {shown} does not load {path}: {message}"))
            }
            // Some loaders say nothing of what they cannot load.
            Listing::WithoutIt => {
                match self.wrapped.as_ref().map(|by| (by, self.clears_environment(path, kept, patience))) {
                    Some((Wrapped { by, .. }, Ok(true))) => Outcome::Never(format!(
                        "{by} clears the environment of what it starts, and with it LD_PRELOAD and ROUNDSMAN_ATTACH"
                    )),
                    Some((_, Err(error))) if error.kind() == io::ErrorKind::TimedOut => too_long(),
                    _ => Outcome::Refused(format!("the loader of {shown} does not load {path}")),
                }
            }
            // It fails without the library, too, or minds what is run in place of the program.
            Listing::Failed(message) => match &self.wrapped {
                Some(Wrapped { by, .. }) => Outcome::Untold(format!("{by}, tried with it, has failed: {message}")),
                None => Outcome::Refused(format!("the loader of {shown} does not load {path}: {message}")),
            },
        }
    }

    /// Whether what the wrappers start is without LD_PRELOAD: env(1) behind them shows it. Not by a trial without them: the file
    /// that names the loader may be of the user that they change to, and would be run with our rights.
    fn clears_environment(&self, path: &str, kept: Option<BorrowedFd<'_>>, patience: &Patience) -> io::Result<bool> {
        let Some(mut command) = self.command(&["/usr/bin/env".into()]) else { return Ok(false) };
        let output = patience.run(command.env("LD_PRELOAD", path), self.user, kept)?;
        Ok(output.status.success() && !String::from_utf8_lossy(&output.stdout).contains(path))
    }

    /// These words in place of the program, behind its wrappers.
    fn command(&self, words: &[OsString]) -> Option<Command> {
        let (program, words) = match &self.wrapped {
            Some(wrapped) => (self.command.program().ok()?, wrapped.with(words)),
            None => (words.first()?.into(), words.to_vec()),
        };
        let mut command = Command::new(program);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::program::command::Lookup;

    #[test]
    fn what_the_program_names_as_its_loader_runs_behind_the_wrappers_only() {
        let dir = tempfile::tempdir().unwrap();
        let (loader, program, library) = (dir.path().join("loader"), dir.path().join("x"), dir.path().join("x.so"));
        // What a user could do that owns the program.
        std::fs::write(&loader, "#!/bin/sh\n[ \"$BEHIND\" ] || : >\"$0.alone\"\n").unwrap();
        std::fs::set_permissions(&loader, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(&library, super::super::LIBRARY).unwrap();
        for (wrapper, never) in [("env BEHIND=1", false), ("env -i BEHIND=1", true)] {
            let words: Vec<OsString> =
                wrapper.split(' ').map(OsString::from).chain([program.clone().into_os_string()]).collect();
            let command = CommandLine::find(&words, Lookup::default()).unwrap();
            let dynamic = Dynamic { program: program.clone(), loader: loader.clone() };
            let wrapped = Wrapped::of(&words);
            let target = Target { command: &command, program: &dynamic, wrapped, user: None };
            let outcome = target.tries(&library.display().to_string(), None, &Patience::new());
            assert!(!dir.path().join("loader.alone").exists());
            assert_eq!(matches!(outcome, Outcome::Never(_)), never, "{outcome:?}");
        }
    }
}

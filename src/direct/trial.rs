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
        let list = [self.program.loader.clone().into(), "--list".into(), self.program.program.clone().into()];
        let Some(mut command) = self.command(&list) else {
            return Outcome::Refused(format!("{} is not found", self.command));
        };
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
            Listing::WithoutIt => match &self.wrapped {
                // Some loaders say nothing of what they cannot load.
                Some(Wrapped { by, .. }) if self.clears_environment(path, kept) => Outcome::Never(format!(
                    "{by} clears the environment of what it starts, and with it LD_PRELOAD and ROUNDSMAN_ATTACH"
                )),
                _ => Outcome::Refused(format!("the loader of {program} does not load {path}")),
            },
            // It fails without the library, too, or minds what is run in place of the program: what it starts will show.
            Listing::Failed(_) if self.wrapped.is_some() => Outcome::Loads,
            Listing::Failed(message) => {
                Outcome::Refused(format!("the loader of {program} does not load {path}: {message}"))
            }
        }
    }

    /// Whether what the wrappers start is without LD_PRELOAD: env(1) behind them shows it. Not by a trial without them: the file
    /// that names the loader may be of the user that they change to, and would be run with our rights.
    fn clears_environment(&self, path: &str, kept: Option<BorrowedFd<'_>>) -> bool {
        let shown = |mut command: Command| launch::trial(command.env("LD_PRELOAD", path), self.user, kept).ok();
        self.command(&["/usr/bin/env".into()])
            .and_then(shown)
            .is_some_and(|output| output.status.success() && !String::from_utf8_lossy(&output.stdout).contains(path))
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
            let outcome = target.tries(&library.display().to_string(), None);
            assert!(!dir.path().join("loader.alone").exists());
            assert_eq!(matches!(outcome, Outcome::Never(_)), never, "{outcome:?}");
        }
    }
}

//! Direct delivery: the server process itself gets the accepted sockets, through the preload library.

pub mod attach;

pub mod guests;
pub mod options;
mod places;
mod receiving;
mod wire;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::launch;
use crate::program::elf::Dynamic;
use crate::sys::process::Credentials;
use crate::sys::{mmap, reason};

/// The preload library, built by build.rs.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The library in a place from which servers can load it.
#[derive(Debug)]
pub struct Preload {
    path: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A sealed memory file that servers open under our /proc/PID/fd.
    Memory(#[allow(dead_code)] OwnedFd),
    /// For servers that cannot read our /proc: a file, locked while we live and removed at our end.
    File(PathBuf, #[allow(dead_code)] Option<Flock<File>>),
}

impl Preload {
    /// Finds a place that works for `program` under the servers' credentials: tries each by having the program's own
    /// loader list what it would load.
    ///
    /// # Errors
    /// Why none works.
    pub fn find(program: &Dynamic, user: Option<&Credentials>) -> Result<Self, String> {
        let mut refused = String::new();
        let memory = || Self::in_memory().map_err(|error| reason(&error));
        let files = places::directories().into_iter().map(|directory| Self::in_directory(&directory));
        for preload in std::iter::once_with(memory).chain(files) {
            match preload.and_then(|preload| preload.try_with(program, user).map(|()| preload)) {
                Ok(preload) => return Ok(preload),
                Err(reason) => refused = reason,
            }
        }
        Err(refused)
    }

    fn in_memory() -> io::Result<Self> {
        let file = mmap::sealed_file(c"roundsman-preload", LIBRARY)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Ok(Self { path, place: Place::Memory(file) })
    }

    fn in_directory(directory: &Path) -> Result<Self, String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        // Each service has its own and removes it at its end.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = places::library(directory, std::process::id(), number);
        let shown = path.display().to_string();
        if shown.contains([':', ' ']) {
            return Err(format!("{shown}: LD_PRELOAD takes no such path"));
        }
        places::remove_stale(directory);
        // A daemon with our pid may have left it behind.
        let _ = std::fs::remove_file(&path);
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file: File| {
                // The lock ends with this process, even if it is killed.
                let lock = Flock::lock(File::open(&path)?, FlockArg::LockSharedNonblock).ok();
                file.write_all(LIBRARY)?;
                file.set_permissions(PermissionsExt::from_mode(0o444))?;
                Ok(lock)
            });
        match written {
            Ok(lock) => Ok(Self { path: shown, place: Place::File(path, lock) }),
            Err(error) => {
                if error.kind() != io::ErrorKind::AlreadyExists {
                    let _ = std::fs::remove_file(&path);
                }
                Err(format!("{}: {}", directory.display(), reason(&error)))
            }
        }
    }

    fn try_with(&self, program: &Dynamic, user: Option<&Credentials>) -> Result<(), String> {
        let mut command = Command::new(&program.loader);
        command.arg("--list").arg(&program.program).env("LD_PRELOAD", &self.path);
        let output = launch::trial(&mut command, user)
            .map_err(|error| format!("{} cannot be started: {}", program.loader.display(), reason(&error)))?;
        let listed = String::from_utf8_lossy(&output.stdout).contains(&self.path);
        if listed && output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no message").to_owned();
        Err(format!("the loader of {} does not load {}: {message}", program.program.display(), self.path))
    }

    /// The value of LD_PRELOAD: the library, followed by those already there.
    pub fn value(&self) -> String {
        match std::env::var("LD_PRELOAD") {
            Ok(others) if !others.is_empty() => format!("{}:{others}", self.path),
            _ => self.path.clone(),
        }
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        if let Place::File(path, _) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }
}

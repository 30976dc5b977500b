//! Direct delivery: the server process itself gets the accepted sockets, through the preload library.

pub mod attach;

pub mod guests;
pub mod keeping;
pub mod options;
mod places;
mod receiving;
mod trial;
mod wire;

use trial::Outcome;
pub use trial::Target;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

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
    Ours(#[expect(dead_code, reason = "it lives as long")] OwnedFd),
    /// One that servers inherit.
    Inherited(OwnedFd),
    /// A file that only its owner can change, locked while we live and removed at our end.
    File(PathBuf, #[expect(dead_code, reason = "it lives as long")] Option<Flock<File>>),
}

/// Where the library may be put.
#[derive(Debug)]
enum Kind {
    Ours,
    Inherited,
    In(PathBuf),
}

/// Inherited descriptors of ours are above those that programs use, close or count.
const INHERITED_FD: RawFd = 900;

impl Preload {
    /// Finds a place that works for a command, by trying one after the other.
    ///
    /// A memory file of ours leaves nothing behind, and survives whatever a server closes; but only processes of our user can
    /// open it, in our namespaces. Where servers may have another one, a file comes first, which all users can read. Without a
    /// place for that, a memory file that they inherit: all users, roots and namespaces can open it, as long as they
    /// have /proc and keep the descriptor.
    ///
    /// # Errors
    /// Why none works.
    pub fn find(target: &Target) -> Result<Self, String> {
        let files = places::directories().into_iter().map(Kind::In);
        let kinds: Vec<Kind> = match target.user.is_some() || target.changes_user() {
            true => files.chain([Kind::Inherited, Kind::Ours]).collect(),
            false => [Kind::Ours].into_iter().chain(files).chain([Kind::Inherited]).collect(),
        };
        let mut refused = String::new();
        for kind in kinds {
            let preload = match Self::put(&kind) {
                Ok(preload) => preload,
                Err(reason) => {
                    refused = reason;
                    continue;
                }
            };
            if matches!(kind, Kind::In(_)) && target.changes_user() && !places::all_users_read(Path::new(&preload.path))
            {
                refused = format!("not all users can read {}", preload.path);
                continue;
            }
            match target.tries(&preload.path, preload.inherited()) {
                Outcome::Loads => return Ok(preload),
                Outcome::Refused(reason) => refused = reason,
                Outcome::Never(reason) => return Err(reason),
            }
        }
        Err(refused)
    }

    fn put(kind: &Kind) -> Result<Self, String> {
        let memory = || mmap::sealed_file(c"roundsman-preload", LIBRARY);
        let shown = |error: io::Error| reason(&error);
        match kind {
            Kind::In(directory) => Self::in_directory(directory),
            Kind::Ours => {
                let file = memory().map_err(shown)?;
                let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                Ok(Self { path, place: Place::Ours(file) })
            }
            Kind::Inherited => {
                let file = memory().and_then(|file| mmap::above(file, INHERITED_FD)).map_err(shown)?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(Self { path, place: Place::Inherited(file) })
            }
        }
    }

    /// The descriptor that servers have to inherit.
    pub fn inherited(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::Inherited(file) => Some(file.as_fd()),
            Place::Ours(_) | Place::File(..) => None,
        }
    }

    /// Where it is, in words.
    pub fn place(&self) -> String {
        match &self.place {
            Place::Ours(_) => "a memory file of the daemon".to_owned(),
            Place::Inherited(_) => "a memory file that servers inherit".to_owned(),
            Place::File(path, _) => format!("a file in {}", path.parent().unwrap_or(path).display()),
        }
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

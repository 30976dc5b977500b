//! Direct delivery: the server process itself gets the accepted sockets, through the preload library.

pub mod attach;

pub mod guests;
pub mod keeping;
pub mod options;
mod places;
mod receiving;
mod record;
mod trial;
mod wire;

pub use record::PreloadRecord;
pub use trial::Target;
use trial::{Outcome, Patience};

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use tracing::warn;

use crate::sys::{mmap, reason};

/// The preload library, built by build.rs.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The library in a place from which servers can load it.
#[derive(Debug)]
pub struct Preload {
    /// Of a memory file; a file has its own.
    path: String,
    place: Place,
    /// Why it is not known whether the command loads it from there.
    doubt: Option<String>,
    /// Files that another one has followed: servers that run name them, and so nobody else may have these names.
    before: Mutex<Vec<Written>>,
}

#[derive(Debug)]
enum Place {
    /// A sealed memory file that servers open under our /proc/PID/fd.
    Ours(OwnedFd),
    /// One that servers inherit.
    Inherited(OwnedFd),
    /// A file that only its owner can change, removed at our end.
    File(Mutex<Written>),
}

/// A file of ours.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// While we live.
    lock: Option<Flock<File>>,
}

/// Where the library may be put.
#[derive(Debug)]
enum Kind {
    Ours,
    Inherited,
    In(PathBuf),
}

/// Inherited descriptors of ours are above those that programs use, close or count.
pub const INHERITED_FD: RawFd = 900;

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
        let (mut refused, patience) = (String::new(), Patience::new());
        for kind in kinds {
            let mut preload = match Self::put(&kind) {
                Ok(preload) => preload,
                Err(reason) => {
                    refused = reason;
                    continue;
                }
            };
            if matches!(kind, Kind::In(_))
                && target.changes_user()
                && !places::all_users_read(Path::new(&preload.path()))
            {
                refused = format!("not all users can read {}", preload.path());
                continue;
            }
            match target.tries(&preload.path(), preload.inherited(), &patience) {
                Outcome::Loads => return Ok(preload),
                Outcome::Untold(doubt) => {
                    preload.doubt = Some(doubt);
                    return Ok(preload);
                }
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
                Ok(Self::at(path, Place::Ours(file)))
            }
            Kind::Inherited => {
                let file = memory().and_then(|file| mmap::above(file, INHERITED_FD)).map_err(shown)?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(Self::at(path, Place::Inherited(file)))
            }
        }
    }

    fn at(path: String, place: Place) -> Self {
        Self { path, place, doubt: None, before: Mutex::default() }
    }

    fn path(&self) -> String {
        match &self.place {
            Place::Ours(_) | Place::Inherited(_) => self.path.clone(),
            Place::File(written) => locked(written).path.display().to_string(),
        }
    }

    /// The descriptor that servers have to inherit.
    pub fn inherited(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::Inherited(file) => Some(file.as_fd()),
            Place::Ours(_) | Place::File(_) => None,
        }
    }

    /// Where it is, in words.
    pub fn place(&self) -> String {
        let place = match &self.place {
            Place::Ours(_) => "a memory file of the daemon".to_owned(),
            Place::Inherited(_) => "a memory file that servers inherit".to_owned(),
            Place::File(written) => {
                let path = &locked(written).path;
                format!("a file in {}", path.parent().unwrap_or(path).display())
            }
        };
        match &self.doubt {
            Some(doubt) => format!("{place}; {doubt}"),
            None => place,
        }
    }

    fn in_directory(directory: &Path) -> Result<Self, String> {
        let written = Self::written_in(directory)?;
        Ok(Self::at(String::new(), Place::File(Mutex::new(written))))
    }

    fn written_in(directory: &Path) -> Result<Written, String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        // Each service has its own and removes it at its end. Those of a program whose place this one took are there.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = places::library(directory, std::process::id(), number);
            if !places::is_in_use(&path) {
                break path;
            }
        };
        let shown = path.display();
        if shown.to_string().contains([':', ' ']) {
            return Err(format!("{shown}: LD_PRELOAD takes no such path"));
        }
        places::remove_stale(directory);
        write(&path).map_err(|error| format!("{}: {}", directory.display(), reason(&error)))
    }

    /// The value of LD_PRELOAD: the library, followed by those already there. A file that somebody has removed, as what cleans
    /// temporary directories does, is put back: in such a directory another user could put a library of his own there. Where that
    /// fails, as when a session's directory goes with the session, or where programs may not be mapped from it any more, another
    /// directory takes its place.
    ///
    /// # Errors
    /// When it cannot be put back anywhere.
    pub fn value(&self) -> io::Result<String> {
        self.put_back(places::directories)?;
        let path = self.path();
        Ok(match std::env::var("LD_PRELOAD") {
            Ok(others) if !others.is_empty() => format!("{path}:{others}"),
            _ => path,
        })
    }

    fn put_back(&self, others: impl Fn() -> Vec<PathBuf>) -> io::Result<()> {
        let Place::File(written) = &self.place else { return Ok(()) };
        let mut written = locked(written);
        let maps = written.path.parent().is_none_or(|directory| !places::is_noexec(directory));
        let found = std::fs::symlink_metadata(&written.path);
        if maps && found.is_ok_and(|meta| (meta.dev(), meta.ino()) == written.identity) {
            return Ok(());
        }
        let again =
            if maps { write(&written.path) } else { Err(io::Error::other("its file system is mounted noexec now")) };
        let error = match again {
            Ok(again) => {
                *written = again;
                return Ok(());
            }
            Err(error) => error,
        };
        for directory in others().into_iter().filter(|directory| !places::is_noexec(directory)) {
            let Ok(other) = Self::written_in(&directory) else { continue };
            // Of whatever user the servers are.
            if !places::all_users_read(&other.path) {
                let _ = std::fs::remove_file(&other.path);
                continue;
            }
            warn!(
                "the preload library cannot be put back to {} ({}); it is {} from now on",
                written.path.display(),
                reason(&error),
                other.path.display()
            );
            let before = std::mem::replace(&mut *written, other);
            self.before.lock().unwrap_or_else(PoisonError::into_inner).push(before);
            return Ok(());
        }
        Err(error)
    }
}

fn locked(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the library to a new file.
fn write(path: &Path) -> io::Result<Written> {
    // A daemon with our pid may have left it behind.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut written = || {
        // The lock ends with this process, even if it is killed.
        let lock = Flock::lock(File::open(path)?, FlockArg::LockSharedNonblock).ok();
        file.write_all(LIBRARY)?;
        file.set_permissions(PermissionsExt::from_mode(0o444))?;
        let meta = file.metadata()?;
        Ok(Written { path: path.to_owned(), identity: (meta.dev(), meta.ino()), lock })
    };
    let written = written();
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

impl Drop for Preload {
    fn drop(&mut self) {
        if let Place::File(written) = &self.place {
            let _ = std::fs::remove_file(&locked(written).path);
        }
        for before in self.before.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = std::fs::remove_file(&before.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_somebody_has_removed_or_replaced_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let preload = Preload::in_directory(dir.path()).unwrap();
        let path = PathBuf::from(preload.path());
        preload.value().unwrap();
        std::fs::remove_file(&path).unwrap();
        preload.value().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), LIBRARY);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another user's").unwrap();
        preload.value().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), LIBRARY);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(preload.put_back(Vec::new).is_err());
    }

    #[test]
    fn a_library_whose_directory_is_gone_gets_another_one() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(other.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let preload = Preload::in_directory(dir.path()).unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        preload.put_back(|| vec![dir.path().to_owned(), other.path().to_owned()]).unwrap();
        let path = PathBuf::from(preload.path());
        assert_eq!((path.parent(), std::fs::read(&path).unwrap()), (Some(other.path()), LIBRARY.to_vec()));
        drop(preload);
        assert!(!path.exists());
    }
}

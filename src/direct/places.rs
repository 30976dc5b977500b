//! Directories for the library when servers of another user have to load it from a file.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid};

use crate::sys::process::Credentials;
use crate::sys::rights::as_server;

/// A user without rights.
const NOBODY: u32 = 65_534;

/// Prefix and suffix of a library's file name, around the pid and a number.
const NAME: (&str, &str) = ("roundsman-", "-preload.so");

/// Directories for a file that servers execute: those in which no other user can replace it.
pub fn directories() -> Vec<PathBuf> {
    let set = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let set = set.chain([std::env::temp_dir()]);
    // Root's own first: the variables may be another user's, left over from su.
    let all = ["/run"].map(PathBuf::from).into_iter().chain(set).chain(["/dev/shm", "/var/tmp"].map(PathBuf::from));
    all.filter(|directory| is_safe(directory)).collect()
}

pub fn library(directory: &Path, pid: u32, number: u32) -> PathBuf {
    directory.join(format!("{}{pid}-{number}{}", NAME.0, NAME.1))
}

/// Whether a daemon has a lock on a library: this one, before another program took its place.
pub fn is_in_use(path: &Path) -> bool {
    let look = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    look.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// Whether only root and our own user can replace files in a directory or any directory above it.
fn is_safe(directory: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let Ok(real) = directory.canonicalize() else { return false };
    real.ancestors().all(|part| {
        std::fs::metadata(part).is_ok_and(|meta| {
            let sticky = meta.mode() & 0o1000 != 0;
            meta.is_dir() && [0, own].contains(&meta.uid()) && (sticky || meta.mode() & 0o022 == 0)
        })
    })
}

/// Whether every user that our servers can become can read a file; only root's can become others.
pub fn all_users_read(file: &Path) -> bool {
    let other = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let nobody = Credentials { uid: other.0, gid: other.1, groups: Vec::new() };
    // Any other error: we cannot change users, and so no server can.
    let read = as_server(Some(&nobody), || std::fs::File::open(file).map(drop));
    !read.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
}

/// Whether no library can be mapped from a directory; not of one that is gone.
pub fn is_noexec(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC))
}

/// Removes the libraries of daemons that were killed. A live daemon holds a lock on its own, which also protects a daemon in
/// another container that shares the directory but not the pids.
pub fn remove_stale(directory: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(NAME.0).and_then(|rest| rest.strip_suffix(NAME.1));
        let Some(pid) = number.and_then(|number| number.split('-').next()?.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        let look = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        let Ok(file) = look else { continue };
        let ours = file.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == own);
        if ours && Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = std::fs::remove_file(&path);
        }
    }
}

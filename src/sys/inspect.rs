//! Reading what /proc shows of a process only to those who may trace it: without CAP_SYS_PTRACE, as in a container, root may
//! not look at other users' processes. Their users may.

use std::io;

use super::process::{Credentials, descendants};
use super::rights::with_files_of;

/// Reads, and where that is not permitted once more with the rights of the process's user.
///
/// # Errors
/// Those of `read`; `PermissionDenied` also for a process that its own user may not trace (prctl(2), PR_SET_DUMPABLE).
pub fn look<T: Send>(pid: u32, read: impl Fn() -> io::Result<T> + Sync) -> io::Result<T> {
    match read() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match Credentials::of_process(pid) {
            Some(owner) => with_files_of(&owner, &read),
            None => Err(error),
        },
        other => other,
    }
}

/// Whether a process, or one below it, runs as this user.
pub fn runs_as(root: u32, uid: u32) -> bool {
    descendants(root).into_iter().filter_map(Credentials::of_process).any(|one| one.uid.as_raw() == uid)
}

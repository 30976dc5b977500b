//! The running program's file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// An O_PATH handle on the running program image, so that workers are started from it even after the file was replaced.
pub fn own() -> io::Result<OwnedFd> {
    Ok(open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Where a process finds its descriptors.
const DESCRIPTORS: &str = "/proc/self/fd/";

/// The path by which a process that inherits an image runs it.
pub fn path_of(image: BorrowedFd<'_>) -> String {
    format!("{DESCRIPTORS}{}", image.as_raw_fd())
}

/// The descriptor of such a path.
pub fn at(path: &str) -> Option<RawFd> {
    path.strip_prefix(DESCRIPTORS)?.parse().ok()
}

//! Another program in place of this one: same process, same children, the descriptors that are to stay open.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::Mode;

use super::cvt;

/// A handle on a program's file, which stays the same when the file is replaced.
///
/// # Errors
/// As open(2).
pub fn open_image(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Whether a descriptor stays open when another program takes this one's place.
///
/// # Errors
/// EBADF.
pub fn stay_open(fd: RawFd, stays: bool) -> io::Result<()> {
    let flags = if stays { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: sets a flag of a descriptor; of one that is not open it is an error.
    cvt!(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// Holds all signals back in this thread. They are kept for the program that comes.
///
/// # Errors
/// As sigprocmask(2).
pub fn hold_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

/// Sends a signal to this thread, so that no other one takes it.
///
/// # Errors
/// As raise(3).
pub fn send_to_thread(signal: i32) -> io::Result<()> {
    Ok(nix::sys::signal::raise(nix::sys::signal::Signal::try_from(signal)?)?)
}

/// Takes those that were held back.
///
/// # Errors
/// As sigprocmask(2).
pub fn take_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Runs a program in place of this one, with one more variable in the environment. To be called by the first thread: the
/// parent-death signals of children belong to it.
///
/// # Errors
/// Why it is not run; then nothing has changed.
pub fn replace(
    image: BorrowedFd<'_>,
    words: impl Iterator<Item = impl AsRef<OsStr>>,
    (variable, value): (&str, &str),
) -> io::Result<Infallible> {
    let text = |text: &[u8]| CString::new(text).map_err(io::Error::from);
    let words = words.map(|word| text(word.as_ref().as_bytes())).collect::<io::Result<Vec<_>>>()?;
    let others = std::env::vars_os().filter(|(name, _)| name != variable);
    let mut variables = others
        .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<io::Result<Vec<_>>>()?;
    variables.push(text(format!("{variable}={value}").as_bytes())?);
    Ok(nix::unistd::fexecve(image, &words, &variables)?)
}

/// Gives this process the name that ps(1) shows: execve(2) of a descriptor leaves its number.
pub fn name_process(name: &std::ffi::CStr) {
    let _ = nix::sys::prctl::set_name(name);
}

/// A duplicate of a descriptor at another number, close-on-exec.
///
/// # Errors
/// As fcntl(2).
pub fn spare(fd: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: duplicates a descriptor by its number; the new one is owned by nothing else.
    unsafe { Ok(OwnedFd::from_raw_fd(cvt!(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 64))?)) }
}

/// Puts a spare back to the number of what it is a duplicate of, where it stays open for the program that comes.
///
/// # Errors
/// As dup2(2).
pub fn put_back(spare: &OwnedFd, number: RawFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: this process is about to run another program; whatever had the number is not used again.
    cvt!(unsafe { libc::dup2(spare.as_raw_fd(), number) }).map(drop)
}

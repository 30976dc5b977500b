//! Starting the server with its filter.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use crate::abi::attach::VARIABLE;
use crate::sys::seccomp::{self, Notifications};
use crate::sys::seccomp_filter::{Rule, filter};
use crate::sys::{scm, sock};

/// A server, and the calls that it waits for.
#[derive(Debug)]
pub struct Started {
    pub server: Child,
    pub notifications: Notifications,
}

/// Starts a program under a name of its own, with a filter.
///
/// # Errors
/// As fork(2), seccomp(2), execve(2).
pub fn start(
    program: &OsStr,
    name: &OsStr,
    arguments: impl Iterator<Item = OsString>,
    rules: &[Rule],
) -> io::Result<Started> {
    let (ours, theirs) = sock::seqpacket_pair()?;
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).env_remove(VARIABLE);
    seccomp::prepare(&mut command, filter(rules), theirs);
    let server = command.spawn()?;
    let mut fds = Vec::new();
    // It was sent before exec.
    scm::recv_fds(ours.as_fd(), &mut [0; 1], &mut fds)?;
    let notifications = fds.pop().ok_or(io::ErrorKind::UnexpectedEof)?.into();
    Ok(Started { server, notifications })
}

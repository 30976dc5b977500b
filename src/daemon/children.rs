//! The daemon's children and the processes below them: watched, reaped, ended.

use std::time::Instant;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use tracing::{debug, warn};

use super::Daemon;
use crate::sys::process;

impl Daemon {
    /// SIGCHLD may stand for many children: asks until there is none. The dead are looked at first and reaped
    /// last: until then their pids, and the sessions named after them, mean nobody else.
    pub(super) fn reap(&mut self, now: Instant) {
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::All, look) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    let own = pid.as_raw() as u32;
                    if !self.services.iter_mut().any(|service| service.child_gone(own, status, &self.context, now)) {
                        debug!(pid = pid.as_raw(), "orphan reaped");
                    }
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    warn!("waitpid: {error}");
                    return;
                }
            }
        }
    }

    pub(super) fn end_all(&mut self) {
        for service in &self.services {
            service.pids().into_iter().for_each(process::kill_tree);
            service.remove_files(true);
        }
    }
}

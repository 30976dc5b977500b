//! The daemon's children: whose they are, reaped, ended.

use std::time::Instant;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use tracing::{debug, warn};

use super::Daemon;
use crate::service::Service;
use crate::sys::process;
use crate::worker::Context;
use crate::worker::children::Owner;

impl Daemon {
    /// SIGCHLD may stand for many children: asks until there is none. The dead are looked at first and reaped
    /// last: until then their pids, and the sessions named after them, mean nobody else.
    pub(super) fn reap(&mut self, now: Instant) {
        let mut tried = None;
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::All, look) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    let own = pid.as_raw() as u32;
                    // It may have given connections back at last.
                    self.read_relay(own);
                    if self.trial.as_ref().is_some_and(|trial| trial.is(own)) {
                        tried = Some((own, status));
                    }
                    match self.owner(own) {
                        Some((service, slot, context)) => service.on_exit(slot, own, status, context, now),
                        None => debug!(pid = own, "orphan reaped"),
                    }
                    self.context.children.remove(own);
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    if let Some((own, status)) = tried.take() {
                        self.tried(own, status);
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    warn!("waitpid: {error}");
                    return;
                }
            }
        }
    }

    /// The service and the slot of a server or relay worker; no slot: the server that all slots share.
    pub(super) fn owner(&mut self, pid: u32) -> Option<(&mut Service, Option<u32>, &Context)> {
        let Owner { service, slot } = self.context.children.owner(pid)?;
        let service = self.services.iter_mut().find(|one| one.id() == service)?;
        Some((service, slot, &self.context))
    }

    pub(super) fn end_all(&mut self) {
        for service in &self.services {
            service.pids().into_iter().for_each(process::kill_tree);
            service.remove_files(true);
        }
    }
}

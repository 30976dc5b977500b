//! Processes of a server that end while clients wait for room: what they had open is over, and nobody rings for it.

use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::Context;
use crate::handoff::page::CountersPage;
use crate::sys::process;

/// Token of every process that is watched.
pub(super) const DEATH: Token = Token(usize::MAX - 1);

/// The processes of a worker by pid; without a descriptor those that have ended.
#[derive(Debug, Default)]
pub(super) struct Processes(Vec<(u32, Option<OwnedFd>)>);

impl Processes {
    /// Watches all processes that have received connections.
    pub fn watch(&mut self, page: &CountersPage, cx: &Context) {
        let pids = page.pids();
        if pids.clone().eq(self.0.iter().map(|(pid, _)| *pid)) {
            return;
        }
        self.0.retain(|(pid, _)| pids.clone().any(|other| other == *pid));
        for pid in pids {
            if self.0.iter().any(|(other, _)| *other == pid) {
                continue;
            }
            match process::pidfd_open(pid) {
                Ok(fd) => {
                    // Unwatched, its end is seen at the next look in any case.
                    let _ = cx.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), DEATH, Interest::READABLE);
                    self.0.push((pid, Some(fd)));
                }
                Err(error) => {
                    if error.raw_os_error() == Some(libc::ESRCH) {
                        page.settle(pid);
                    }
                    self.0.push((pid, None));
                }
            }
        }
    }

    /// Counts what those had open that have ended as closed.
    pub fn settle(&mut self, page: &CountersPage) {
        for (pid, fd) in &mut self.0 {
            if fd.take_if(|fd| process::has_ended(fd)).is_some() {
                page.settle(*pid);
            }
        }
    }
}

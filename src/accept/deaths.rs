//! Processes of a server that end while clients wait for room: what they had open is over, and nobody rings for it.

use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::Context;
use crate::handoff::page::CountersPage;
use crate::sys::process;

/// Token of every process that is watched.
pub(super) const DEATH: Token = Token(usize::MAX - 1);

/// The processes of a worker by pid; without a descriptor those that have ended, had nothing open so far, or could not be
/// watched.
#[derive(Debug, Default)]
pub(super) struct Processes(Vec<(u32, Option<OwnedFd>)>);

impl Processes {
    /// Watches all processes that have connections open. To be called again: descriptors may run out, and pids come again.
    pub fn watch(&mut self, page: &CountersPage, cx: &Context) {
        let processes = page.processes();
        if !processes.clone().map(|(pid, _)| pid).eq(self.0.iter().map(|(pid, _)| *pid)) {
            let mut known = std::mem::take(&mut self.0);
            let mut watched = |pid| known.iter_mut().find(|(other, _)| *other == pid)?.1.take();
            self.0 = processes.clone().map(|(pid, _)| (pid, watched(pid))).collect();
        }
        let unwatched = self.0.iter_mut().zip(processes).filter(|((_, fd), (_, open))| fd.is_none() && *open);
        for ((pid, watched), _) in unwatched {
            match process::pidfd_open(*pid) {
                Ok(fd) => {
                    // Unwatched, its end is seen at the next look in any case.
                    let _ = cx.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), DEATH, Interest::READABLE);
                    *watched = Some(fd);
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => page.settle(*pid),
                Err(_) => {}
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_that_is_gone_had_open_is_closed_whenever_it_is_seen() {
        let (rescue, _rescues) = crossbeam_channel::unbounded();
        let cx = Context {
            poll: mio::Poll::new().unwrap(),
            rescue,
            report: Box::new(|_| {}),
            staged: std::cell::Cell::default(),
            passed: std::cell::Cell::default(),
            held: std::cell::Cell::default(),
        };
        let (page, _fd) = CountersPage::create().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let mut processes = Processes::default();
        page.receives(pid, 0);
        processes.watch(&page, &cx);
        // Another process of that number, or one that could not be watched before.
        for received in 1..3 {
            page.receives(0, 1);
            processes.watch(&page, &cx);
            assert_eq!((page.closed(), page.open()), (received, 0));
        }
    }
}

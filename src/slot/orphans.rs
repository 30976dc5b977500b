//! How a direct worker ends: whether it really did, and what it left behind.

use std::time::Instant;

use tracing::{info, warn};

use super::Slot;
use crate::sys::process;
use crate::worker::attachment::Attachment;
use crate::worker::server::StopRequest;
use crate::worker::start::MARK;

impl Slot {
    /// The process that we started is gone: whether another one has taken its place, with its stand-ins (gunicorn's USR2
    /// and the like). That one is the worker from now on.
    pub fn adopt_successor(&mut self, service: &str, at: usize) -> bool {
        let Some((server, attachment)) = self.direct_mut() else { return false };
        let own = process::children();
        let fit = |pid: &&u32| **pid != server.pid && attachment.leased.contains(pid) && own.contains(pid);
        let Some(&pid) = attachment.adopted.iter().find(fit) else { return false };
        info!(service, slot = at, pid, before = server.pid, "the server goes on in another process");
        server.pid = pid;
        // In a stop this one has to be asked, too.
        server.stop_request = StopRequest::NotSent;
        attachment.pid = Some(pid);
        true
    }

    /// Ends what outlived the server that it started (a shell, npm): nobody serves there any more.
    pub fn end_abandoned(&mut self, service: &str, at: usize, now: Instant) -> Option<Instant> {
        let (server, attachment) = self.direct_mut()?;
        if attachment.abandoned.take_if(|until| *until <= now).is_some() {
            let pid = server.pid;
            warn!(service, slot = at, pid, "the server exited but its launcher did not; launcher killed");
            process::kill_tree(pid);
        }
        attachment.abandoned
    }
}

/// Ends the processes of a server that is gone which escaped its session; their number. As a subreaper we are their
/// parent now; they are told by their environment, or by a queue of a worker that they hold. `known`: others of ours.
pub fn end_left_behind(known: &[u32], mark: &str, direct: Option<&Attachment>) -> usize {
    let orphans: Vec<u32> = process::children().into_iter().filter(|pid| !known.contains(pid)).collect();
    let queues = direct.into_iter().flat_map(|direct| direct.queues.values());
    let inodes: Vec<u64> = queues.filter_map(|queue| queue.inode()).collect();
    let entry = format!("{MARK}={mark}");
    let marked = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|part| part == entry.as_bytes())
    };
    let holders = process::holders(&orphans, &inodes);
    let ours: Vec<u32> = orphans.into_iter().filter(|pid| holders.contains(pid) || marked(*pid)).collect();
    ours.iter().for_each(|&pid| process::kill_tree(pid));
    ours.len()
}

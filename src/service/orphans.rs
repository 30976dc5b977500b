//! How a direct worker ends: whether it really did, and what it left behind.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::starting::MARK;
use super::{Service, SlotProcesses, Tools};
use crate::direct::attach::Secret;
use crate::sys::process;
use crate::worker::direct::DirectWorker;
use crate::worker::server::Told;

/// What we started has so long to follow the server that it started.
const GRACE: Duration = Duration::from_secs(1);

impl Service {
    /// A process that held a lease is gone.
    pub fn lease_ended(&mut self, pid: u32, secret: Secret, tools: &Tools, now: Instant) {
        let of = |slot: &&mut SlotProcesses| slot.direct.as_ref().is_some_and(|direct| direct.secret == secret);
        let retiring = self.slots.iter_mut().flat_map(|slot| &mut slot.retiring).filter_map(|old| old.direct.as_mut());
        if let Some(direct) = retiring.into_iter().find(|direct| direct.secret == secret) {
            direct.leased.remove(&pid);
            direct.pid = direct.pid.filter(|&first| first != pid).or(direct.leased.first().copied());
            return;
        }
        self.holder_ended(pid, secret, tools, now);
        let Some(slot) = self.slots.iter_mut().find(of) else { return };
        let started = slot.server.as_ref().map(|server| server.pid);
        let Some(direct) = &mut slot.direct else { return };
        direct.leased.remove(&pid);
        direct.adopted.remove(&pid);
        if direct.pid == Some(pid) {
            direct.pid = direct.leased.first().copied();
        }
        // Of a process that we started we hear otherwise.
        if direct.leased.is_empty() && started != Some(pid) {
            direct.abandoned = Some(now + GRACE);
        }
    }

    /// Ends what outlived the server that it started (a shell, npm): nobody serves there any more.
    pub(super) fn end_abandoned(&mut self, now: Instant) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let (Some(server), Some(direct)) = (&slot.server, &mut slot.direct) else { continue };
            if direct.abandoned.is_some_and(|until| until <= now) {
                direct.abandoned = None;
                let pid = server.pid;
                warn!(service = %self.config.name, slot = at, pid, "the server exited but its launcher did not; launcher killed");
                process::kill_tree(pid);
            }
        }
    }

    /// The process that we started is gone: whether another one has taken its place, with its stand-ins (gunicorn's USR2
    /// and the like). That one is the worker from now on.
    pub(super) fn has_successor(&mut self, at: usize) -> bool {
        let slot = &mut self.slots[at];
        let (Some(server), Some(direct)) = (&mut slot.server, &mut slot.direct) else { return false };
        let own = process::children();
        let fit = |pid: &&u32| **pid != server.pid && direct.leased.contains(pid) && own.contains(pid);
        let Some(&pid) = direct.adopted.iter().find(fit) else { return false };
        info!(service = %self.config.name, slot = at, pid, before = server.pid, "the server goes on in another process");
        server.pid = pid;
        // In a stop this one has to be told, too.
        server.told = Told::Nothing;
        direct.pid = Some(pid);
        true
    }

    /// Ends the processes of a server that is gone which escaped its session; their number. As a subreaper we are their
    /// parent now; they are known by their environment, or by a queue of a worker that they hold.
    pub(super) fn end_left_behind(&self, mark: &str, direct: Option<&DirectWorker>) -> usize {
        let known = self.pids();
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
}

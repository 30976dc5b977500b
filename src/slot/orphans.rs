//! How a direct worker ends: whether it really did, and what it left behind.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Slot;
use crate::sys::{inspect, process, sockets};
use crate::worker::attachment::Attachment;
use crate::worker::children::Children;
use crate::worker::instead;
use crate::worker::server::{Server, StopRequest};
use crate::worker::start::MARK;

impl Slot {
    /// The process that we started is gone: whether another one has taken its place, with its stand-ins (gunicorn's USR2
    /// and the like). That one is the worker from now on.
    pub fn adopt_successor(&mut self, service: &str, at: usize, children: &Children) -> bool {
        let Some((server, attachment)) = self.direct_mut() else { return false };
        let own = process::children();
        // Its number may be that of another worker's server by now.
        let free = |pid: u32| own.contains(&pid) && children.owner(pid).is_none();
        let fit = |pid: &&u32| **pid != server.pid && attachment.leased.contains(pid) && free(**pid);
        let Some(&pid) = attachment.adopted.iter().find(fit) else { return false };
        info!(name: "server-moved", service, slot = at, pid, before = server.pid, "the server goes on in another process");
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
            warn!(name: "worker-killed", service, slot = at, pid, "the server exited but its launcher did not; launcher killed");
            process::kill_tree(pid);
        }
        attachment.abandoned
    }
}

/// A process that puts itself into the background leaves its session a moment after its parent has ended (daemon(3)).
const LEAVES_WITHIN: Duration = Duration::from_millis(50);

/// Waits for that where a server has ended and others of its session have not: until then one that goes into the background
/// looks like a child that is about to end, too.
pub fn await_escape(server: u32) {
    let begin = Instant::now();
    let is_undecided =
        |&pid: &u32| pid != server && process::session_and_name(pid).is_some_and(|(session, _)| session == server);
    while process::children().iter().any(is_undecided) && begin.elapsed() < LEAVES_WITHIN {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a server that is gone had left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftBehind {
    /// Nothing in another session: what was in its own ended with it.
    Nothing,
    /// The server itself: the same program, or a process that listens.
    Itself,
    /// A process of that name.
    Another(String),
}

/// Ends the processes of a server that is gone which escaped its session. As a subreaper we are their parent now; they are
/// told by their environment, by a queue of a worker that they hold, or by the session of one that held a lease. `known` and
/// `children`: others of ours.
pub fn end_left_behind(known: &[u32], children: &Children, server: &Server, direct: Option<&Attachment>) -> LeftBehind {
    let is_worker = |pid: u32| known.contains(&pid) || children.owner(pid).is_some();
    let orphans: Vec<u32> = process::children().into_iter().filter(|pid| !is_worker(*pid)).collect();
    let queues = direct.into_iter().flat_map(|direct| direct.queues.values());
    let inodes: Vec<u64> = queues.filter_map(|queue| queue.inode()).collect();
    let entry = format!("{MARK}={}", server.mark);
    let marked = |pid: u32| {
        let environment = inspect::look(pid, || std::fs::read(format!("/proc/{pid}/environ"))).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|part| part == entry.as_bytes())
    };
    let holders = sockets::holders(&orphans, &inodes);
    let (ours, others): (Vec<u32>, Vec<u32>) =
        orphans.into_iter().partition(|pid| holders.contains(pid) || marked(*pid));
    // Those in its session may only not have ended yet.
    let escaped = ours.iter().filter(|&&pid| process::session_and_name(pid).is_some_and(|(own, _)| own != server.pid));
    let escaped: Vec<u32> = escaped.copied().collect();
    let name = |pid| process::session_and_name(pid).map(|(_, name)| name);
    let is_server =
        |&&pid: &&u32| holders.contains(&pid) || instead::listens_on(pid).is_some() || name(pid) == name(server.pid);
    let left = match (escaped.iter().find(is_server), escaped.first()) {
        (Some(_), _) => LeftBehind::Itself,
        (None, Some(&pid)) => LeftBehind::Another(name(pid).unwrap_or_default()),
        (None, None) => LeftBehind::Nothing,
    };
    // Without a listener, and with their titles in the place of the environment (nginx).
    let in_session = |pid: u32| {
        process::session_and_name(pid).is_some_and(|(session, _)| {
            !is_worker(session) && direct.is_some_and(|direct| direct.sessions.contains(session))
        })
    };
    let others = others.into_iter().filter(|&pid| in_session(pid));
    ours.into_iter().chain(others).for_each(process::kill_tree);
    left
}

//! Who gets the next connection: a pure choice over plain numbers.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

/// `--policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Strict turns among the workers that keep up (Node's SCHED_RR)
    Rr,
    /// Fewest connections, open or about to be
    LeastConn,
    /// By the client's address: the same client reaches the same worker
    IpHash,
    /// Workers accept by themselves (Node's SCHED_NONE)
    None,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rr => "rr",
            Self::LeastConn => "least-conn",
            Self::IpHash => "ip-hash",
            Self::None => "none",
        })
    }
}

/// One worker as the policy sees it, from a snapshot taken once per burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The slot's number: the identity that `ip-hash` hashes.
    pub slot: u32,
    /// Hand-offs not yet received, those of this burst included.
    pub pending: u32,
    /// The most that may be pending.
    pub cap: u32,
    /// Connections received and not yet closed.
    pub open: u64,
    /// Its oldest hand-off waits too long: passed over while another keeps up.
    pub behind: bool,
    /// Its queue was rescued and it has not woken up since: gets nothing.
    pub stalled: bool,
    /// Online for less than the slow-start time.
    pub young: bool,
    /// Turns under `rr` that it was passed over and has not had back.
    pub owed: u32,
}

/// The most turns that a worker can be owed: one that was away for long is not flooded when it is back.
pub const MAX_OWED: u32 = 256;

/// The rotation: where the next search begins, and who had the last turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    next: usize,
    last: Option<usize>,
}

impl Turn {
    /// A worker was inserted at `at`: the turn stays with the worker whose it was.
    pub fn inserted(&mut self, at: usize) {
        self.next += usize::from(at < self.next);
        self.last = None;
    }

    /// The worker at `at` was removed.
    pub fn removed(&mut self, at: usize) {
        self.next -= usize::from(at < self.next);
        self.last = None;
    }
}

impl Candidate {
    fn eligible(&self) -> bool {
        !self.stalled && self.pending < self.cap
    }
}

/// Index of the worker that gets the next connection, or `None` when no worker may get one.
///
/// Counts the choice as pending, and turns passed over as owed.
pub fn pick(policy: Policy, workers: &mut [Candidate], turn: &mut Turn, client: Option<IpAddr>) -> Option<usize> {
    let chosen = match (policy, client) {
        (Policy::IpHash, Some(client)) => by_hash(workers, client)?,
        (Policy::LeastConn, _) => {
            let chosen = least_loaded(workers, turn.next)?;
            turn.next = chosen + 1;
            chosen
        }
        // A client without an address (a Unix socket) cannot be hashed; under `none` the master places only
        // connections that it held while no worker was alive.
        (Policy::Rr | Policy::None | Policy::IpHash, _) => {
            let chosen = in_turn(workers, turn.next)?;
            pass_turn(workers, turn, chosen);
            chosen
        }
    };
    workers[chosen].pending += 1;
    Some(chosen)
}

/// Who is passed over is owed a turn; who is owed one gets it back as a second in a row, never more than two.
fn pass_turn(workers: &mut [Candidate], turn: &mut Turn, chosen: usize) {
    for at in rotation(workers.len(), turn.next).take_while(|&at| at != chosen) {
        workers[at].owed = (workers[at].owed + 1).min(MAX_OWED);
    }
    let worker = &mut workers[chosen];
    if worker.owed > 0 && turn.last != Some(chosen) {
        worker.owed -= 1;
        *turn = Turn { next: chosen, last: Some(chosen) };
    } else {
        *turn = Turn { next: chosen + 1, last: Some(chosen) };
    }
}

/// Indices in order of rotation.
fn rotation(len: usize, turn: usize) -> impl Iterator<Item = usize> {
    let start = if turn < len { turn } else { 0 };
    (start..len).chain(0..start)
}

fn in_turn(workers: &[Candidate], turn: usize) -> Option<usize> {
    let keeps_up = |&at: &usize| workers[at].eligible() && !workers[at].behind;
    rotation(workers.len(), turn).find(keeps_up).or_else(|| {
        let eligible = rotation(workers.len(), turn).filter(|&at| workers[at].eligible());
        eligible.min_by_key(|&at| workers[at].pending)
    })
}

/// What is pending is open in a moment: counting only what is open would let whoever receives fastest have most.
fn least_loaded(workers: &[Candidate], turn: usize) -> Option<usize> {
    let total: u64 = workers.iter().map(|worker| worker.open).sum();
    let mean = total / workers.len().max(1) as u64;
    // Where all are young nobody is a newcomer.
    let slow_start = workers.iter().any(|worker| !worker.young);
    let load = |worker: &Candidate| if worker.young && slow_start { worker.open.max(mean) } else { worker.open };
    rotation(workers.len(), turn).filter(|&at| workers[at].eligible()).min_by_key(|&at| {
        let worker = &workers[at];
        (worker.behind, load(worker) + u64::from(worker.pending), worker.pending)
    })
}

/// Rendezvous hashing (Thaler and Ravishankar, 1996): a slot that leaves moves only its own clients.
fn by_hash(workers: &[Candidate], client: IpAddr) -> Option<usize> {
    let eligible = (0..workers.len()).filter(|&at| workers[at].eligible());
    eligible.max_by_key(|&at| weight(client, workers[at].slot))
}

/// Under `ip-hash`: index of the worker that a client belongs to, whether or not it has room now.
pub fn home(workers: &[Candidate], client: IpAddr) -> Option<usize> {
    let alive = (0..workers.len()).filter(|&at| !workers[at].stalled);
    alive.max_by_key(|&at| weight(client, workers[at].slot))
}

fn weight(client: IpAddr, slot: u32) -> u64 {
    let mut hasher = SipHasher13::new();
    match client {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.write_u32(slot);
    hasher.finish()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

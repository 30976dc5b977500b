//! The choice of the worker for the next connection: pure, over plain numbers.

use super::hash::{Key, hashed};
use super::weighted::{self, Slack};

/// `--policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// In turn among the workers with the fewest connections
    Rr,
    /// Fewest connections, open or about to be
    LeastConn,
    /// By the client's address: the same client reaches the same worker
    IpHash,
    /// By a key: the same key reaches the same worker
    Hash,
    /// Workers accept by themselves (Node's SCHED_NONE)
    None,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rr => "rr",
            Self::LeastConn => "least-conn",
            Self::IpHash => "ip-hash",
            Self::Hash => "hash",
            Self::None => "none",
        })
    }
}

impl Policy {
    /// Whether connections belong to workers.
    pub fn hashes(self) -> bool {
        matches!(self, Self::IpHash | Self::Hash)
    }
}

/// One worker as the policy sees it, from a snapshot taken once per burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Hashed with a key.
    pub slot: u32,
    /// Hand-offs not yet received, including those of this burst.
    pub pending: u32,
    /// The most that may be pending.
    pub cap: u32,
    /// How many more it may have, pending or open; `u32::MAX` without a limit.
    pub room: u32,
    /// Connections received and not yet closed.
    pub open: u64,
    /// Its oldest hand-off is too old: passed over while another worker keeps up.
    pub behind: bool,
    /// Its queue was rescued and it has not received since: gets nothing.
    pub stalled: bool,
    /// Online for less than the slow-start time.
    pub young: bool,
    /// Its share beside the others, 0 to 256; 0: gets nothing new.
    pub weight: u16,
    /// The weight in percent, less while it has just started (`--slow-start`); 0 with a weight of 0 only.
    pub share: u32,
    /// Among different shares: what it has been credited for its next turn.
    pub credit: i64,
    /// Under `rr`: it has had fewer in hand than any other since it came. It takes its turn and no more.
    pub newcomer: bool,
    /// Turns of `rr` that it missed while it was behind or stalled, and has not been given back.
    pub owed: u32,
}

/// The most turns that a worker can be owed, so that one that comes back after a long stall is not flooded.
pub const MAX_OWED: u32 = 256;

/// The rotation: where the next search begins, and the worker that had the last turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    next: usize,
    last: Option<usize>,
    /// Whether the workers' shares differ.
    pub uneven: bool,
    /// Under `rr`: what the comparison of all loads found, kept up to date since; `None` where they have to be compared.
    least: Option<Least>,
}

/// The least load of all workers that keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Least {
    /// None has less.
    load: u64,
    /// The most that a worker may have to get one more.
    most: u64,
    /// No more workers than this have just that load.
    count: usize,
}

impl Least {
    fn new(load: u64, count: usize) -> Self {
        Self { load, most: load + load.isqrt(), count }
    }
}

impl Turn {
    /// Loads fell, or workers may get connections again, in a way that [`Turn::fell`] was not called for.
    pub fn loads_changed(&mut self) {
        self.least = None;
    }

    /// The load of a worker fell, or it may get connections again.
    pub fn fell(&mut self, worker: &Candidate) {
        if let Some(least) = &mut self.least
            && worker.keeps_up()
        {
            let load = worker.load();
            if worker.newcomer {
                self.least = None;
            } else if load < least.load {
                *least = Least::new(load, 1);
            } else if load == least.load {
                least.count = least.count.saturating_add(1);
            }
        }
    }

    /// A worker with this load gets a connection.
    fn rises(&mut self, from: u64) {
        if let Some(least) = &mut self.least
            && from == least.load
        {
            least.count = least.count.saturating_sub(1);
            if least.count == 0 {
                // How many have that is not known.
                *least = Least::new(from + 1, usize::MAX);
            }
        }
    }

    /// A worker was inserted at `at`; the next turn stays with the same worker.
    pub fn inserted(&mut self, at: usize) {
        self.next += usize::from(at < self.next);
        (self.last, self.least) = (None, None);
    }

    /// The worker at `at` was removed.
    pub fn removed(&mut self, at: usize) {
        self.next -= usize::from(at < self.next);
        (self.last, self.least) = (None, None);
    }

    /// The worker whose turn it is, if any keeps up, whatever its load.
    pub fn due(&self, workers: &[Candidate]) -> Option<usize> {
        // Nearly always the very next one.
        let first = start(workers.len(), self.next);
        if workers.get(first).is_some_and(Candidate::keeps_up) {
            return Some(first);
        }
        rotation(workers.len(), self.next).find(|&at| workers[at].keeps_up())
    }
}

impl Candidate {
    /// Whether it may get a connection.
    pub fn eligible(&self) -> bool {
        self.weight > 0 && !self.stalled && self.has_room()
    }

    /// Whether it may have one more, if it gets any.
    pub fn has_room(&self) -> bool {
        self.pending < self.cap && self.room > 0
    }

    /// Whether it gets nothing, or less than others, until it receives.
    pub fn lags(&self) -> bool {
        self.stalled || self.behind || self.pending >= self.cap
    }

    /// Counts a connection for it.
    pub fn gets_one(&mut self) {
        self.pending += 1;
        self.room = self.room.saturating_sub(1);
    }

    pub fn keeps_up(&self) -> bool {
        self.eligible() && !self.behind
    }

    /// Connections in hand. Pending hand-offs count as open; otherwise the worker that receives fastest would win every
    /// pick.
    pub fn load(&self) -> u64 {
        self.open + u64::from(self.pending)
    }
}

/// Whether the workers take turns: without a key (a Unix socket has no address) nothing can be hashed; under `none` the master
/// places only connections that it held while no worker was alive.
pub fn takes_turns(policy: Policy, key: Option<Key>) -> bool {
    match policy {
        Policy::Rr | Policy::None => true,
        Policy::IpHash | Policy::Hash => !matches!(key, Some(Key::Address(_) | Key::Digest(_))),
        Policy::LeastConn => false,
    }
}

/// Returns the index of the worker that gets the next connection, or `None` if no worker may get one. Counts the choice as
/// pending, and turns missed by workers that do not keep up as owed.
pub fn pick(policy: Policy, workers: &mut [Candidate], turn: &mut Turn, key: Option<Key>) -> Option<usize> {
    let key = key.filter(|_| policy.hashes());
    let own = key.and_then(|key| hashed(workers, turn.uneven, key, Candidate::eligible));
    let chosen = match (policy, own) {
        (_, Some(own)) => own,
        (Policy::LeastConn, _) if turn.uneven => {
            let mean = mean_load(workers);
            weighted::pick(workers, Slack::None, |worker| mean.of(worker))?
        }
        _ if turn.uneven => weighted::pick(workers, Slack::Root, Candidate::load)?,
        (Policy::LeastConn, _) => {
            let chosen = least_loaded(workers, turn.next)?;
            turn.next = chosen + 1;
            chosen
        }
        (Policy::Rr | Policy::None | Policy::IpHash | Policy::Hash, _) => {
            let chosen = in_turn(workers, turn)?;
            turn.rises(workers[chosen].load());
            pass_turn(workers, turn, chosen);
            chosen
        }
    };
    workers[chosen].gets_one();
    Some(chosen)
}

/// A worker that is passed over while it does not keep up is owed a turn. It is given back as a second turn in a row, never
/// a third. One that is passed over for its load is owed nothing: it would be flooded as soon as it is done.
fn pass_turn(workers: &mut [Candidate], turn: &mut Turn, chosen: usize) {
    let first = start(workers.len(), turn.next);
    if first != chosen {
        for at in rotation(workers.len(), first).take_while(|&at| at != chosen) {
            let worker = &mut workers[at];
            if worker.weight > 0 && (worker.behind || worker.stalled) {
                worker.owed = (worker.owed + 1).min(MAX_OWED);
            }
        }
    }
    let worker = &mut workers[chosen];
    if worker.owed > 0 && turn.last != Some(chosen) {
        worker.owed -= 1;
        (turn.next, turn.last) = (chosen, Some(chosen));
    } else {
        (turn.next, turn.last) = (chosen + 1, Some(chosen));
    }
}

fn rotation(len: usize, turn: usize) -> impl Iterator<Item = usize> {
    let start = start(len, turn);
    (start..len).chain(0..start)
}

/// Where a rotation begins.
fn start(len: usize, turn: usize) -> usize {
    if turn < len { turn } else { 0 }
}

/// The next worker in turn that has about as few in hand as the least loaded one. The difference that is allowed is the
/// square root: many connections come and go by chance, and turns should not depend on that. A free worker goes before all
/// that are not.
fn in_turn(workers: &mut [Candidate], turn: &mut Turn) -> Option<usize> {
    let Some(due) = turn.due(workers) else {
        let eligible = rotation(workers.len(), turn.next).filter(|&at| workers[at].eligible());
        return eligible.min_by_key(|&at| workers[at].pending);
    };
    if workers[due].load() == 0 {
        return Some(due);
    }
    if let Some(least) = turn.least
        && let Some(at) = first_with(workers, due, least.most)
    {
        return Some(at);
    }
    turn.least = None;
    let (mut least, mut settled, mut count, mut newcomers) = (u64::MAX, u64::MAX, 0, false);
    // Plain loops: with 256 workers this is what a choice costs where nothing is known of the loads.
    for (from, part) in [(due, &workers[due..]), (0, &workers[..due])] {
        for (at, worker) in part.iter().enumerate() {
            if !worker.keeps_up() {
                continue;
            }
            let load = worker.load();
            if load == 0 {
                // The next search looks for another free one.
                turn.least = Some(Least::new(0, usize::MAX));
                return Some(from + at);
            }
            least = least.min(load);
            if worker.newcomer {
                newcomers = true;
            } else if load < settled {
                (settled, count) = (load, 1);
            } else {
                count += usize::from(load == settled);
            }
        }
    }
    let reached = if settled == u64::MAX { least } else { settled };
    let found = Least::new(reached, count);
    if newcomers {
        workers.iter_mut().filter(|worker| worker.load() >= reached).for_each(|worker| worker.newcomer = false);
    } else {
        turn.least = Some(found);
    }
    first_with(workers, due, found.most)
}

/// The first worker, from the one at `due` on, that keeps up and has no more than `most` in hand.
fn first_with(workers: &[Candidate], due: usize, most: u64) -> Option<usize> {
    let may = |worker: &Candidate| worker.load() <= most && worker.keeps_up();
    let (before, from) = workers.split_at(due);
    from.iter().position(may).map(|at| due + at).or_else(|| before.iter().position(may))
}

fn least_loaded(workers: &[Candidate], turn: usize) -> Option<usize> {
    let total: u64 = workers.iter().map(|worker| worker.open).sum();
    let mean = total / workers.len().max(1) as u64;
    // Slow start only matters beside workers that have been up for longer.
    let slow_start = workers.iter().any(|worker| !worker.young);
    let load = |worker: &Candidate| if worker.young && slow_start { worker.open.max(mean) } else { worker.open };
    rotation(workers.len(), turn).filter(|&at| workers[at].eligible()).min_by_key(|&at| {
        let worker = &workers[at];
        (worker.behind, load(worker) + u64::from(worker.pending), worker.pending)
    })
}

/// The mean of open connections, by share.
struct Mean {
    open: u64,
    shares: u64,
    /// Whether a newcomer counts as having that many.
    slow_start: bool,
}

fn mean_load(workers: &[Candidate]) -> Mean {
    Mean {
        open: workers.iter().map(|worker| worker.open).sum(),
        shares: workers.iter().map(|worker| u64::from(worker.share)).sum::<u64>().max(1),
        slow_start: workers.iter().any(|worker| !worker.young),
    }
}

impl Mean {
    fn of(&self, worker: &Candidate) -> u64 {
        let mean = if worker.young && self.slow_start { self.open * u64::from(worker.share) / self.shares } else { 0 };
        worker.open.max(mean) + u64::from(worker.pending)
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

//! A relay worker's upstreams: which address is next, which is skipped, and for how long. Time is an argument.
//!
//! All workers of the service share the turn, the failures, and the connection counts per upstream. If a name has several
//! addresses, each worker notices by itself which of them fail; the name is down when all do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::protocol::Resolved;
use crate::abi::page::upstream as counter;
use crate::addr::Upstream;
use crate::handoff::page::CountersPage;
use crate::handoff::upstreams::{Skip, UNRESOLVED, UpstreamTable, ns};

/// With all upstreams skipped, the one tried longest ago is tried again after this.
const LAST_RESORT: Duration = Duration::from_millis(100);
/// Virtual time in which each upstream has as many turns as its weight.
const ROUND: u64 = 1 << 24;
/// The most turns that one that was passed over can be owed.
const MAX_OWED: i64 = 2;
/// The most choices repeated because another worker took the turn meanwhile.
const MAX_RACES: usize = 8;

/// One address of an upstream.
#[derive(Debug)]
pub struct Target {
    pub address: Address,
    /// Index of its upstream in the configuration.
    group: usize,
    /// This worker's connections, open or being opened.
    open: usize,
    /// Used unless it is its upstream's only address; then the table has it.
    skip: Skip,
    /// Whether the name still resolves to it.
    listed: bool,
}

/// An address in the form connect(2) takes.
#[derive(Debug, Clone)]
pub enum Address {
    Tcp(SocketAddr, SockAddr),
    Unix(PathBuf, SockAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address, _) => write!(f, "{address}"),
            Self::Unix(path, _) => f.write_str(&crate::addr::unix(path)),
        }
    }
}

/// Whether a success or failure is to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    /// The first failure, or the first success after failures.
    Turned,
}

#[derive(Debug)]
pub struct Upstreams {
    groups: Vec<Group>,
    targets: Vec<Target>,
    table: UpstreamTable,
    page: Rc<CountersPage>,
    /// The same moment on two clocks; the table's times are on the second.
    start: (Instant, u64),
}

/// A turn among targets of different weights, in virtual time: a turn is as long as the weight is small, and who would be
/// done first is next (as in weighted fair queueing).
#[derive(Debug, Clone, Copy)]
struct Weighted {
    at: usize,
    /// The virtual time, and the end of the upstream's last turn, as they were read.
    now: u64,
    seen: u64,
    /// Begin and end of the turn, after `now`.
    start: i64,
    finish: i64,
}

/// An upstream of the configuration.
#[derive(Debug)]
struct Group {
    upstream: Upstream,
    /// As configured; see [`Upstreams::weight`].
    weight: u16,
    backup: bool,
    /// Number of its addresses with `listed`.
    listed: usize,
}

impl Upstreams {
    /// `start` is one moment, as an `Instant` and in nanoseconds of the monotonic clock.
    pub fn new(resolved: Vec<Resolved>, table: UpstreamTable, page: Rc<CountersPage>, start: (Instant, u64)) -> Self {
        let mut upstreams = Self { groups: Vec::new(), targets: Vec::new(), table, page, start };
        for (group, resolved) in resolved.into_iter().enumerate() {
            let Resolved { upstream, weight, backup, .. } = &resolved;
            upstreams.groups.push(Group { upstream: upstream.clone(), weight: *weight, backup: *backup, listed: 0 });
            if let Upstream::Unix(path) = &resolved.upstream
                && let Ok(address) = SockAddr::unix(path)
            {
                upstreams.add(group, Address::Unix(path.clone(), address));
                upstreams.groups[group].listed = 1;
            }
            upstreams.update(group, &resolved.addresses, start.0);
        }
        upstreams
    }

    fn ns(&self, now: Instant) -> u64 {
        self.start.1 + ns(now.saturating_duration_since(self.start.0))
    }

    fn add(&mut self, group: usize, address: Address) {
        let target = Target { address, group, open: 0, skip: Skip::default(), listed: true };
        // The entry of an unlisted address without connections can be used again.
        match self.targets.iter_mut().find(|old| !old.listed && old.open == 0) {
            Some(place) => *place = target,
            None => self.targets.push(target),
        }
    }

    /// Takes the result of a lookup. An empty one changes nothing: old addresses are better than none.
    pub fn update(&mut self, group: usize, addresses: &[SocketAddr], now: Instant) {
        if addresses.is_empty() {
            return;
        }
        for target in self.targets.iter_mut().filter(|target| target.group == group) {
            target.listed = matches!(&target.address, Address::Tcp(address, _) if addresses.contains(address));
        }
        for &address in addresses {
            let known = |target: &Target| matches!(target.address, Address::Tcp(known, _) if known == address);
            if !self.targets.iter().any(|target| target.group == group && known(target)) {
                self.add(group, Address::Tcp(address, address.into()));
                self.table.moved(group, self.ns(now));
            }
        }
        let listed = self.targets.iter().filter(|target| target.listed && target.group == group).count();
        if let Some(group) = self.groups.get_mut(group) {
            group.listed = listed;
        }
    }

    /// A target's group, name and port, if it has a name that can be looked up again.
    pub fn name(&self, at: usize) -> Option<(usize, String, u16)> {
        self.group_name(self.targets.get(at)?.group)
    }

    /// A target's place in the configuration.
    pub fn group(&self, at: usize) -> Option<usize> {
        self.targets.get(at).map(|target| target.group)
    }

    fn group_name(&self, group: usize) -> Option<(usize, String, u16)> {
        match &self.groups.get(group)?.upstream {
            Upstream::Host { host, port } if host.parse::<std::net::IpAddr>().is_err() => {
                Some((group, host.clone(), *port))
            }
            _ => None,
        }
    }

    /// Names without any address.
    pub fn unresolved(&self) -> Vec<(usize, String, u16)> {
        let empty = |&group: &usize| !self.targets.iter().any(|target| target.listed && target.group == group);
        (0..self.groups.len()).filter(empty).filter_map(|group| self.group_name(group)).collect()
    }

    /// Whether it is its upstream's only address and so shares the upstream's state in the table.
    fn is_alone(&self, target: &Target) -> bool {
        self.groups.get(target.group).is_some_and(|group| group.listed <= 1)
    }

    fn skip(&self, at: usize, now: u64) -> Skip {
        let target = &self.targets[at];
        if self.is_alone(target) { self.table.skip(target.group, now) } else { target.skip }
    }

    fn until(&self, at: usize, now: u64) -> u64 {
        let target = &self.targets[at];
        if self.is_alone(target) { self.table.until(target.group, now) } else { target.skip.until }
    }

    /// Open connections per address: the mean over all workers, then those of this worker.
    fn load(&self, at: usize) -> (u64, usize) {
        let target = &self.targets[at];
        let listed = self.groups.get(target.group).map_or(1, |group| group.listed).max(1);
        (self.table.open(target.group) / listed as u64, if listed > 1 { target.open } else { 0 })
    }

    /// The weight of a target's upstream, which each of its addresses has.
    fn weight(&self, at: usize) -> u64 {
        let group = self.targets[at].group;
        let configured = || self.groups.get(group).map_or(1, |group| group.weight);
        u64::from(self.table.weight(group).unwrap_or_else(configured))
    }

    fn is_backup(&self, at: usize) -> bool {
        self.groups.get(self.targets[at].group).is_some_and(|group| group.backup)
    }

    /// Chooses the next target and counts it as open: of the targets not skipped the one with the fewest connections, in turn;
    /// in proportion to their weights where these differ. Backups only when no other is left. With all of them skipped, the one
    /// tried longest ago, if that is [`LAST_RESORT`] ago.
    pub fn pick(&mut self, now: Instant) -> Option<usize> {
        let now = self.ns(now);
        let len = self.targets.len();
        let mut races = 0;
        let at = loop {
            let turn = self.table.turn();
            let start = if turn < len { turn } else { 0 };
            let order = (start..len).chain(0..start);
            let order = order.filter(|&at| self.targets[at].listed && self.weight(at) > 0);
            let usable = order.clone().filter(|&at| self.until(at, now) <= now);
            let backup = usable.clone().all(|at| self.is_backup(at));
            let usable = usable.filter(|&at| self.is_backup(at) == backup);
            let mut weights = usable.clone().map(|at| self.weight(at));
            let weight = weights.next();
            let up = if weights.all(|other| Some(other) == weight) {
                usable.min_by_key(|&at| self.load(at))
            } else {
                let chosen = self.weighted(usable)?;
                if self.take_weighted(chosen) || races == MAX_RACES {
                    // Where the next search begins matters only among equals.
                    self.table.take_turn(turn, chosen.at + 1);
                    break chosen.at;
                }
                races += 1;
                continue;
            };
            let last_tried = |at: usize| self.skip(at, now).tried;
            let rested = |&at: &usize| now.saturating_sub(last_tried(at)) >= ns(LAST_RESORT);
            let at = up.or_else(|| order.min_by_key(|&at| last_tried(at)).filter(rested))?;
            if self.table.take_turn(turn, at + 1) || races == MAX_RACES {
                break at;
            }
            races += 1;
        };
        let (down, alone) = (self.until(at, now) != 0, self.is_alone(&self.targets[at]));
        let target = &mut self.targets[at];
        target.open += 1;
        // One client tries whether it is back; others go elsewhere meanwhile.
        if down && alone {
            self.table.trying(target.group, now);
        } else if down {
            target.skip = target.skip.trying(now);
        }
        self.table.opened(target.group);
        self.page.add_upstream(target.group, counter::ATTEMPTS, 1);
        Some(at)
    }

    /// The choice among targets of different weights: in turn among those that have no more connections for their weight than
    /// the others would have with one more.
    fn weighted(&self, usable: impl Iterator<Item = usize> + Clone) -> Option<Weighted> {
        let load = |at: usize| (self.load(at).0, self.weight(at));
        let with_one_more = usable.clone().map(load).map(|(open, weight)| (open + 1, weight));
        let (open, weight) = with_one_more.min_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)))?;
        let fair = usable.filter(|&at| load(at).0 * weight < open * load(at).1);
        fair.map(|at| self.turn_of(at)).min_by_key(|turn| (turn.finish, self.load(turn.at).1))
    }

    /// The next turn of a target, as far as its upstream's weight is concerned.
    fn turn_of(&self, at: usize) -> Weighted {
        let group = self.targets[at].group;
        let listed = self.groups.get(group).map_or(1, |group| group.listed).max(1) as u64;
        let length = (ROUND / (self.weight(at).max(1) * listed)).max(1) as i64;
        let (now, seen) = self.table.virtual_time(group);
        // One that was passed over catches up by two turns at most.
        let start = (seen.wrapping_sub(now) as i64).clamp(-MAX_OWED * length, length);
        Weighted { at, now, seen, start, finish: start + length }
    }

    fn take_weighted(&self, Weighted { at, now, seen, start, finish }: Weighted) -> bool {
        let moved = |by: i64| now.wrapping_add_signed(by);
        self.table.take_weighted_turn(self.targets[at].group, seen, moved(finish), (now, moved(start.max(0))))
    }

    pub fn address(&self, at: usize) -> Option<&Address> {
        Some(&self.targets.get(at)?.address)
    }

    /// A client's connection was established.
    pub fn established(&mut self, at: usize) -> Change {
        if let Some(target) = self.targets.get(at) {
            self.page.add_upstream(target.group, counter::CONNECTIONS, 1);
        }
        self.succeeded(at)
    }

    /// The target accepted a connection.
    pub fn succeeded(&mut self, at: usize) -> Change {
        let Some(target) = self.targets.get_mut(at) else { return Change::None };
        target.skip = Skip::default();
        if self.table.set_up(target.group) { Change::Turned } else { Change::None }
    }

    /// A connection could not be established: the target is skipped for a growing time.
    pub fn failed(&mut self, at: usize, now: Instant, error: &io::Error) -> Change {
        self.closed(at);
        let now = self.ns(now);
        let Some(target) = self.targets.get(at) else { return Change::None };
        let (group, alone) = (target.group, self.is_alone(target));
        self.table.error(group, error.raw_os_error().unwrap_or(libc::EIO), now);
        if alone {
            return self.set_down(group, self.table.skip(group, now).failed(now));
        }
        self.targets[at].skip = self.targets[at].skip.failed(now);
        let mut listed = self.targets.iter().filter(|target| target.listed && target.group == group);
        if listed.any(|target| !target.skip.is_down()) {
            return Change::None;
        }
        self.set_down(group, self.targets[at].skip)
    }

    fn set_down(&self, group: usize, skip: Skip) -> Change {
        if self.table.set_down(group, skip) { Change::Turned } else { Change::None }
    }

    /// A name did not resolve.
    pub fn missing(&self, group: usize, now: Instant) -> Change {
        let now = self.ns(now);
        self.table.error(group, UNRESOLVED, now);
        self.set_down(group, self.table.skip(group, now).failed(now))
    }

    /// A connection or an attempt has ended.
    pub fn closed(&mut self, at: usize) {
        if let Some(target) = self.targets.get_mut(at) {
            target.open = target.open.saturating_sub(1);
            self.table.closed(target.group, 1);
            self.page.add_upstream(target.group, counter::ENDED, 1);
        }
    }

    /// Counts bytes to a target and from it.
    pub fn moved(&self, at: usize, forth: u64, back: u64) {
        if let Some(target) = self.targets.get(at) {
            self.page.add_upstream(target.group, counter::BYTES_IN, forth);
            self.page.add_upstream(target.group, counter::BYTES_OUT, back);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "upstreams_tests.rs"]
mod tests;

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

/// An upstream of the configuration.
#[derive(Debug)]
struct Group {
    upstream: Upstream,
    /// Number of its addresses with `listed`.
    listed: usize,
}

impl Upstreams {
    /// `start` is one moment, as an `Instant` and in nanoseconds of the monotonic clock.
    pub fn new(resolved: Vec<Resolved>, table: UpstreamTable, page: Rc<CountersPage>, start: (Instant, u64)) -> Self {
        let mut upstreams = Self { groups: Vec::new(), targets: Vec::new(), table, page, start };
        for (group, resolved) in resolved.into_iter().enumerate() {
            upstreams.groups.push(Group { upstream: resolved.upstream.clone(), listed: 0 });
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

    /// Chooses the next target and counts it as open: of the targets not skipped the one with the fewest connections, in turn.
    /// With all of them skipped, the one tried longest ago, if that is [`LAST_RESORT`] ago.
    pub fn pick(&mut self, now: Instant) -> Option<usize> {
        let now = self.ns(now);
        let len = self.targets.len();
        let mut races = 0;
        let at = loop {
            let turn = self.table.turn();
            let start = if turn < len { turn } else { 0 };
            let order = (start..len).chain(0..start).filter(|&at| self.targets[at].listed);
            let usable = |&at: &usize| self.until(at, now) <= now;
            let up = order.clone().filter(usable).min_by_key(|&at| self.load(at));
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

//! The addresses behind a relay: which is next, which is skipped and for how long. Pure; time is an argument.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::protocol::{Resolved, Upstream};

/// How long an upstream is skipped after its first failure; doubled with each further one.
const FIRST_SKIP: Duration = Duration::from_millis(100);
/// The longest skip.
const LONGEST_SKIP: Duration = Duration::from_secs(15);
/// When no upstream is left, the one that waited longest is tried again this soon.
const LAST_RESORT: Duration = Duration::from_millis(100);

/// One address.
#[derive(Debug)]
pub struct Target {
    /// Where to connect.
    pub address: Address,
    /// Index of the upstream (as the user gave it) that it belongs to.
    group: usize,
    /// Connections open or being opened.
    open: usize,
    /// Consecutive failures.
    failures: u32,
    /// Until when it is skipped, and when it was last tried.
    skipped: Option<(Instant, Instant)>,
    /// The name still resolves to it.
    listed: bool,
}

/// An address in the form connect(2) takes.
#[derive(Debug, Clone)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr, SockAddr),
    /// A Unix socket.
    Unix(PathBuf, SockAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address, _) => write!(f, "{address}"),
            Self::Unix(path, _) => f.write_str(&super::protocol::unix(path)),
        }
    }
}

/// What changed by a success or a failure, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// As before.
    None,
    /// The first failure, or the first success after failures.
    Turned,
}

/// All addresses of a worker.
#[derive(Debug)]
pub struct Upstreams {
    groups: Vec<Upstream>,
    targets: Vec<Target>,
    turn: usize,
}

impl Upstreams {
    /// From the addresses that the master found.
    pub fn new(resolved: Vec<Resolved>) -> Self {
        let mut upstreams = Self { groups: Vec::new(), targets: Vec::new(), turn: 0 };
        for (group, resolved) in resolved.into_iter().enumerate() {
            if let Upstream::Unix(path) = &resolved.upstream
                && let Ok(address) = SockAddr::unix(path)
            {
                upstreams.add(group, Address::Unix(path.clone(), address));
            }
            upstreams.groups.push(resolved.upstream);
            upstreams.update(group, &resolved.addresses);
        }
        upstreams
    }

    fn add(&mut self, group: usize, address: Address) {
        let target = Target { address, group, open: 0, failures: 0, skipped: None, listed: true };
        // A place whose address is no longer listed and has no connections can be used again.
        match self.targets.iter_mut().find(|old| !old.listed && old.open == 0) {
            Some(place) => *place = target,
            None => self.targets.push(target),
        }
    }

    /// Takes what a name resolves to now. An empty answer changes nothing: old addresses beat none.
    pub fn update(&mut self, group: usize, addresses: &[SocketAddr]) {
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
            }
        }
    }

    /// The name behind a target, when it is one that can be resolved again.
    pub fn name(&self, at: usize) -> Option<(usize, String, u16)> {
        self.group_name(self.targets.get(at)?.group)
    }

    fn group_name(&self, group: usize) -> Option<(usize, String, u16)> {
        match self.groups.get(group)? {
            Upstream::Host { host, port } if host.parse::<std::net::IpAddr>().is_err() => {
                Some((group, host.clone(), *port))
            }
            _ => None,
        }
    }

    /// Names that have no address at all.
    pub fn unresolved(&self) -> Vec<(usize, String, u16)> {
        let empty = |&group: &usize| !self.targets.iter().any(|target| target.listed && target.group == group);
        (0..self.groups.len()).filter(empty).filter_map(|group| self.group_name(group)).collect()
    }

    /// The next target: among those not skipped the fewest open, in turn. When all are skipped, the one that
    /// was tried longest ago, if that is long enough. Counts it as open.
    pub fn pick(&mut self, now: Instant) -> Option<usize> {
        let len = self.targets.len();
        let start = if self.turn < len { self.turn } else { 0 };
        let order = (start..len).chain(0..start).filter(|&at| self.targets[at].listed);
        let usable = |&at: &usize| self.targets[at].skipped.is_none_or(|(until, _)| until <= now);
        let up = order.clone().filter(usable).min_by_key(|&at| self.targets[at].open);
        let last_tried = |at: usize| self.targets[at].skipped.map(|(_, tried)| tried);
        let rested = |&at: &usize| last_tried(at).is_none_or(|tried| now.duration_since(tried) >= LAST_RESORT);
        let at = up.or_else(|| order.min_by_key(|&at| last_tried(at)).filter(rested))?;
        let target = &mut self.targets[at];
        target.open += 1;
        if let Some((until, tried)) = &mut target.skipped {
            // One client finds out whether it is back; the others keep away meanwhile.
            *tried = now;
            *until = (*until).max(now + FIRST_SKIP);
        }
        self.turn = at + 1;
        Some(at)
    }

    /// The target at an index that `pick` gave.
    pub fn address(&self, at: usize) -> Option<&Address> {
        Some(&self.targets.get(at)?.address)
    }

    /// A connection was established.
    pub fn succeeded(&mut self, at: usize) -> Change {
        let Some(target) = self.targets.get_mut(at) else { return Change::None };
        target.failures = 0;
        if target.skipped.take().is_some() { Change::Turned } else { Change::None }
    }

    /// A connection could not be established: skip it for a growing time.
    pub fn failed(&mut self, at: usize, now: Instant) -> Change {
        let Some(target) = self.targets.get_mut(at) else { return Change::None };
        target.open = target.open.saturating_sub(1);
        let first = target.skipped.is_none();
        // Failures of connections that were begun together count once.
        if target.skipped.is_none_or(|(_, tried)| now.duration_since(tried) >= FIRST_SKIP / 2 || first) {
            target.failures = target.failures.saturating_add(1);
        }
        let skip = FIRST_SKIP.saturating_mul(1 << target.failures.saturating_sub(1).min(10)).min(LONGEST_SKIP);
        target.skipped = Some((now + skip, now));
        if first { Change::Turned } else { Change::None }
    }

    /// A connection ended.
    pub fn closed(&mut self, at: usize) {
        if let Some(target) = self.targets.get_mut(at) {
            target.open = target.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn upstreams(n: u16) -> Upstreams {
        let one = |port| Resolved {
            upstream: Upstream::Host { host: "127.0.0.1".into(), port },
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        };
        Upstreams::new((1..=n).map(one).collect())
    }

    #[test]
    fn several_take_turns_and_the_one_with_fewest_open_comes_first() {
        let (mut all, now) = (upstreams(3), Instant::now());
        let order: Vec<_> = (0..6).map(|_| all.pick(now).unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        all.closed(1);
        assert_eq!(all.pick(now), Some(1));
    }

    #[test]
    fn one_that_fails_is_skipped_for_a_growing_time() {
        let (mut all, mut now) = (upstreams(2), Instant::now());
        assert_eq!(all.pick(now), Some(0));
        assert_eq!(all.failed(0, now), Change::Turned);
        assert!((0..10).all(|_| all.pick(now) == Some(1)), "the other gets everything");
        let mut gaps = Vec::new();
        for _ in 0..9 {
            let begin = now;
            let back = loop {
                now += Duration::from_millis(50);
                if all.pick(now) == Some(0) {
                    break now;
                }
            };
            gaps.push(back.duration_since(begin));
            assert_eq!(all.failed(0, now), Change::None);
        }
        assert!(gaps.windows(2).all(|pair| pair[0] <= pair[1]), "{gaps:?}");
        assert!(gaps.iter().all(|gap| *gap <= LONGEST_SKIP), "{gaps:?}");
        now += LONGEST_SKIP;
        assert_eq!(all.pick(now), Some(0));
        assert_eq!(all.succeeded(0), Change::Turned);
    }

    #[test]
    fn when_all_fail_the_longest_rested_is_tried_again_soon() {
        let (mut all, now) = (upstreams(2), Instant::now());
        for _ in 0..2 {
            let at = all.pick(now).unwrap();
            all.failed(at, now);
        }
        assert_eq!(all.pick(now), None);
        let later = now + LAST_RESORT;
        assert!(all.pick(later).is_some());
    }

    #[test]
    fn a_name_that_resolves_anew_changes_the_targets_but_an_empty_answer_does_not() {
        let host = Upstream::Host { host: "app".into(), port: 1 };
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, 1)));
        let mut all = Upstreams::new(vec![Resolved { upstream: host, addresses: vec![] }]);
        let now = Instant::now();
        assert_eq!(all.pick(now), None);
        assert_eq!(all.unresolved().len(), 1);
        all.update(0, &[a]);
        assert_eq!(all.pick(now), Some(0));
        all.update(0, &[]);
        assert_eq!(all.pick(now), Some(0));
        all.update(0, &[b]);
        let at = all.pick(now).unwrap();
        assert_eq!(all.address(at).unwrap().to_string(), "10.0.0.2:1");
    }
}

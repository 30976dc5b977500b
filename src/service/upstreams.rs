//! The upstreams of a service, over all its relay workers: which are down, and what was counted for each.

mod record;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

pub use self::record::UpstreamsRecord;
use super::draining::Force;
use crate::addr::Upstream;
use crate::config::Backend;
use crate::config::upstream::WeightedUpstream;
use crate::handoff::page::CountersPage;
use crate::handoff::upstreams::{Health, UpstreamCounts, UpstreamTable};
use crate::relay::protocol::ToWorker;
use crate::slot::Slot;
use crate::sys::clock::monotonic_ns;
use crate::sys::reason;
use crate::worker::relay::Readiness;

/// While all upstreams are down, one of them is tried this often: at the end of its skip time, within these bounds.
const PROBE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Upstreams may be given twice, to get two turns: an address, and how many of the same are before it.
type Name = (Upstream, usize);

/// The table that the workers share, and what they count.
#[derive(Debug)]
pub struct Upstreams {
    names: Arc<[Name]>,
    configured: Vec<WeightedUpstream>,
    /// Those set at run time, or by the configuration; the table has them, too, or 0 where one is drained.
    weights: Vec<u16>,
    /// Which `drain` keeps new connections from.
    drained: Vec<bool>,
    table: Arc<UpstreamTable>,
    /// The table's descriptor, for workers.
    fd: OwnedFd,
    workers: Vec<Counting>,
    /// What workers that are gone have counted, by upstream; errors also by tables that are gone.
    past: Vec<(Name, UpstreamCounts, u64)>,
    /// Which were down when the log last told of it.
    down: Vec<bool>,
    /// When the next attempt is due, while all are down.
    probe: Option<Instant>,
    /// Which slot made the last attempt.
    prober: usize,
}

/// A worker that counts.
#[derive(Debug)]
struct Counting {
    pid: u32,
    page: Arc<CountersPage>,
    names: Arc<[Name]>,
    table: Arc<UpstreamTable>,
}

/// An upstream now.
#[derive(Debug)]
pub struct State {
    /// As the user wrote it.
    pub address: String,
    /// Whether it accepts, and the last error.
    pub health: Health,
    /// Over all workers.
    pub counts: UpstreamCounts,
    /// The one that was set last.
    pub weight: u16,
    pub drain: bool,
    pub backup: bool,
}

fn names(upstreams: &[WeightedUpstream]) -> Arc<[Name]> {
    let before = |at: usize| upstreams[..at].iter().filter(|other| other.address == upstreams[at].address).count();
    upstreams.iter().enumerate().map(|(at, upstream)| (upstream.address.clone(), before(at))).collect()
}

impl Upstreams {
    /// Of a service that has any. Without a table (no memory, no descriptors) workers go on by themselves.
    pub(super) fn of(behind: &Backend) -> Option<Self> {
        let Backend::Upstreams(upstreams, _) = behind else { return None };
        match UpstreamTable::create() {
            Ok((table, fd)) => Some(Self::new(upstreams, table, fd)),
            Err(error) => {
                warn!("cannot share the state of upstreams among workers: {}", reason(&error));
                None
            }
        }
    }

    fn new(upstreams: &[WeightedUpstream], table: UpstreamTable, fd: OwnedFd) -> Self {
        Self {
            names: names(upstreams),
            configured: upstreams.to_vec(),
            weights: upstreams.iter().map(|upstream| upstream.weight).collect(),
            drained: vec![false; upstreams.len()],
            table: Arc::new(table),
            fd,
            workers: Vec::new(),
            past: Vec::new(),
            down: vec![false; upstreams.len()],
            probe: None,
            prober: 0,
        }
    }

    /// Other upstreams, for workers that start from now on. A weight that was set at run time holds until the configuration has
    /// another one than before; an address that is drained stays so while the configuration has it.
    pub(super) fn replace(&mut self, upstreams: &[WeightedUpstream]) -> io::Result<()> {
        let (table, fd) = UpstreamTable::create()?;
        for at in 0..self.names.len() {
            let errors = self.table.health(at).errors;
            self.remember(self.names[at].clone(), UpstreamCounts::default(), errors);
        }
        let mut new = Self::new(upstreams, table, fd);
        for (at, name) in new.names.iter().enumerate() {
            let before = self.names.iter().position(|known| known == name);
            if let Some(before) = before.filter(|&before| self.configured[before].weight == upstreams[at].weight) {
                new.weights[at] = self.weights[before];
                new.table.set_weight(at, self.weights[before]);
            }
            if self.names.iter().zip(&self.drained).any(|((known, _), &drained)| drained && *known == name.0) {
                new.drained[at] = true;
                new.table.set_weight(at, 0);
            }
        }
        *self = Self { workers: std::mem::take(&mut self.workers), past: std::mem::take(&mut self.past), ..new };
        Ok(())
    }

    /// The place of the first upstream of an address.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, address: &str) -> Result<usize, String> {
        let wanted = address.parse::<Upstream>().ok();
        self.names.iter().position(|(one, _)| Some(one) == wanted.as_ref()).ok_or_else(|| {
            let all: Vec<_> =
                self.names.iter().filter(|(_, before)| *before == 0).map(|(one, _)| one.to_string()).collect();
            format!("there is no upstream {address:?}; here are {}", all.join(", "))
        })
    }

    /// Sets the weight of all upstreams that have the address of the one at `at`, for the running workers, too. Returns the
    /// address, the weight before, and whether it is drained.
    ///
    /// # Errors
    /// Without `force`, when no other one takes connections.
    pub(super) fn set_weight(&mut self, at: usize, weight: u16, force: Force) -> Result<(String, u16, bool), String> {
        let (address, same) = self.same(at)?;
        if weight == 0 {
            self.may_lose(at, force)?;
        }
        let before = self.weights[at];
        for at in same {
            self.weights[at] = weight;
            self.pass_weight(at);
        }
        Ok((address, before, self.drained[at]))
    }

    /// Keeps new connections from all upstreams that have the address of the one at `at`, or gives them some again. Returns
    /// the address, and whether that is a change.
    ///
    /// # Errors
    /// To drain without `force`, when no other one takes connections.
    pub(super) fn set_drain(&mut self, at: usize, drain: bool, force: Force) -> Result<(String, bool), String> {
        let (address, same) = self.same(at)?;
        if drain {
            self.may_lose(at, force)?;
        }
        let before = self.drained[at];
        for at in same {
            self.drained[at] = drain;
            self.pass_weight(at);
        }
        Ok((address, before != drain))
    }

    /// Gives all upstreams new connections again. Returns the addresses of those that were drained.
    pub(super) fn undrain(&mut self) -> Vec<String> {
        let drained: Vec<_> = (0..self.names.len()).filter(|&at| std::mem::take(&mut self.drained[at])).collect();
        drained.iter().for_each(|&at| self.pass_weight(at));
        let first = drained.into_iter().filter(|&at| self.names[at].1 == 0);
        first.map(|at| self.names[at].0.to_string()).collect()
    }

    /// Connections to the address of the upstream at `at`, over all workers.
    pub(super) fn open(&self, at: usize) -> u64 {
        let states = self.states();
        let Some(address) = states.get(at).map(|state| &state.address) else { return 0 };
        states.iter().filter(|state| state.address == *address).map(|state| state.counts.open).sum()
    }

    /// The address of an upstream, and the places of all that have it.
    fn same(&self, at: usize) -> Result<(String, Vec<usize>), String> {
        let (address, _) = self.names.get(at).ok_or("there is no such upstream now")?;
        let same = (0..self.names.len()).filter(|&other| self.names[other].0 == *address).collect();
        Ok((address.to_string(), same))
    }

    /// The weight that workers go by.
    fn weight(&self, at: usize) -> u16 {
        if self.drained[at] { 0 } else { self.weights[at] }
    }

    fn pass_weight(&self, at: usize) {
        self.table.set_weight(at, self.weight(at));
    }

    /// # Errors
    /// Without `force`, when only this address takes connections.
    fn may_lose(&self, at: usize, force: Force) -> Result<(), String> {
        let address = &self.names[at].0;
        if force == Force::Yes || self.weight(at) == 0 || self.in_use().any(|other| self.names[other].0 != *address) {
            return Ok(());
        }
        Err(format!("{address} is the last upstream that takes connections; to do it all the same: --force"))
    }

    fn remember(&mut self, name: Name, counts: UpstreamCounts, errors: u64) {
        match self.past.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, sum, known)) => {
                *sum += counts;
                *known = known.saturating_add(errors);
            }
            None => self.past.push((name, counts, errors)),
        }
    }

    /// A worker is set up with the table, whose descriptor this is.
    pub(super) fn joined(&mut self, pid: u32, page: Arc<CountersPage>) -> BorrowedFd<'_> {
        self.workers.push(Counting { pid, page, names: self.names.clone(), table: self.table.clone() });
        self.fd.as_fd()
    }

    /// A worker is gone: what it counted stays, what it had open is over.
    pub(super) fn left(&mut self, pid: u32) {
        let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { return };
        let worker = self.workers.swap_remove(at);
        for (at, name) in worker.names.iter().enumerate() {
            let counts = worker.page.upstream(at);
            // One that was killed has not said so itself.
            worker.table.closed(at, counts.open);
            self.remember(name.clone(), UpstreamCounts { open: 0, ..counts }, 0);
        }
    }

    /// All of them, in the configuration's order.
    pub fn states(&self) -> Vec<State> {
        let mut states: Vec<_> = (0..self.names.len())
            .map(|at| {
                let past = self.past.iter().find(|(known, ..)| *known == self.names[at]);
                let (counts, errors) = past.map_or_else(Default::default, |(_, counts, errors)| (*counts, *errors));
                let mut health = self.table.health(at);
                health.errors = health.errors.saturating_add(errors);
                let (weight, drain, backup) = (self.weights[at], self.drained[at], self.configured[at].backup);
                State { address: self.names[at].0.to_string(), health, counts, weight, drain, backup }
            })
            .collect();
        for worker in &self.workers {
            for (at, name) in worker.names.iter().enumerate() {
                let place = if Arc::ptr_eq(&worker.names, &self.names) {
                    Some(at)
                } else {
                    self.names.iter().position(|known| known == name)
                };
                if let Some(state) = place.and_then(|place| states.get_mut(place)) {
                    state.counts += worker.page.upstream(at);
                }
            }
        }
        states
    }

    /// Clients whose worker has no upstream for them now.
    pub fn waiting(&self) -> u64 {
        self.workers.iter().map(|worker| worker.page.waiting()).sum()
    }

    /// Looks which are down, and says what has changed: once for the service, whichever worker found it out.
    pub(super) fn look(&mut self, service: &str, now: Instant) {
        let before = self.all_down();
        for (at, (upstream, _)) in self.names.iter().enumerate() {
            let health = self.table.health(at);
            if health.down == self.down[at] {
                continue;
            }
            self.down[at] = health.down;
            if health.down {
                let error = health.error().unwrap_or_default();
                warn!(name: "upstream-down", %service, %upstream, %error, "upstream down");
            } else {
                info!(name: "upstream-up", %service, %upstream, "upstream up again");
            }
        }
        if self.all_down() && !before {
            warn!(name: "upstreams-down", %service, waiting = self.waiting(), "all upstreams are down");
        }
        if self.all_down() {
            self.probe.get_or_insert(now + PROBE.0);
        } else {
            self.probe = None;
        }
    }

    /// Those that may get a connection while they are up.
    fn in_use(&self) -> impl Iterator<Item = usize> {
        (0..self.names.len()).filter(|&at| self.weight(at) > 0)
    }

    fn all_down(&self) -> bool {
        self.in_use().next().is_some() && self.in_use().all(|at| self.down[at])
    }

    /// How long until one may be tried again.
    fn pause(&self) -> Duration {
        let now = monotonic_ns();
        let until = self.in_use().map(|at| self.table.skip(at, now).until).min().unwrap_or(0);
        Duration::from_nanos(until.saturating_sub(now)).clamp(PROBE.0, PROBE.1)
    }

    /// While all are down one worker after the other tries one: no client may come to do it, since health checks keep them
    /// away.
    pub(super) fn step(&mut self, service: &str, slots: &[Slot], now: Instant) -> Option<Instant> {
        let due = self.probe?;
        let ready = |slot: &Slot| slot.relay().is_some_and(|relay| relay.readiness == Readiness::Ready);
        if !slots.iter().any(ready) || now < due {
            return Some(due).filter(|_| now < due);
        }
        self.look(service, now);
        self.probe?;
        self.probe = Some(now + self.pause());
        // Clients that wait try by themselves, and an upstream shall not see a connection without a client then.
        if self.waiting() == 0 {
            let mut others = slots.iter().enumerate().cycle().skip(self.prober + 1).take(slots.len());
            if let Some((at, slot)) = others.find(|(_, slot)| ready(slot)) {
                slot.relay().iter().for_each(|relay| relay.order(ToWorker::Probe));
                self.prober = at;
            }
        }
        self.probe
    }
}

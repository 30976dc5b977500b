//! The last 15 minutes of every service and slot, in bounded memory.
//!
//! A column has one point for each service and slot at one time. Columns are 5 s apart, and further apart where there are
//! so many slots that 15 minutes of them would be more than [`MAX_POINTS`]; or as far apart as [`History::every`] says, and
//! then they reach back less far.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::abi::page::latency;
use crate::control::status::{Daemon, ServiceState, SlotState};

/// How far back it reaches.
const SPAN: Duration = Duration::from_secs(15 * 60);
/// The shortest time from one column to the next.
const MIN_STEP: Duration = Duration::from_secs(5);
/// Points of all columns together: 1.3 MB.
const MAX_POINTS: usize = 80_000;
/// What a service takes besides its slots, in points.
const OF_SERVICE: usize = 10;
/// Points of a column; a daemon with more slots has a history of the first ones. The counters of two columns are 0.6 MB.
const MAX_SERIES: usize = 2_000;

/// One service or slot over the time since the column before.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Connections a second.
    pub rate: f32,
    pub open: u32,
    /// Resident memory in KiB.
    pub memory: u32,
    /// Tenths of a percent of one CPU.
    pub cpu: u16,
    /// Half of the hand-offs waited less than the bound of this latency bucket, counted from 1; 0: there were none.
    pub p50: u8,
    /// The same for 99 of 100.
    pub p99: u8,
}

/// The points of one service: its own, and its slots' in their order.
#[derive(Debug)]
pub struct Series {
    pub service: Arc<str>,
    pub all: Point,
    pub slots: Box<[Point]>,
}

#[derive(Debug)]
pub struct Column {
    pub at: SystemTime,
    pub services: Box<[Series]>,
}

impl Column {
    fn points(&self) -> usize {
        self.services.iter().map(|series| series.slots.len() + OF_SERVICE).sum()
    }
}

/// What is counted without end, of one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    connections: u64,
    latencies: [u64; latency::BUCKETS],
}

/// The counters at one time, by services and slots.
#[derive(Debug)]
struct Base {
    at: Instant,
    services: Vec<(Arc<str>, Vec<Counters>)>,
}

#[derive(Debug, Default)]
pub struct History {
    columns: VecDeque<(Instant, Arc<Column>)>,
    points: usize,
    /// The number of the first column that is kept, counted since the daemon's start.
    first: u64,
    last: Option<Base>,
    before: Option<Base>,
    /// The time from one column to the next, where it does not depend on their size.
    fixed: Option<Duration>,
}

impl History {
    /// With a column so often, however many slots there are.
    pub fn every(step: Duration) -> Self {
        Self { fixed: Some(step), ..Self::default() }
    }

    /// Adds a column, unless the last one is too recent.
    pub fn sample(&mut self, daemon: &Daemon, now: Instant) {
        let step = self.fixed.unwrap_or_else(|| step(series(daemon)));
        // A timer may fire a little early.
        if self.last.as_ref().is_some_and(|last| now + step / 10 < last.at + step) {
            return;
        }
        let base = Base::of(daemon, now);
        if let Some(last) = self.last.replace(base) {
            let column = Column { at: SystemTime::now(), services: points(daemon, Some(&last), now) };
            self.points += column.points();
            self.columns.push_back((now, Arc::new(column)));
            self.before = Some(last);
        }
        while self.columns.front().is_some_and(|(at, _)| now.duration_since(*at) > SPAN || self.points > MAX_POINTS) {
            if let Some((_, column)) = self.columns.pop_front() {
                self.points -= column.points();
                self.first += 1;
            }
        }
    }

    /// The points now: rates and waits of the last one or two steps.
    pub fn now(&self, daemon: &Daemon, now: Instant) -> Box<[Series]> {
        let step = self.fixed.unwrap_or(MIN_STEP);
        let recent = self.last.as_ref().filter(|last| self.before.is_none() || last.at + step <= now);
        points(daemon, recent.or(self.before.as_ref()), now)
    }

    /// The columns numbered `from` and later, and the number of the next one.
    pub fn since(&self, from: u64) -> (Vec<Arc<Column>>, u64) {
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let columns = self.columns.iter().skip(skipped).map(|(_, column)| column.clone()).collect();
        (columns, self.first + self.columns.len() as u64)
    }
}

/// The time from one column to the next with so many points in each.
pub fn step(series: usize) -> Duration {
    let fitting = MAX_POINTS / series.clamp(1, MAX_SERIES);
    (SPAN / u32::try_from(fitting).unwrap_or(u32::MAX)).max(MIN_STEP)
}

/// The points of a column.
pub fn series(daemon: &Daemon) -> usize {
    daemon.services.iter().map(|service| service.slots.len() + OF_SERVICE).sum()
}

/// What hand-offs of a [`Point`]'s bucket waited at most; `None` for bucket 0 (no hand-offs) and the last one (no bound).
pub fn bound(bucket: u8) -> Option<Duration> {
    let at = usize::from(bucket).checked_sub(1).filter(|&at| at + 1 < latency::BUCKETS)?;
    Some(Duration::from_nanos(latency::bound(at)))
}

impl Base {
    fn of(daemon: &Daemon, at: Instant) -> Self {
        let mut left = MAX_SERIES;
        let mut of = |service: &ServiceState| {
            left = left.checked_sub(OF_SERVICE)?;
            let slots: Vec<_> = service.slots.iter().take(left).map(Counters::of).collect();
            left -= slots.len();
            Some((service.name.as_str().into(), slots))
        };
        Self { at, services: daemon.services.iter().map_while(&mut of).collect() }
    }

    fn slots(&self, service: &str) -> Option<(&Arc<str>, &[Counters])> {
        let (name, slots) = self.services.iter().find(|(name, _)| **name == *service)?;
        Some((name, slots))
    }
}

impl Counters {
    fn of(slot: &SlotState) -> Self {
        // `connections` falls when some are taken back.
        Self { connections: slot.connections.saturating_add(slot.rescued), latencies: slot.counts.latencies }
    }

    fn since(&self, base: &Self) -> Self {
        // Servers write the latencies: they may do anything.
        let latencies = std::array::from_fn(|at| self.latencies[at].saturating_sub(base.latencies[at]));
        Self { connections: self.connections.saturating_sub(base.connections), latencies }
    }

    fn add(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.latencies.iter_mut().zip(other.latencies).for_each(|(sum, more)| *sum = sum.saturating_add(more));
    }

    /// The bucket, from 1, that so many of 100 hand-offs do not go beyond; 0 without hand-offs.
    fn quantile(&self, percent: u128) -> u8 {
        let all: u128 = self.latencies.iter().map(|&count| u128::from(count)).sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        for (at, &count) in self.latencies.iter().enumerate() {
            seen += u128::from(count);
            if seen >= wanted && all > 0 {
                return at as u8 + 1;
            }
        }
        0
    }
}

/// The points of a state, with rates since `base`.
fn points(daemon: &Daemon, base: Option<&Base>, now: Instant) -> Box<[Series]> {
    let time = base.map_or(0.0, |base| now.duration_since(base.at).as_secs_f32());
    let mut left = MAX_SERIES;
    let mut of = |service: &ServiceState| {
        left = left.checked_sub(OF_SERVICE)?;
        let known = base.and_then(|base| base.slots(&service.name));
        let (mut sum, mut all) = (Counters::default(), Point::default());
        let mut slots = Vec::with_capacity(service.slots.len().min(left));
        for (at, slot) in service.slots.iter().enumerate() {
            // A slot that is new has no rate yet.
            let new = Counters::of(slot);
            let counted = known.and_then(|(_, slots)| slots.get(at)).map(|old| new.since(old)).unwrap_or_default();
            let point = point(&counted, time, slot.open, slot.rss_bytes, slot.cpu);
            sum.add(&counted);
            all.open = all.open.saturating_add(point.open);
            all.memory = all.memory.saturating_add(point.memory);
            all.cpu = all.cpu.saturating_add(point.cpu);
            if slots.len() < left {
                slots.push(point);
            }
        }
        if let Some(server) = &service.server {
            let of_server = point(&Counters::default(), time, 0, server.rss_bytes, server.cpu);
            all.memory = all.memory.saturating_add(of_server.memory);
            all.cpu = all.cpu.saturating_add(of_server.cpu);
        }
        left -= slots.len();
        let rates = point(&sum, time, 0, 0, 0.0);
        all = Point { rate: rates.rate, p50: rates.p50, p99: rates.p99, ..all };
        // A name that stays is kept once.
        let name = known.map_or_else(|| service.name.as_str().into(), |(name, _)| name.clone());
        Some(Series { service: name, all, slots: slots.into() })
    };
    daemon.services.iter().map_while(&mut of).collect()
}

fn point(counted: &Counters, time: f32, open: u64, rss_bytes: u64, cpu: f64) -> Point {
    let limited = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Point {
        rate: if time > 0.0 { counted.connections as f32 / time } else { 0.0 },
        open: limited(open),
        memory: limited(rss_bytes / 1024),
        cpu: (cpu * 10.0).round().clamp(0.0, f64::from(u16::MAX)) as u16,
        p50: counted.quantile(50),
        p99: counted.quantile(99),
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;

//! A seeded simulation: random histories of crashes, slow starts, reloads, scaling, stops and clock jumps, through the same
//! decisions that the daemon takes. A failing seed is printed; `ROUNDSMAN_SEED=N` replays it.

use std::time::{Duration, Instant};

use super::*;
use crate::service::lifecycle::{Backoff, Event, Wanted, due_starts};

/// Histories; each has some two hundred events.
const HISTORIES: u64 = 100_000;

/// xorshift64*, so that a seed means the same history everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A process: it becomes ready at some time, or never, and dies at some time, or never.
#[derive(Clone, Debug)]
struct Worker {
    /// How many were started before it.
    started: u64,
    ready_at: Option<Instant>,
    dies_at: Option<Instant>,
    /// It minds its stop signal.
    obedient: bool,
    open: u32,
    pending: u32,
}

struct Old {
    worker: Worker,
    step: RetireStage,
    online: Instant,
    /// The accept thread has had the order; until then it sends on.
    cut_off: bool,
}

impl Old {
    fn receives(&self) -> bool {
        self.step == RetireStage::Serving || (matches!(self.step, RetireStage::Draining(_)) && !self.cut_off)
    }
}

struct SimSlot {
    lifecycle: Lifecycle,
    worker: Option<Worker>,
    old: Vec<Old>,
    failed: bool,
    stop_first: bool,
}

struct World {
    random: Random,
    now: Instant,
    times: Times,
    slots: Vec<SimSlot>,
    count: usize,
    wanted: Wanted,
    reload: Option<Reload>,
    /// Workers started before the last reload.
    reload_began: u64,
    /// Accepted and not yet placed; placed ones are in some worker; those that ended, or died with who had received them.
    held: u32,
    accepted: u64,
    ended: u64,
    started: u64,
    reaped: u64,
    backoff: Backoff,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let millis = Duration::from_millis;
        let now = Instant::now();
        let times = Times {
            min_uptime: millis(100 + random.below(1000)),
            listen_timeout: millis(500 + random.below(5000)),
            drain_timeout: millis(random.below(3000)),
            kill_timeout: millis(random.below(3000)),
            max_surge: 1 + random.below(3) as usize,
        };
        let backoff = Backoff { first: millis(100), longest: millis(2000), min_uptime: times.min_uptime, most: 10 };
        let count = 1 + random.below(5) as usize;
        let slots = (0..count).map(|_| SimSlot::new(now)).collect();
        Self {
            random,
            now,
            times,
            slots,
            count,
            wanted: Wanted::Running,
            reload: None,
            reload_began: 0,
            held: 0,
            accepted: 0,
            ended: 0,
            started: 0,
            reaped: 0,
            backoff,
        }
    }

    fn worker(&mut self) -> Worker {
        self.started += 1;
        let after = |now: Instant, millis: u64| now + Duration::from_millis(millis);
        let (ready, dies) = (self.random.below(1500), self.random.below(20_000));
        Worker {
            started: self.started - 1,
            ready_at: (!self.random.one_in(12)).then(|| after(self.now, ready)),
            dies_at: self.random.one_in(4).then(|| after(self.now, dies)),
            obedient: !self.random.one_in(6),
            open: 0,
            pending: 0,
        }
    }

    /// What the daemon does in one turn.
    fn turn(&mut self) {
        self.deaths();
        for at in 0..self.slots.len() {
            self.ready(at);
        }
        let lives: Vec<Lifecycle> = self.slots.iter().map(SimSlot::lifecycle).collect();
        for at in due_starts(self.now, self.wanted, &lives).0 {
            let worker = self.worker();
            let slot = &mut self.slots[at];
            assert!(slot.worker.is_none(), "a slot that has a worker is started");
            slot.worker = Some(worker);
            slot.stop_first = false;
            slot.lifecycle.apply(Event::Started, self.now, &self.backoff);
        }
        self.orders_arrive();
        self.retire();
        self.step_reload();
        let (now, running) = (self.now, self.wanted == Wanted::Running);
        for slot in self.slots.iter_mut().take(self.count) {
            if running && slot.lifecycle.phase == Phase::Stopping && slot.is_empty() {
                slot.lifecycle = Lifecycle::new(now);
            }
        }
        while self.slots.len() > self.count && self.slots.last().is_some_and(SimSlot::is_empty) {
            self.slots.pop();
        }
    }

    /// Orders to the accept thread arrive some time; one about a worker that died before is void.
    fn orders_arrive(&mut self) {
        for slot in &mut self.slots {
            for old in slot.old.iter_mut().filter(|old| old.step != RetireStage::Serving && !old.cut_off) {
                if self.random.one_in(3) {
                    old.cut_off = true;
                    self.held += std::mem::take(&mut old.worker.pending);
                }
            }
        }
    }

    fn deaths(&mut self) {
        for slot in &mut self.slots {
            if slot.worker.as_ref().is_some_and(|worker| worker.dies_at.is_some_and(|at| at <= self.now)) {
                let Some(dead) = slot.worker.take() else { continue };
                self.reaped += 1;
                self.held += dead.pending;
                self.ended += u64::from(dead.open);
                slot.lifecycle.apply(Event::Died, self.now, &self.backoff);
                let serving = slot.old.iter().position(|old| old.step == RetireStage::Serving);
                if let (Some(at), Wanted::Running) = (serving, self.wanted) {
                    let old = slot.old.swap_remove(at);
                    slot.worker = Some(old.worker);
                    slot.lifecycle.apply(Event::Restored(old.online), self.now, &self.backoff);
                    slot.failed = true;
                }
            }
            let (now, mut dead) = (self.now, Vec::new());
            slot.old.retain(|old| {
                let alive = old.worker.dies_at.is_none_or(|at| at > now);
                if !alive {
                    dead.push(old.worker.clone());
                }
                alive
            });
            for worker in dead {
                self.reaped += 1;
                self.held += worker.pending;
                self.ended += u64::from(worker.open);
            }
        }
    }

    fn ready(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let ready = slot.worker.as_ref().is_some_and(|worker| worker.ready_at.is_some_and(|at| at <= self.now));
        if ready && matches!(slot.lifecycle.phase, Phase::Launching { .. }) {
            slot.lifecycle.apply(Event::Ready, self.now, &self.backoff);
        }
    }

    fn retire(&mut self) {
        for slot in &mut self.slots {
            for old in &mut slot.old {
                let drained = old.cut_off && old.worker.open + old.worker.pending == 0;
                match due(self.now, &self.times, slot.lifecycle.phase, old.step, drained) {
                    RetireAction::Nothing => {}
                    RetireAction::RemoveFromRotation => {
                        let successor = matches!(slot.lifecycle.phase, Phase::Online { .. });
                        assert!(
                            successor,
                            "zero online because of us: a serving worker is cut off with nobody in its place"
                        );
                        old.step = RetireStage::Draining(self.now);
                    }
                    RetireAction::SendStop { .. } => {
                        old.step = RetireStage::Stopping(self.now);
                        if old.worker.obedient {
                            old.worker.dies_at = Some(self.now);
                        }
                    }
                    RetireAction::Kill => {
                        old.step = RetireStage::Killed;
                        old.worker.dies_at = Some(self.now);
                    }
                    RetireAction::GiveUpSuccessor => {
                        if let Some(worker) = &mut slot.worker {
                            worker.dies_at = Some(self.now);
                        }
                    }
                }
            }
        }
    }

    fn step_reload(&mut self) {
        let Some(mut reload) = self.reload.take() else { return };
        let began = self.reload_began;
        if self.wanted == Wanted::Stopped {
            return;
        }
        let facts: Vec<SlotView> = self.slots.iter().map(SimSlot::view).collect();
        for step in reload.step(self.now, &self.times, &facts).0 {
            match step {
                RolloutAction::Replace(at) => self.slots[at].replace(self.now, &self.backoff),
                RolloutAction::Relaunch(at) => self.slots[at].relaunch(self.now, &self.backoff),
                RolloutAction::Revive(at) => self.slots[at].lifecycle = self.slots[at].lifecycle.again(self.now),
                RolloutAction::Done(_) => {}
                RolloutAction::Failed(at, _) => {
                    self.slots[at].failed = false;
                    return;
                }
                RolloutAction::Over => {
                    let old = self.slots.iter().filter_map(|slot| slot.worker.as_ref());
                    let old = old.filter(|worker| worker.started < began).count();
                    assert_eq!(old, 0, "a reload that is done has left old workers");
                    return;
                }
            }
        }
        self.reload = Some(reload);
    }

    /// What the world does.
    fn event(&mut self) {
        match self.random.below(14) {
            0 if self.reload.is_none() && self.wanted == Wanted::Running => {
                self.slots.iter_mut().for_each(|slot| slot.failed = false);
                self.reload_began = self.started;
                self.reload = Some(Reload::new(self.slots.len(), self.now));
            }
            1 if self.reload.is_none() && self.wanted == Wanted::Running => self.scale(),
            2 if self.random.one_in(40) => self.stop(),
            3 => {
                let at = self.random.below(self.slots.len() as u64) as usize;
                if let Some(worker) = &mut self.slots[at].worker {
                    worker.dies_at = Some(self.now);
                }
            }
            4..=8 => self.connect(),
            9 | 10 => self.finish(),
            // A jump of the clock: the machine slept.
            11 if self.random.one_in(10) => self.now += Duration::from_secs(3600),
            _ => self.now += Duration::from_millis(self.random.below(400)),
        }
    }

    fn connect(&mut self) {
        if self.wanted == Wanted::Running {
            self.accepted += 1;
            self.held += 1;
        }
        // Placed where somebody may receive; received some time later.
        let receives = |slot: &mut SimSlot| {
            let current = slot.worker.as_mut().filter(|_| matches!(slot.lifecycle.phase, Phase::Online { .. }));
            let old = slot.old.iter_mut().find(|old| old.receives()).map(|old| &mut old.worker);
            current.or(old).map(|worker| std::ptr::from_mut(worker) as usize)
        };
        let able: Vec<usize> = (0..self.slots.len()).filter(|&at| receives(&mut self.slots[at]).is_some()).collect();
        if able.is_empty() || self.held == 0 {
            return;
        }
        let at = able[self.random.below(able.len() as u64) as usize];
        let takes_at_once = self.random.one_in(2);
        let slot = &mut self.slots[at];
        let online = matches!(slot.lifecycle.phase, Phase::Online { .. });
        let worker = match slot.worker.as_mut().filter(|_| online) {
            Some(worker) => worker,
            None => match slot.old.iter_mut().find(|old| old.receives()) {
                Some(old) => &mut old.worker,
                None => return,
            },
        };
        self.held -= 1;
        if takes_at_once { worker.open += 1 } else { worker.pending += 1 }
    }

    fn finish(&mut self) {
        for slot in &mut self.slots {
            let old = slot.old.iter_mut().map(|old| &mut old.worker);
            for worker in slot.worker.iter_mut().chain(old) {
                let received = self.random.below(u64::from(worker.pending) + 1) as u32;
                worker.pending -= received;
                worker.open += received;
                let over = self.random.below(u64::from(worker.open) + 1) as u32;
                worker.open -= over;
                self.ended += u64::from(over);
            }
        }
    }

    fn scale(&mut self) {
        self.count = 1 + self.random.below(6) as usize;
        while self.slots.len() < self.count {
            self.slots.push(SimSlot::new(self.now));
        }
        for slot in self.slots.iter_mut().take(self.count).filter(|slot| slot.lifecycle.phase == Phase::Gone) {
            slot.lifecycle = Lifecycle::new(self.now);
        }
        for slot in self.slots.iter_mut().skip(self.count) {
            slot.dismiss(self.now, &self.backoff);
        }
    }

    fn stop(&mut self) {
        self.wanted = Wanted::Stopped;
        for slot in &mut self.slots {
            slot.dismiss(self.now, &self.backoff);
        }
    }

    fn check(&self) {
        let mut extra = 0;
        for slot in &self.slots {
            let serving = slot.old.iter().filter(|old| old.step == RetireStage::Serving).count();
            assert!(serving <= 1, "two old workers serve in one slot");
            extra += usize::from(serving == 1 && slot.worker.is_some());
        }
        assert!(extra <= self.times.max_surge, "{extra} extra workers");
        // Every accepted socket is in exactly one place.
        let within: u64 = self.slots.iter().map(SimSlot::connections).sum();
        assert_eq!(self.accepted, self.ended + within + u64::from(self.held), "a socket is lost, or in two places");
        // Every process started is alive or reaped.
        let alive: u64 = self.slots.iter().map(|slot| slot.old.len() as u64 + u64::from(slot.worker.is_some())).sum();
        assert_eq!(self.started, self.reaped + alive, "a process is forgotten");
    }

    /// Left alone, it settles: all slots filled or given up, nobody on the way out.
    fn settle(&mut self) {
        for _ in 0..400 {
            let settled = self.reload.is_none()
                && self.slots.iter().all(|slot| {
                    let steady = match self.wanted {
                        Wanted::Running => matches!(slot.lifecycle.phase, Phase::Online { .. } | Phase::Errored),
                        Wanted::Stopped => slot.worker.is_none(),
                    };
                    steady && slot.old.is_empty()
                });
            if settled {
                return;
            }
            // Nobody crashes or hangs any more; what is ready never comes, comes.
            for worker in self.slots.iter_mut().filter_map(|slot| slot.worker.as_mut()) {
                worker.ready_at = worker.ready_at.or(Some(self.now));
                worker.dies_at = worker.dies_at.filter(|&at| at <= self.now);
            }
            let lives: Vec<Lifecycle> = self.slots.iter().map(|slot| slot.lifecycle).collect();
            let next = due_starts(self.now, self.wanted, &lives).1.unwrap_or(self.now);
            self.now = next.max(self.now + Duration::from_millis(200));
            self.finish();
            self.turn();
            self.check();
        }
        let phases: Vec<_> = self.slots.iter().map(|slot| (slot.lifecycle.phase, slot.old.len())).collect();
        panic!("it does not settle: {phases:?}, reload {:?}", self.reload);
    }
}

impl SimSlot {
    fn new(now: Instant) -> Self {
        Self { lifecycle: Lifecycle::new(now), worker: None, old: Vec::new(), failed: false, stop_first: false }
    }

    fn lifecycle(&self) -> Lifecycle {
        let mut lifecycle = self.lifecycle;
        if self.stop_first && !self.old.is_empty() && matches!(lifecycle.phase, Phase::Waiting { .. }) {
            lifecycle.phase = Phase::Stopping;
        }
        lifecycle
    }

    fn view(&self) -> SlotView {
        SlotView {
            lifecycle: self.lifecycle,
            old: self.old.len(),
            serving: self.old.iter().any(|old| old.step == RetireStage::Serving),
            failed: self.failed,
        }
    }

    fn replace(&mut self, now: Instant, backoff: &Backoff) {
        let Phase::Online { since } = self.lifecycle.phase else { return };
        self.lifecycle.apply(Event::Replace, now, backoff);
        let worker = self.worker.take().expect("a slot that is online has a worker");
        self.old.push(Old { worker, step: RetireStage::Serving, online: since, cut_off: false });
    }

    fn relaunch(&mut self, now: Instant, backoff: &Backoff) {
        self.lifecycle.apply(Event::Replace, now, backoff);
        let worker = self.worker.take().expect("a slot that launches has a worker");
        self.old.push(Old { worker, step: RetireStage::Draining(now), online: now, cut_off: false });
        self.stop_first = true;
    }

    /// No more connections for anybody here.
    fn dismiss(&mut self, now: Instant, backoff: &Backoff) {
        if let Some(worker) = self.worker.take() {
            self.old.push(Old { worker, step: RetireStage::Serving, online: now, cut_off: false });
        }
        self.lifecycle.apply(Event::Stop, now, backoff);
        for old in self.old.iter_mut().filter(|old| old.step == RetireStage::Serving) {
            old.step = RetireStage::Draining(now);
        }
    }

    fn connections(&self) -> u64 {
        let old = self.old.iter().map(|old| &old.worker);
        self.worker.iter().chain(old).map(|worker| u64::from(worker.open + worker.pending)).sum()
    }

    fn is_empty(&self) -> bool {
        self.worker.is_none() && self.old.is_empty()
    }
}

fn history(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..200 {
        world.event();
        world.turn();
        world.check();
    }
    world.settle();
}

#[test]
fn random_histories_keep_to_the_rules_and_settle() {
    if let Some(seed) = std::env::var("ROUNDSMAN_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return history(seed);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..HISTORIES).step_by(threads as usize) {
                    if std::panic::catch_unwind(|| history(seed)).is_err() {
                        panic!("history {seed} failed; replay it with ROUNDSMAN_SEED={seed}");
                    }
                }
            });
        }
    });
}

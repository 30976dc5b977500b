//! The service in a simulated world: seeded histories of slow starts, crashes, servers that mind no signal, reloads, scaling,
//! restarts, stops and time. Processes, signals, the accept thread and the clock are pretended; all else is what the daemon
//! runs. A failing seed is printed; `ROUNDSMAN_SEED=N` replays it. `ROUNDSMAN_HISTORIES=N` runs so many.

mod recycling;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use self::world::{Deed, Leaving, Process, Random, World};
use super::Service;
use super::draining::Force;
use super::operations::{Networks, News, Operation, Progress, Ticket};
use super::pausing::Paused;
use super::weights::Of;
use crate::accept::Orders;
use crate::access::Access;
use crate::config::sources::{COMMAND, Origin, Setting};
use crate::config::{Inherited, ServiceConfig, merge};
use crate::events::Registry;
use crate::launch::Launcher;
use crate::relay::protocol::FromWorker;
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;
use crate::slot::retiring::DRAIN_LOOK;
use crate::sys::fake;
use crate::worker::Context;
use crate::worker::children::Children;
use crate::worker::delivery::Delivery;
use crate::worker::probe::PrivatePorts;

/// Each has forty events and some hundred turns of the daemon.
const HISTORIES: u64 = 400;

struct Simulation {
    service: Service,
    context: Context,
    world: World,
    now: Instant,
    /// Only a rolling replacement is under way, if anything is.
    gentle: bool,
    /// When a slot's only worker died, while nobody asked for anything since.
    died: BTreeMap<u32, Instant>,
    /// When a worker of a slot died last.
    fell: BTreeMap<u32, Instant>,
    /// Turns without a step of the clock.
    turns: u32,
    /// Operations that nobody has said the end of.
    asked: BTreeSet<Ticket>,
}

fn config(random: &mut Random) -> (ServiceConfig, merge::Settings) {
    let mut settings = merge::Settings::new();
    let mut set = |key: &str, values: &[&str]| {
        let values = values.iter().map(Into::into).collect();
        settings.insert(key.to_owned(), Setting { values, origin: Origin::Flag });
    };
    match random.one_in(2) {
        true => (set("listen", &["127.0.0.1:1"]), set("upstream", &["127.0.0.1:2"])),
        false => (set("no-listen", &[]), set(COMMAND, &["true"])),
    };
    let mut millis = |from: u64, more: u64| format!("{}ms", from + random.below(more));
    for (key, from, more) in [
        ("min-uptime", 100, 1000),
        ("listen-timeout", 1700, 5000),
        ("drain-timeout", 1, 3000),
        ("kill-timeout", 1, 3000),
        ("stop-delay", 1, 500),
        ("stop-timeout", 1, 5000),
    ] {
        set(key, &[&millis(from, more)]);
    }
    set("backoff", &["100ms..2s"]);
    set("instances", &[&(1 + random.below(5)).to_string()]);
    set("max-surge", &[&(1 + random.below(3)).to_string()]);
    set("max-restarts", &["10"]);
    set("on-errored", &["stay"]);
    let run = merge::run(&settings).unwrap();
    (ServiceConfig::new(run, Inherited::None).unwrap(), settings)
}

impl Simulation {
    fn new(seed: u64, launcher: Launcher, registry: Registry) -> Self {
        let (orders, receiver) = Orders::to_test().unwrap();
        let mut world = World::new(seed, receiver);
        let now = Instant::now();
        fake::begin(now);
        let (ports, children) = (PrivatePorts::default(), Children::default());
        let access = Access::new(launcher.outputs.outlet());
        let context = Context { launcher, orders, access, attach: None, ports, nofile: 1000, registry, children };
        let (mut config, settings) = config(&mut world.random);
        let delivery = Delivery::prepare(&mut config, false, || unreachable!("nothing is direct")).unwrap();
        let service = Service::new(0, (config, settings), Vec::new(), delivery, &context, now);
        Self {
            service,
            context,
            world,
            now,
            gentle: true,
            died: BTreeMap::new(),
            fell: BTreeMap::new(),
            turns: 0,
            asked: BTreeSet::new(),
        }
    }

    /// One turn of the daemon.
    fn turn(&mut self) {
        let fails = !self.world.kind && self.world.random.one_in(60);
        fake::set(self.now, fails);
        if fails {
            self.died.clear();
        }
        for (status, process) in self.world.ended(self.now) {
            self.note_death(&process);
            let pid = status.pid().unwrap().as_raw() as u32;
            assert!(self.service.pids().contains(&pid), "{pid} is forgotten");
            let owner = self.context.children.owner(pid).unwrap();
            self.service.on_exit(owner.slot, pid, status, &self.context, self.now);
            self.context.children.remove(pid);
        }
        for pid in self.world.ready(self.now) {
            let of = |slot: &Slot| slot.relay().is_some_and(|relay| relay.pid == pid);
            if let Some(at) = self.service.slots.iter().position(of) {
                self.service.on_relay_message(at, FromWorker::Ready, self.now);
            }
        }
        for report in self.world.reports(self.now) {
            self.service.reported(&report, &self.context, self.now);
        }
        self.step();
    }

    /// Returns what was done.
    fn step(&mut self) -> Vec<String> {
        if self.service.operations.is_reloading() {
            // It starts what is missing at once.
            self.died.clear();
        }
        self.service.step_stop(&self.context, self.now);
        self.service.step(&self.context, self.now).unwrap();
        let deeds = self.world.look(self.now);
        let did = deeds.iter().map(|deed| format!("{deed:?}")).collect();
        deeds.into_iter().for_each(|deed| self.judge(deed));
        did
    }

    fn staying(&self, slot: u32) -> impl Iterator<Item = (&u32, &Process)> {
        self.world.processes.iter().filter(move |(_, process)| process.slot == slot && !process.leaves)
    }

    fn note_death(&mut self, process: &Process) {
        self.fell.insert(process.slot, self.now);
        if !process.leaves && self.staying(process.slot).next().is_none() {
            self.died.insert(process.slot, self.now);
        }
    }

    fn judge(&mut self, deed: Deed) {
        let limits = self.service.config.limits;
        match deed {
            Deed::Start(pid) => {
                let slot = self.world.processes[&pid].slot;
                assert!(self.staying(slot).count() <= 2, "a third worker of slot {slot}");
                if let Some(died) = self.died.remove(&slot) {
                    let pause = self.now - died;
                    let (least, most) = limits.backoff;
                    assert!((least..=most).contains(&pause), "slot {slot} starts {pause:?} after a crash");
                }
            }
            // A server without a port: the one that is to replace it has proved itself.
            Deed::Stop { pid, by, before: Leaving::No } if self.gentle && by != Signal::SIGKILL => {
                let process = &self.world.processes[&pid];
                // What is decided is done at the next look whether it has drained.
                let was_online = self.now - process.started > limits.min_uptime + DRAIN_LOOK;
                let proved = |other: &Process| self.now - other.started >= limits.min_uptime;
                let replaced = self.staying(process.slot).any(|(&other, process)| other > pid && proved(process));
                let fell = self.fell.get(&process.slot).is_some_and(|&at| self.now - at <= DRAIN_LOOK);
                assert!(
                    !was_online || replaced || fell,
                    "{pid} of slot {} is stopped before its successor",
                    process.slot
                );
            }
            Deed::Stop { .. } | Deed::Order => {}
            Deed::Drain(worker) => {
                if self.gentle && self.world.online.contains_key(&worker) {
                    let newer = |other: &_| Some(other) > Some(&worker);
                    let mut others = self.world.online.keys().filter(|other| other.slot == worker.slot);
                    assert!(others.any(newer), "{worker} gets no more connections before its successor does");
                }
                self.world.online.remove(&worker);
            }
        }
        let doubled = (0..self.service.slots.len() as u32).filter(|&slot| self.staying(slot).count() > 1).count();
        assert!(doubled <= limits.max_surge as usize, "{doubled} workers too many");
    }

    /// To the next moment at which anything is due, `until` at the latest.
    fn advance(&mut self, until: Instant) {
        let due = [self.service.next_due(), self.world.next()].into_iter().flatten().min();
        let next = due.map_or(until, |due| due.min(until)).max(self.now);
        self.turns = if next == self.now { self.turns + 1 } else { 0 };
        assert!(self.turns < 50, "it runs in circles: due {:?}", self.service.next_due());
        let between = (next - self.now) / 2;
        // Whether a server has drained is looked at again and again.
        if between > DRAIN_LOOK && self.world.random.one_in(4) {
            self.now += between;
            fake::set(self.now, false);
            let said = self.service.operations.news.len();
            let did = self.step();
            assert!(did.is_empty(), "due before {:?}: {did:?}", next - self.now);
            let said: Vec<_> = self.service.operations.news.iter().skip(said).collect();
            assert!(said.is_empty(), "due before {:?}: {said:?}", next - self.now);
            // As long as nothing changed, it is due at the same time.
            return self.advance(next);
        }
        self.now = next;
        self.turn();
    }

    fn ask(&mut self) {
        let calm = self.world.processes.values().all(|process| !process.leaves);
        let (context, now, random) = (&self.context, self.now, &mut self.world.random);
        let slots = self.service.slots.len() as u64;
        let (gentle, asked) = match random.below(11) {
            9 => (
                self.gentle,
                self.service.begin(Operation::Drain(Of::Slot(random.below(slots) as u32), Force::Yes), context, now),
            ),
            10 => (self.gentle, self.service.begin(Operation::Undrain(None), context, now)),
            7 => (calm, self.service.begin(Operation::ReloadSlot(random.below(slots) as u32), context, now)),
            8 => (false, self.service.begin(Operation::RestartSlot(random.below(slots) as u32), context, now)),
            0..=2 => (calm, self.service.begin(Operation::Reload(Networks::ToRead), context, now)),
            3 => (false, self.service.begin(Operation::Restart, context, now)),
            4 => (false, self.service.begin(Operation::Scale(1 + random.below(6) as u32), context, now)),
            5 => (false, self.service.begin(Operation::Stop, context, now)),
            _ if self.service.operations.paused == Paused::Yes => {
                (false, self.service.begin(Operation::Start, context, now))
            }
            _ => return self.crash(),
        };
        if let Ok(ticket) = asked {
            assert!(self.asked.insert(ticket), "{ticket:?} was given twice");
            self.gentle = gentle;
            self.died.clear();
        }
    }

    /// Every operation ends once, and says nothing after that.
    fn hear(&mut self) {
        for News { of, progress } in std::mem::take(&mut self.service.operations.news) {
            let of = of.unwrap();
            let known =
                if matches!(progress, Progress::Step(_)) { self.asked.contains(&of) } else { self.asked.remove(&of) };
            assert!(known, "{of:?} goes on after its end: {progress:?}");
        }
    }

    fn crash(&mut self) {
        let at = self.world.random.below(1 + self.world.processes.len() as u64) as usize;
        if let Some(process) = self.world.processes.values_mut().nth(at) {
            process.dies = Some(self.now);
        }
    }

    /// Left alone, it comes to rest: what was asked for has ended, and every slot is filled or given up.
    fn settle(&mut self) {
        let limits = &mut self.service.config.limits;
        (limits.max_age, limits.max_served) = (None, None);
        for _ in 0..2_000 {
            self.world.be_kind(self.now);
            let wanted = if self.service.operations.paused == Paused::No {
                crate::slot::online(self.service.slots())
            } else {
                0
            };
            let given_up = |slot: &&Slot| slot.lifecycle.phase == Phase::Errored;
            let given_up = self.service.slots.iter().filter(given_up).count();
            let full = self.service.operations.paused != Paused::No || wanted + given_up == self.service.slots.len();
            let over =
                self.service.may_reload(&self.service.config).is_ok() && self.service.operations.awaiting.is_empty();
            if full && over && self.world.processes.len() == wanted {
                return;
            }
            self.advance(self.now + Duration::from_secs(1));
        }
        let phases: Vec<_> = self.service.slots.iter().map(|slot| slot.lifecycle.phase).collect();
        panic!("no rest: {phases:?}, {} processes", self.world.processes.len());
    }

    /// Nothing of it is left when its time is up.
    fn stop(&mut self) {
        let limits = self.service.config.limits;
        let end = self.now + limits.stop_delay + limits.stop_timeout;
        self.gentle = false;
        self.died.clear();
        self.service.begin_stop(self.now);
        self.turn();
        while !self.service.is_over() {
            self.advance(end);
            self.world.traffic();
            assert!(self.now < end || self.turns < 5, "{} are left", self.world.processes.len());
        }
        assert!(self.world.processes.is_empty(), "processes are forgotten");
    }
}

fn history(seed: u64, launcher: &Launcher) {
    let poll = mio::Poll::new().unwrap();
    let mut simulation = Simulation::new(seed, launcher.again().unwrap(), Registry::new(poll.registry()).unwrap());
    if simulation.world.random.one_in(3) {
        let age = Duration::from_secs(3) + simulation.world.random.millis(20_000);
        let limits = &mut simulation.service.config.limits;
        (limits.max_age, limits.max_served) = (Some(age), Some(1000));
    }
    simulation.turn();
    for _ in 0..40 {
        let until = simulation.now + simulation.world.random.millis(3000);
        while simulation.now < until {
            simulation.advance(until);
        }
        simulation.world.traffic();
        simulation.world.one_has_served(simulation.now);
        simulation.ask();
        simulation.turn();
        simulation.hear();
    }
    if simulation.world.random.one_in(2) {
        simulation.settle();
        simulation.hear();
        assert!(simulation.asked.is_empty(), "not answered: {:?}", simulation.asked);
    }
    simulation.stop();
}

#[test]
fn histories_keep_to_the_rules_and_come_to_rest() {
    let launcher = Launcher::to_test().unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(seed) = number("ROUNDSMAN_SEED") {
        return history(seed, &launcher);
    }
    let histories = number("ROUNDSMAN_HISTORIES").unwrap_or(HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for first in 0..threads {
            let launcher = &launcher;
            scope.spawn(move || {
                for seed in (first..histories).step_by(threads as usize) {
                    let run = std::panic::AssertUnwindSafe(|| history(seed, launcher));
                    if std::panic::catch_unwind(run).is_err() {
                        panic!("history {seed} failed; replay it with ROUNDSMAN_SEED={seed}");
                    }
                }
            });
        }
    });
}

//! A slot: the worker in charge, those that make room for it, and what is remembered of those before.

pub mod exits;
pub mod lifecycle;
pub mod orphans;
pub mod record;
pub mod retiring;
pub mod rollout;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use self::lifecycle::{Backoff, Event, Lifecycle, Phase};
use self::retiring::Retiring;
use self::rollout::{RetireStage, SlotView};
use crate::accept::orders::{ListenerId, Order, SlotStats, WorkerId};
use crate::worker::attachment::Attachment;
use crate::worker::exit::LastExit;
use crate::worker::relay::Relay;
use crate::worker::server::Server;
use crate::worker::totals::Totals;
use crate::worker::{Context, Kind, Worker};

#[derive(Debug)]
pub struct Slot {
    pub lifecycle: Lifecycle,
    /// Workers that the slot has had.
    pub generation: u64,
    pub current: Option<Worker>,
    /// Workers that make room, or have made room, for a successor.
    pub retiring: Vec<Retiring>,
    /// Relay workers that finish what they have; their servers are gone.
    pub finishing: Vec<Relay>,
    /// The next worker starts only when those on their way out are gone.
    pub stop_first: bool,
    /// It gets no new connections until somebody takes the mark away, whichever worker it has.
    pub drain: bool,
    /// Its share of new connections beside the other slots while it is not drained, 0 to 256.
    pub weight: u16,
    pub history: History,
    pub stats: Arc<SlotStats>,
    pub totals: Totals,
}

/// What is remembered of workers that are gone, and of what was decided about those that are not.
#[derive(Debug, Default)]
pub struct History {
    pub last_exit: Option<LastExit>,
    /// Why the slot is not online, or why its worker was replaced.
    pub reason: Option<String>,
    /// Where the last server accepted, once it did.
    pub last_address: Option<SocketAddr>,
    /// Why the current worker replaces the one before it, where nobody asked for that.
    pub replace_reason: Option<String>,
    /// Why the current worker is being killed.
    pub kill_reason: Option<String>,
    /// The server that died last: of a failed successor.
    pub failed_successor: Option<u32>,
    /// Why a successor is being killed, until it is gone.
    pub successor_trouble: Option<String>,
    /// Why the successor of a reload failed, and its server; the reload takes it.
    pub reload_failed: Option<(String, Option<u32>)>,
    /// The port, no `--listen`'s, that its servers insist on, where that is why the slot was given up.
    pub insisted: Option<u16>,
    /// When a stall was last written to the log.
    pub stall_logged: Option<Instant>,
    /// When a rescue was last written to the log, and from which worker.
    pub rescue_logged: Option<(WorkerId, Instant)>,
}

/// How many of them have a worker online.
pub fn online(slots: &[Slot]) -> usize {
    slots.iter().filter(|slot| slot.is_online()).count()
}

impl Slot {
    /// An empty one, to be filled at once.
    pub fn new(now: Instant) -> Self {
        Self {
            lifecycle: Lifecycle::new(now),
            generation: 0,
            current: None,
            retiring: Vec::new(),
            finishing: Vec::new(),
            stop_first: false,
            drain: false,
            weight: 1,
            history: History::default(),
            stats: Arc::default(),
            totals: Totals::default(),
        }
    }

    pub fn server(&self) -> Option<&Server> {
        self.current.as_ref()?.server()
    }

    pub fn server_mut(&mut self) -> Option<&mut Server> {
        self.current.as_mut()?.server_mut()
    }

    pub fn relay(&self) -> Option<&Relay> {
        self.current.as_ref()?.relay()
    }

    /// The relay worker with this pid, also one that makes room.
    pub fn relay_with(&self, pid: u32) -> Option<&Relay> {
        self.workers().filter_map(Worker::relay).chain(&self.finishing).find(|relay| relay.pid == pid)
    }

    pub fn relay_mut(&mut self) -> Option<&mut Relay> {
        self.current.as_mut()?.relay_mut()
    }

    pub fn direct_mut(&mut self) -> Option<(&mut Server, &mut Attachment)> {
        self.current.as_mut()?.direct_mut()
    }

    pub fn attachment(&self) -> Option<&Attachment> {
        self.current.as_ref()?.attachment()
    }

    pub fn attachment_mut(&mut self) -> Option<&mut Attachment> {
        self.current.as_mut()?.attachment_mut()
    }

    /// The current worker and those on their way out.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.current.iter().chain(self.retiring.iter().map(|old| &old.worker))
    }

    pub fn workers_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.current.iter_mut().chain(self.retiring.iter_mut().map(|old| &mut old.worker))
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.workers().flat_map(Worker::pids).chain(self.finishing.iter().map(|relay| relay.pid))
    }

    /// Open connections, also of workers on their way out.
    pub fn open(&self) -> u64 {
        self.workers().map(Worker::open).sum::<u64>()
            + self.finishing.iter().map(|relay| relay.page.open()).sum::<u64>()
    }

    /// Its share of new connections beside the other slots.
    pub fn weight(&self) -> u16 {
        if self.drain { 0 } else { self.weight }
    }

    /// The process that receives connections, or does the work of a service without a port.
    pub fn pid(&self) -> Option<u32> {
        self.current.as_ref().and_then(Worker::receiver)
    }

    /// The server behind a relay worker.
    pub fn server_pid(&self) -> Option<u32> {
        self.current.as_ref().and_then(Worker::behind_relay)
    }

    /// Whether its worker, if it is direct, listens there.
    pub fn listens(&self, listener: ListenerId) -> bool {
        self.attachment().is_some_and(|attachment| attachment.listening.contains(&listener))
    }

    /// Whether its worker is online and somebody receives there.
    pub fn is_online(&self) -> bool {
        matches!(self.lifecycle.phase, Phase::Online { .. }) && !self.is_silent()
    }

    /// What is known of a worker that is not online.
    pub fn trouble(&self) -> Option<&str> {
        let launching = matches!(self.lifecycle.phase, Phase::Launching { .. });
        self.server().filter(|_| launching).and_then(|server| server.trouble.as_deref())
    }

    pub fn view(&self) -> SlotView {
        SlotView {
            lifecycle: self.lifecycle,
            old: self.retiring.len(),
            serving: self.retiring.iter().any(|old| old.stage == RetireStage::Serving),
            failed: self.history.reload_failed.is_some(),
        }
    }

    /// Its lifecycle as the clock sees it.
    pub fn due_lifecycle(&self) -> Lifecycle {
        let mut lifecycle = self.lifecycle;
        if self.stop_first && !self.retiring.is_empty() && matches!(lifecycle.phase, Phase::Waiting { .. }) {
            // Their end is an event; the clock changes nothing.
            lifecycle.phase = Phase::Stopping;
        }
        lifecycle
    }

    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.has_drained()
    }

    /// Whether none of its workers is on its way out.
    pub fn has_drained(&self) -> bool {
        self.retiring.is_empty() && self.finishing.is_empty()
    }

    /// Whether a stopping server may be asked to stop: nothing is open any more. `handed`: nothing more will come.
    pub fn is_drained(&mut self, handed: bool, now: Instant) -> bool {
        match self.current.as_mut().and_then(Worker::direct_mut) {
            Some((server, attachment)) => (handed || !attachment.receives()) && attachment.is_drained(server, now),
            None => true,
        }
    }

    /// Moves its worker to those on their way out.
    pub fn set_aside(&mut self, online: Instant) {
        self.history.last_address = None;
        self.retiring.extend(self.current.take().map(|worker| Retiring::new(worker, online)));
    }

    /// Makes room for a successor; the worker that is there goes on until that one has proved itself.
    pub fn begin_replace(&mut self, backoff: &Backoff, now: Instant) {
        if let Phase::Online { since } = self.lifecycle.phase {
            // What failed before, for another reason, is not this successor's failure.
            self.history.reload_failed = None;
            self.lifecycle.apply(Event::Replace, now, backoff);
            self.set_aside(since);
        }
    }

    /// The successor failed: the worker that was there stays. Whether there was one.
    pub fn restore(&mut self, context: &Context, backoff: &Backoff, now: Instant) -> bool {
        let Some(place) = self.retiring.iter().position(|old| old.stage == RetireStage::Serving) else { return false };
        let old = self.retiring.swap_remove(place);
        self.lifecycle.apply(Event::Restored(old.online), now, backoff);
        // What is left of the successor has to be known until it is reaped.
        if let Some(failed) = self.current.replace(old.worker) {
            failed.kill();
            context.orders.send(Order::WorkerDied(failed.id));
            self.retiring.push(Retiring::killed(failed, now));
        }
        true
    }

    /// Its worker ends, then another one is started; one that has none gets one at once.
    pub fn begin_again(&mut self, context: &Context, backoff: &Backoff, now: Instant) {
        if self.current.is_some() {
            self.lifecycle.apply(Event::Replace, now, backoff);
            self.set_aside(now);
            self.retiring.iter_mut().for_each(|old| old.drain(context, now));
            self.stop_first = true;
        } else if matches!(self.lifecycle.phase, Phase::Waiting { .. } | Phase::Errored | Phase::Finished) {
            self.lifecycle = self.lifecycle.again(now);
        }
    }

    /// Its worker leaves, and no other comes. Its time to finish began at `since`.
    pub fn dismiss(&mut self, context: &Context, backoff: &Backoff, now: Instant, since: Instant) {
        // Also what waits for the other half of its worker: a server whose relay worker died.
        self.set_aside(now);
        self.retiring.iter_mut().for_each(|old| old.drain(context, since));
        self.lifecycle.apply(Event::Stop, now, backoff);
    }

    /// The server is gone: its relay worker takes nothing new, finishes, and makes room for another.
    pub fn finish_relay(&mut self, context: &Context) {
        let is_half = |worker: &mut Worker| worker.relay().is_some() && worker.server().is_none();
        let Some(worker) = self.current.take_if(is_half) else { return };
        let id = worker.id;
        if let Kind::Relay { relay: Some(mut relay), .. } = worker.kind {
            context.orders.send(Order::Drain(id));
            relay.drain();
            // Never given to the accept thread: nobody else would close them.
            relay.queues.clear();
            self.finishing.push(relay);
        }
    }

    /// In a stop of all: relay workers finish what they have.
    pub fn begin_drain(&mut self) {
        self.current.iter_mut().for_each(Worker::drain_relay);
        self.finishing.iter().for_each(Relay::drain);
    }
}

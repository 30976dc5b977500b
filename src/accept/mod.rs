//! The accept thread: listeners → policy → hand-off. It never forks, logs or blocks.

mod accepting;
mod alarm;
mod deaths;
mod dispatcher;
mod ends;
pub mod hash;
mod leavers;
mod limit;
mod line;
pub mod orders;
mod pace;
mod pacing;
pub mod policy;
pub mod record;
mod shares;
pub mod stage;
mod stalls;
mod waiting;
pub mod waits;
pub mod weighted;
mod worker;
mod worker_set;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::handoff::bell::Bell;
use crate::handoff::rescue::{self, Job};
use crate::record::Kept;
use alarm::Alarm;
use dispatcher::ServiceDispatcher;
use orders::{Order, Report, RescueKey, ServiceId};
use pacing::Pacing;
use record::{StandStill, Told};

const WAKER: Token = Token(usize::MAX);
/// A listener's token is its service times this, plus its place in the service.
const LISTENERS: usize = orders::PLACES;

/// Orders obeyed per turn, by their [`Order::cost`]; the others in the next one, which begins at once. A worker may report sessions faster
/// than all others do anything.
const ORDERS: usize = 4096;

/// The control thread's handle on the accept thread.
#[derive(Debug, Clone)]
pub struct Orders {
    sender: Sender<Order>,
    waker: Arc<Waker>,
    bell: Arc<OnceLock<Bell>>,
}

impl Orders {
    /// The doorbell by which workers wake the accept thread; there is none before the first call.
    ///
    /// # Errors
    /// When memory or a thread cannot be had.
    pub fn bell(&self) -> io::Result<&Bell> {
        if let Some(bell) = self.bell.get() {
            return Ok(bell);
        }
        let waker = self.waker.clone();
        let bell = Bell::hang(move || {
            // Fails only when the accept thread is gone.
            let _ = waker.wake();
        })?;
        Ok(self.bell.get_or_init(|| bell))
    }

    /// The doorbell that workers of the program before have already.
    ///
    /// # Errors
    /// When memory or a thread cannot be had.
    pub fn take_bell(&self, fd: OwnedFd) -> io::Result<()> {
        let waker = self.waker.clone();
        let bell = Bell::hang_again(fd, move || {
            let _ = waker.wake();
        })?;
        let _ = self.bell.set(bell);
        Ok(())
    }

    /// The doorbell, if there is one.
    pub fn known_bell(&self) -> Option<&Bell> {
        self.bell.get()
    }

    /// Queues an order and wakes the accept thread.
    pub fn send(&self, order: Order) {
        // Both fail only when the accept thread is gone, and then the daemon is ending.
        let _ = self.sender.send(order);
        let _ = self.waker.wake();
    }
}

#[cfg(test)]
impl Orders {
    /// To whoever pretends to be the accept thread.
    pub fn to_test() -> io::Result<(Self, Receiver<Order>)> {
        let poll = Poll::new()?;
        let (sender, receiver) = unbounded();
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok((Self { sender, waker, bell: Arc::default() }, receiver))
    }
}

/// Starts the accept thread and its rescue thread. `report` is called on the accept thread and must not block.
///
/// # Errors
/// When epoll or a thread cannot be had.
pub fn spawn(report: impl Fn(Report) + Send + 'static) -> io::Result<Orders> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let (sender, receiver) = unbounded();
    let orders = Orders { sender, waker, bell: Arc::default() };
    let back = orders.clone();
    let rescue = rescue::spawn(move |from, sockets| back.send(Order::Rescued { from, sockets }))?;
    let context = Context {
        poll,
        rescue,
        report: Box::new(report),
        staged: Cell::default(),
        passed: Cell::default(),
        held: Cell::default(),
    };
    let mut acceptor = Acceptor { context, orders: receiver, dispatchers: Vec::new() };
    thread::Builder::new().name("accept".into()).spawn(move || acceptor.run())?;
    Ok(orders)
}

/// What all services use on the accept thread.
struct Context {
    poll: Poll,
    rescue: Sender<Job<RescueKey>>,
    report: Box<dyn Fn(Report) + Send>,
    /// Connections that wait in the stages of all services.
    staged: Cell<usize>,
    /// Connections there that have passed, and that no worker has room for yet.
    passed: Cell<usize>,
    /// Connections that waited for a worker of any service after its last turn.
    held: Cell<usize>,
}

impl Context {
    fn report(&self, report: Report) {
        (self.report)(report);
    }

    /// Watches a listener, edge-triggered.
    fn watch(&self, socket: &OwnedFd, service: ServiceId, place: usize) -> io::Result<()> {
        let token = Token(service * LISTENERS + place);
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
    }

    fn unwatch(&self, socket: &OwnedFd) {
        // Fails only when it was not watched.
        let _ = self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
    }
}

struct Acceptor {
    context: Context,
    orders: Receiver<Order>,
    /// By service id.
    dispatchers: Vec<ServiceDispatcher>,
}

impl Acceptor {
    fn run(&mut self) {
        crate::sys::process::prefer_batches();
        let mut events = Events::with_capacity(256);
        let mut pacing = Pacing::new(Instant::now());
        let mut alarm = Alarm::new();
        let mut more_orders = false;
        loop {
            let timeout = if more_orders { Some(Duration::ZERO) } else { self.timeout(Instant::now()) };
            match self.context.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => alarm.rang(self.accepted()),
                // Only a closed or foreign epoll descriptor can do this; go on by timer, at a bounded rate.
                Err(_) => thread::sleep(Duration::from_millis(50)),
                Ok(()) => {}
            }
            let now = Instant::now();
            for event in &events {
                let Token(token) = event.token();
                if event.token() == WAKER {
                    more_orders = true;
                } else if event.token() == deaths::DEATH {
                    self.dispatchers.iter_mut().for_each(ServiceDispatcher::process_died);
                } else if let Some((service, ticket)) = leavers::client(event.token()) {
                    self.on(service, |it, cx| it.client_event(ticket, cx));
                } else if let Some((service, place)) = stage::connection(event.token()) {
                    let end = stage::End::of(event);
                    self.on(service, |it, cx| it.staged_event(place, end, now, cx));
                } else if let Some(dispatcher) = self.dispatchers.get_mut(token / LISTENERS) {
                    dispatcher.readable(token % LISTENERS);
                }
            }
            if more_orders {
                more_orders = self.obey_some(now);
            }
            if self.dispatchers.iter().any(ServiceDispatcher::has_ready) {
                alarm.run();
            }
            self.turn(now);
            let open = || self.dispatchers.iter().map(ServiceDispatcher::connection_count).sum();
            if let Some(pause) = pacing.pause(self.accepted(), now, open) {
                // Not past the next deadline: the rest of a backlog may be due at once.
                thread::sleep(self.timeout(Instant::now()).map_or(pause, |due| due.min(pause)));
            }
        }
    }

    fn turn(&mut self, now: Instant) {
        for service in 0..self.dispatchers.len() {
            self.dispatchers[service].turn(&self.context, now);
            self.dispatchers[service].count_waiting(&self.context);
            stage::crowd::make_room(&mut self.dispatchers, service, &self.context);
        }
    }

    /// Connections accepted since the start.
    fn accepted(&self) -> u64 {
        self.dispatchers.iter().map(ServiceDispatcher::accepted).sum()
    }

    /// Time to the next deadline; `None` waits for an event.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let next = self.dispatchers.iter().filter_map(|dispatcher| dispatcher.deadline(now)).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Obeys orders for a turn; whether there are more.
    fn obey_some(&mut self, now: Instant) -> bool {
        let mut left = ORDERS;
        while left > 0 {
            let Ok(order) = self.orders.try_recv() else { return false };
            left = left.saturating_sub(order.cost());
            self.obey(order, now);
        }
        !self.orders.is_empty()
    }

    /// Tells what there is, and waits.
    fn stand_still(&mut self, StandStill { told, go_on }: StandStill) {
        // What has been taken is given to workers first.
        self.turn(Instant::now());
        let mut kept = Kept::default();
        let services: Result<Vec<_>, String> =
            self.dispatchers.iter().map(|dispatcher| dispatcher.record(&mut kept)).collect();
        let failed = services.is_err();
        let there = told.send(services.map(|services| Told { services, kept })).is_ok();
        if there && !failed {
            // Also when nobody can tell it any more.
            let _ = go_on.recv();
        }
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::StandStill(still) => self.stand_still(still),
            Order::TakeOver { service, accepts, listeners, leaving } => self.on(service, |it, cx| {
                listeners.into_iter().for_each(|(id, socket)| it.add_listener(cx, id, socket));
                it.take_over(*accepts, leaving, now, cx);
            }),
            Order::Service { rules, stats } => {
                self.dispatchers.push(ServiceDispatcher::new(self.dispatchers.len(), rules, stats));
            }
            Order::Rules(service, rules) => self.on(service, |it, _| it.set_rules(rules)),
            Order::Listener { service, id, socket } => self.on(service, |it, cx| it.add_listener(cx, id, socket)),
            Order::StopAccepting { service, id } => self.on(service, |it, cx| it.remove_listener(cx, id)),
            Order::CloseListener { service, id } => self.on(service, |it, cx| it.close_listener(cx, id)),
            Order::Forget { service, id } => self.on(service, |it, cx| it.forget_listener(cx, id)),
            Order::Refuse(service) => self.on(service, |it, cx| it.refuse_all(cx)),
            Order::Online { worker, queues, page, stats } => {
                self.on(worker.service, |it, cx| it.online(cx, worker, queues, page, stats, now));
            }
            Order::Listens { worker, listener, queue } => {
                self.on(worker.service, |it, _| it.workers.listens(worker, listener, queue));
            }
            Order::Unlistens { worker, listener } => {
                self.on(worker.service, |it, cx| it.unlistens(cx, worker, listener));
            }
            Order::Weight { service, slot, weight } => self.on(service, |it, _| it.set_weight(slot, weight)),
            Order::CountServed { worker, limit } => {
                self.on(worker.service, |it, _| it.workers.count_served(worker, limit));
            }
            Order::Sessions { worker, changes } => {
                self.on(worker.service, |it, cx| it.change_sessions(worker, &changes, now, cx));
            }
            Order::Drain(worker) => self.on(worker.service, |it, cx| it.drain(cx, worker)),
            Order::WorkerDied(worker) => self.on(worker.service, |it, cx| it.worker_died(cx, worker, now)),
            Order::Moved { service, slot, listener, socket, client, stats } => {
                stats.moving.fetch_sub(1, Relaxed);
                self.on(service, |it, cx| it.moved((slot, &stats), listener, (socket, client), now, cx));
            }
            Order::Rescued { from, sockets } => {
                self.on(from.worker.service, |it, cx| it.rescued(cx, &from, sockets, now));
            }
            Order::Stop(service) => self.on(service, |it, _| it.stop()),
            Order::StopNow(service) => self.on(service, |it, cx| it.stop_now(cx)),
            Order::Pause(service) => self.on(service, |it, _| it.pause()),
            Order::PauseNow(service) => self.on(service, |it, cx| it.pause_now(cx)),
        }
    }

    fn on(&mut self, service: ServiceId, act: impl FnOnce(&mut ServiceDispatcher, &Context)) {
        if let Some(dispatcher) = self.dispatchers.get_mut(service) {
            act(dispatcher, &self.context);
        }
    }
}

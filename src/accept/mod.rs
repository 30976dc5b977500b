//! The accept thread: listeners → policy → hand-off. It never forks, logs or blocks.

mod accepting;
mod alarm;
mod dispatcher;
mod ends;
pub mod orders;
mod pacing;
pub mod policy;
mod stalls;
mod worker;
mod worker_set;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::handoff::rescue::{self, Job};
use crate::sys::interrupt::impatiently;
use alarm::Alarm;
use dispatcher::{Reporter, ServiceDispatcher};
use orders::{Order, Report, RescueKey, WorkerId};
use pacing::Pacing;

const WAKER: Token = Token(usize::MAX);
/// Places of one service's listeners in a token.
const LISTENERS: usize = orders::PLACES;

/// The control thread's handle: orders go in here.
#[derive(Debug, Clone)]
pub struct Orders {
    sender: Sender<Order>,
    waker: Arc<Waker>,
}

impl Orders {
    /// Queues an order and wakes the accept thread.
    pub fn send(&self, order: Order) {
        // Both fail only when the accept thread is gone, and then the daemon is ending.
        let _ = self.sender.send(order);
        let _ = self.waker.wake();
    }
}

/// Starts the accept thread and the rescue thread that belongs to it. `report` is called on the accept thread
/// and must not block.
///
/// # Errors
/// When epoll or a thread cannot be had.
pub fn spawn(report: impl Fn(Report) + Send + 'static) -> io::Result<Orders> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let (sender, receiver) = unbounded();
    let orders = Orders { sender, waker };
    let back = orders.clone();
    let rescue = rescue::spawn(move |from, sockets| back.send(Order::Rescued { from, sockets }))?;
    let mut acceptor = Acceptor {
        poll,
        orders: receiver,
        dispatchers: Vec::new(),
        reporter: Reporter { rescue, report: Box::new(report) },
    };
    thread::Builder::new().name("accept".into()).spawn(move || acceptor.run())?;
    Ok(orders)
}

struct Acceptor {
    poll: Poll,
    orders: Receiver<Order>,
    dispatchers: Vec<ServiceDispatcher>,
    reporter: Reporter,
}

impl Acceptor {
    fn run(&mut self) {
        crate::sys::process::prefer_batches();
        let mut events = Events::with_capacity(256);
        let mut pacing = Pacing::new(Instant::now());
        let mut alarm = Alarm::new();
        loop {
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => alarm.rang(self.accepted()),
                // Only a closed or foreign epoll descriptor can do this; go on by timer, at a bounded rate.
                Err(_) => thread::sleep(Duration::from_millis(50)),
                Ok(()) => {}
            }
            let now = Instant::now();
            for event in &events {
                let Token(token) = event.token();
                if event.token() == WAKER {
                    self.take_orders(now);
                } else if let Some(dispatcher) = self.dispatchers.get_mut(token / LISTENERS) {
                    dispatcher.readable(token % LISTENERS);
                }
            }
            if self.dispatchers.iter().any(ServiceDispatcher::has_ready) {
                alarm.run();
            }
            for dispatcher in &mut self.dispatchers {
                dispatcher.turn(&self.poll, now, &self.reporter);
            }
            if let Some(pause) = pacing
                .pause(self.accepted(), now, || self.dispatchers.iter().map(ServiceDispatcher::connection_count).sum())
            {
                // Not where something is due, a rest of the backlog for one.
                thread::sleep(self.timeout(Instant::now()).map_or(pause, |due| due.min(pause)));
            }
        }
    }

    /// Connections accepted, ever.
    fn accepted(&self) -> u64 {
        self.dispatchers.iter().map(ServiceDispatcher::accepted).sum()
    }

    /// Until when there is nothing to do; `None`: until an event comes.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let next = self.dispatchers.iter().filter_map(|dispatcher| dispatcher.deadline(now)).min()?;
        Some(next.saturating_duration_since(now))
    }

    fn take_orders(&mut self, now: Instant) {
        while let Ok(order) = self.orders.try_recv() {
            let count = self.dispatchers.len();
            match order {
                Order::Service { rules, stats } => self.dispatchers.push(ServiceDispatcher::new(count, rules, stats)),
                Order::Listener { service, id, socket } => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.add_listener(&self.poll, id, socket);
                    }
                }
                Order::Rules(service, rules) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.set_rules(rules);
                    }
                }
                Order::CloseListener { service, id } => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.close_listener(&self.poll, id);
                    }
                }
                Order::Forget { service, id } => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.forget_listener(&self.poll, id);
                    }
                    self.reporter.send(Report::Forgotten { service, listener: id });
                }
                Order::StopAccepting { service, id } => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.remove_listener(&self.poll, id);
                    }
                }
                Order::Refuse(service) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.refuse(&self.reporter);
                    }
                }
                Order::Online { worker, queues, page, stats } => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(worker.service) {
                        dispatcher.online(&self.poll, worker, queues, page, stats, now);
                    }
                }
                Order::Listens { worker, listener, queue } => {
                    self.on(worker, |dispatcher, _, _| dispatcher.listens(worker, listener, queue));
                }
                Order::Unlistens { worker, listener } => {
                    self.on(worker, |dispatcher, _, reporter| dispatcher.unlistens(worker, listener, reporter));
                }
                Order::Drain(worker) => self.on(worker, |dispatcher, poll, reporter| {
                    dispatcher.drain(poll, worker, reporter);
                    reporter.send(Report::Drained(worker));
                }),
                Order::WorkerDied(worker) => {
                    self.on(worker, |dispatcher, poll, reporter| dispatcher.gone(poll, worker, now, reporter))
                }
                Order::Rescued { from, sockets } => {
                    self.on(from.worker, |dispatcher, _, reporter| dispatcher.rescued(&from, sockets, now, reporter));
                }
                Order::Stop(service) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.stop();
                    }
                }
                Order::StopNow(service) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.stop_now(&self.reporter);
                    }
                }
                Order::Pause(service) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.pause();
                    }
                }
                Order::PauseNow(service) => {
                    if let Some(dispatcher) = self.dispatchers.get_mut(service) {
                        dispatcher.pause_now(&self.poll, &self.reporter);
                    }
                }
            }
        }
    }

    fn on(&mut self, worker: WorkerId, act: impl FnOnce(&mut ServiceDispatcher, &Poll, &Reporter)) {
        if let Some(dispatcher) = self.dispatchers.get_mut(worker.service) {
            act(dispatcher, &self.poll, &self.reporter);
        }
    }
}

/// Starts watching a listener, edge-triggered.
fn watch(poll: &Poll, socket: &OwnedFd, service: usize, place: usize) -> io::Result<()> {
    let token = Token(service * LISTENERS + place);
    poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
}

/// Stops watching a listener.
fn unwatch(poll: &Poll, socket: &OwnedFd) {
    // Fails only when it was not watched.
    let _ = poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
}

/// Closes a listener, if nobody else of us has it.
fn let_go(socket: Arc<OwnedFd>) {
    impatiently(|| drop(socket));
}

type RescueJob = Job<RescueKey>;

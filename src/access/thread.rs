//! The thread that reads all memory files and makes lines of the records.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::{Events, Poll, Token, Waker};

use super::Adopted;
use super::book::{Book, DEATH};
use super::record::BookRecord;
use crate::handoff::bell::Bell;
use crate::limited::Limited;
use crate::output::sinks::Outlet;

const WAKER: Token = Token(0);
/// Interval of looks while records come.
const BATCH: Duration = Duration::from_millis(100);
/// The most often that the bell can wake the thread.
const BELL_PAUSE: Duration = Duration::from_millis(5);
/// Workers that are gone while processes of theirs still have connections; of more the oldest are ended.
const MAX_LEFTOVERS: usize = 256;

pub enum Order {
    Open(u64, Box<Book>),
    /// One of the program before.
    GoOn(Adopted),
    Listener {
        book: u64,
        id: usize,
        name: String,
    },
    Upstreams {
        book: u64,
        names: Vec<String>,
    },
    /// Its worker is gone.
    Gone(u64),
    /// The daemon ends.
    Finish(Sender<()>),
    /// Tell what is open, and wait until told to go on.
    StandStill(Sender<Vec<BookRecord>>, Receiver<()>),
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub struct Thread {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    pub bell: Arc<Bell>,
    next: Arc<AtomicU64>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl Thread {
    /// With the bell that workers have already, if they do.
    ///
    /// # Errors
    /// When epoll, memory or a thread cannot be had.
    pub fn start(outlet: Outlet, bell: Option<OwnedFd>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let rung = waker.clone();
        let wake = move || {
            let _ = rung.wake();
            // A server may ring as often as it likes.
            thread::sleep(BELL_PAUSE);
        };
        let bell = match bell {
            Some(bell) => Bell::hang_again(bell, wake)?,
            None => Bell::hang(wake)?,
        };
        let (orders, receiver) = unbounded();
        let mut reader = Reader {
            poll,
            orders: receiver,
            outlet,
            books: BTreeMap::new(),
            reported: BTreeMap::new(),
            warnings: Limited::default(),
        };
        thread::Builder::new().name("access".into()).spawn(move || reader.run())?;
        Ok(Self { orders, waker, bell: Arc::new(bell), next: Arc::default() })
    }

    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// That number is taken.
    pub fn next_after(&self, number: u64) {
        self.next.fetch_max(number + 1, Relaxed);
    }

    pub fn send(&self, order: Order) {
        // Both fail only when the thread is gone, and then the daemon is ending.
        let _ = self.orders.send(order);
        let _ = self.waker.wake();
    }
}

struct Reader {
    poll: Poll,
    orders: Receiver<Order>,
    outlet: Outlet,
    books: BTreeMap<u64, Book>,
    /// Lines lost that the log has said, by service.
    reported: BTreeMap<Arc<str>, u64>,
    warnings: Limited,
}

impl Reader {
    fn run(&mut self) {
        let mut events = Events::with_capacity(64);
        let mut pause = None;
        loop {
            if let Err(error) = self.poll.poll(&mut events, pause)
                && error.kind() != io::ErrorKind::Interrupted
            {
                thread::sleep(BATCH);
            }
            if events.iter().any(|event| event.token() == DEATH) {
                self.books.values_mut().for_each(Book::look);
            }
            self.take_orders();
            let busy = self.turn();
            let unsaid = self.warn();
            // Writers ring only for one that sleeps; what came before that is found by a last look.
            pause = match busy || self.books.values().any(Book::sleep) {
                true => Some(BATCH),
                false if unsaid => Some(Duration::from_secs(1)),
                false => None,
            };
        }
    }

    /// Reads and writes once; whether there was anything.
    fn turn(&mut self) -> bool {
        let mut busy = false;
        for book in self.books.values_mut() {
            busy |= book.step(self.poll.registry());
            book.write(&self.outlet);
        }
        self.books.retain(|_, book| !book.is_over());
        busy
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Open(number, book) => drop(self.books.insert(number, *book)),
                Order::GoOn(Adopted { number, mut book, said }) => {
                    self.reported.entry(book.subject.service.clone()).or_insert(said);
                    book.go_on(self.poll.registry());
                    self.books.insert(number, *book);
                }
                Order::Listener { book, id, name } => {
                    if let Some(book) = self.books.get_mut(&book) {
                        book.listeners.insert(id, name);
                    }
                }
                Order::Upstreams { book, names } => {
                    if let Some(book) = self.books.get_mut(&book) {
                        book.upstreams = names;
                    }
                }
                Order::Gone(number) => self.gone(number),
                Order::Finish(done) => {
                    self.books.values_mut().for_each(Book::look);
                    self.turn();
                    for book in self.books.values_mut() {
                        book.end_all();
                        book.write(&self.outlet);
                    }
                    let _ = done.try_send(());
                }
                Order::StandStill(told, go_on) => {
                    self.turn();
                    let said = |book: &Book| self.reported.get(&book.subject.service).copied().unwrap_or(0);
                    let books = self.books.iter().map(|(&number, book)| book.record(number, said(book)));
                    if told.try_send(books.collect()).is_ok() {
                        let _ = go_on.recv();
                    }
                }
            }
        }
    }

    fn gone(&mut self, number: u64) {
        if let Some(book) = self.books.get_mut(&number) {
            book.look();
            book.end();
        }
        let leftovers: Vec<u64> =
            self.books.iter().filter(|(_, book)| book.is_gone()).map(|(&number, _)| number).collect();
        for number in leftovers.iter().rev().skip(MAX_LEFTOVERS) {
            if let Some(mut book) = self.books.remove(number) {
                book.end_all();
                book.write(&self.outlet);
            }
        }
    }

    /// Says in the log what is missing, at most once a second; whether something is still to be said.
    fn warn(&mut self) -> bool {
        let mut unsaid = false;
        for book in self.books.values() {
            let lost = book.subject.lost.load(Relaxed);
            let reported = self.reported.entry(book.subject.service.clone()).or_default();
            if lost <= *reported {
                continue;
            }
            if self.warnings.pass(Instant::now()).is_some() {
                tracing::warn!(service = %book.subject.service, lines = lost - *reported, "access log: lines lost");
                *reported = lost;
            } else {
                unsaid = true;
            }
        }
        unsaid
    }
}

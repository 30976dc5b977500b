//! The servers' lines: read from their pipes by one thread, kept for a while, passed on, shown to who reads along.
//!
//! A server never waits for our reader: what does not fit into a bounded queue is dropped, oldest first, and counted.

mod messages;
mod record;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

pub use self::record::SourceRecord;
use super::complaints::Complaints;
use super::follow::{Follower, LogKind, Query};
use super::line::{Line, Origin, Stream};
use super::recent::Recent;
use super::ring::Ring;
use super::sinks::{Format, Outlet, Sinks};

/// Bytes read from one server before others have their turn.
const BUDGET: usize = 64 * 1024;
/// A longer line is taken in pieces.
const LONGEST: usize = 16 * 1024;
/// Readers at once.
const MAX_FOLLOWERS: usize = 32;
/// Bytes of messages that may wait for the thread; a longer one is not kept at all.
const MAX_UNDER_WAY: usize = 1 << 20;
const WAKER: Token = Token(usize::MAX);

enum Order {
    Add(Origin, Stream, File, Vec<u8>),
    Last {
        service: Arc<str>,
        pid: u32,
        most: usize,
        reply: Sender<Vec<String>>,
    },
    Follow(Follower),
    /// A worker's message, or an event of the daemon's log.
    Text(Line),
    Forget(String),
    Reopen,
    Finish(Sender<()>),
    /// Tell what is read, and wait until told to go on.
    StandStill(Sender<Vec<SourceRecord>>, Receiver<()>),
}

/// The handle of the thread that reads.
#[derive(Debug, Clone)]
pub struct Servers {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    /// Bytes of messages that wait for the thread.
    under_way: Arc<AtomicUsize>,
    outlet: Outlet,
}

impl Servers {
    /// Starts the thread that reads, and those that pass on.
    ///
    /// # Errors
    /// When epoll or a thread cannot be had.
    pub fn start(format: Option<Format>, recent: Recent) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (orders, receiver) = unbounded();
        let under_way = Arc::new(AtomicUsize::new(0));
        let sinks = Sinks::start(format)?;
        let outlet = sinks.outlet();
        let mut reader = Reader {
            under_way: under_way.clone(),
            poll,
            orders: receiver,
            sinks,
            sources: HashMap::new(),
            followers: BTreeMap::new(),
            next: 0,
            rings: BTreeMap::new(),
            messages: BTreeMap::new(),
            recent,
            complaints: Complaints::default(),
        };
        thread::Builder::new().name("servers".into()).spawn(move || reader.run())?;
        Ok(Self { orders, waker, under_way, outlet })
    }

    /// The way to our own stdout and to log files for lines that are not the servers'.
    pub fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    fn send(&self, order: Order) {
        // Both fail only when the thread is gone, and then the daemon is ending.
        let _ = self.orders.send(order);
        let _ = self.waker.wake();
    }

    /// Reads one stream of a server to its end.
    pub fn add(&self, origin: Origin, stream: Stream, pipe: OwnedFd) {
        self.send(Order::Add(origin, stream, pipe.into(), Vec::new()));
    }

    /// The last lines of a process, as far as they are kept; waits a moment for what lies in its pipes.
    pub fn last(&self, service: &str, pid: u32, most: usize) -> Vec<String> {
        let (reply, answer) = bounded(1);
        self.send(Order::Last { service: service.into(), pid, most, reply });
        answer.recv_timeout(Duration::from_millis(200)).unwrap_or_default()
    }

    /// Shows lines to a client of the control socket, and closes it when it has them all.
    pub fn follow(&self, stream: UnixStream, query: Query, unwritten: Vec<u8>) {
        self.send(Order::Follow(Follower::new(stream, query, unwritten)));
    }

    /// A service is no more: its lines may go.
    pub fn forget(&self, service: &str) {
        self.send(Order::Forget(service.to_owned()));
    }

    /// Opens log files anew, after something else has renamed them.
    pub fn reopen(&self) {
        self.send(Order::Reopen);
    }

    /// Passes on what is there, at the end of the daemon; at most for a moment.
    pub fn finish(&self) {
        let (done, finished) = bounded(1);
        self.send(Order::Finish(done));
        let _ = finished.recv_timeout(Duration::from_millis(800));
    }
}

struct Source {
    origin: Origin,
    stream: Stream,
    pipe: File,
    /// The beginning of a line.
    part: Vec<u8>,
}

struct Reader {
    poll: Poll,
    orders: Receiver<Order>,
    sinks: Sinks,
    sources: HashMap<usize, Source>,
    followers: BTreeMap<usize, Follower>,
    next: usize,
    rings: BTreeMap<Arc<str>, Ring>,
    under_way: Arc<AtomicUsize>,
    /// The same for workers' messages.
    messages: BTreeMap<Arc<str>, Ring>,
    /// The daemon's events.
    recent: Recent,
    complaints: Complaints,
}

impl Reader {
    fn run(&mut self) {
        let mut events = Events::with_capacity(64);
        // Those that an edge came for and that have not been read empty since.
        let mut ready: VecDeque<usize> = VecDeque::new();
        loop {
            let due = self.sinks.due().map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = if ready.is_empty() { due } else { Some(Duration::ZERO) };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                thread::sleep(Duration::from_millis(50));
            }
            for event in &events {
                let Token(token) = event.token();
                if event.is_readable() && self.followers.get_mut(&token).is_some_and(Follower::is_gone) {
                    self.dismiss(token);
                } else if event.token() != WAKER && self.sources.contains_key(&token) && !ready.contains(&token) {
                    ready.push_back(token);
                }
            }
            self.sinks.overdue(Instant::now());
            self.take_orders(&mut ready);
            for _ in 0..ready.len() {
                let Some(token) = ready.pop_front() else { break };
                if self.read(token) {
                    ready.push_back(token);
                }
            }
            self.write();
        }
    }

    /// Passes on to followers what they take.
    fn write(&mut self) {
        let mut done = Vec::new();
        for (&token, follower) in &mut self.followers {
            if follower.query.of == LogKind::Events {
                follower.events(&self.recent);
            }
            if follower.write() {
                done.push(token);
            }
        }
        done.into_iter().for_each(|token| self.dismiss(token));
    }

    fn take_orders(&mut self, ready: &mut VecDeque<usize>) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Add(origin, stream, pipe, part) => {
                    let token = self.next;
                    self.next += 1;
                    let fd = pipe.as_raw_fd();
                    if self.poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).is_ok() {
                        self.sources.insert(token, Source { origin, stream, pipe, part });
                        ready.push_back(token);
                    }
                }
                Order::Last { service, pid, most, reply } => {
                    self.read_all(|_| true);
                    let last = self
                        .rings
                        .get(&service)
                        .map(|ring| ring.last(&service, most, |_, own, stream| own == pid && stream != Stream::Event));
                    let _ = reply.try_send(last.unwrap_or_default().into_iter().map(|line| line.line).collect());
                }
                Order::Follow(follower) => self.follow(follower),
                Order::Text(line) => {
                    self.under_way.fetch_sub(line.text().len(), Relaxed);
                    self.text(&line);
                }
                Order::Forget(service) => {
                    self.rings.remove(service.as_str());
                    self.messages.remove(service.as_str());
                    self.sinks.forget(&service);
                }
                Order::Reopen => self.sinks.reopen(),
                Order::Finish(done) => {
                    self.read_all(|_| true);
                    self.write();
                    self.sinks.finish();
                    let _ = done.try_send(());
                }
                Order::StandStill(told, go_on) => self.stand_still(&told, &go_on),
            }
        }
    }

    fn follow(&mut self, mut follower: Follower) {
        self.read_all(|_| true);
        let query = follower.query.clone();
        let mut lines: Vec<Line> = Vec::new();
        let rings = match query.of {
            LogKind::Lines => Some(&self.rings),
            LogKind::Messages => Some(&self.messages),
            LogKind::Events => None,
        };
        for (service, ring) in rings.into_iter().flatten().filter(|(service, _)| query.wants_service(service)) {
            lines.extend(ring.last(service, query.lines, |slot, _, stream| query.wants_line(slot, stream)));
        }
        // Of several services, what came last.
        lines.sort_by(|a, b| a.time.cmp(&b.time));
        lines.iter().skip(lines.len().saturating_sub(query.lines)).for_each(|line| follower.line(line));
        let token = self.next;
        self.next += 1;
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.followers.len() < MAX_FOLLOWERS
            && self.poll.registry().register(&mut follower.stream, Token(token), both).is_ok()
        {
            self.followers.insert(token, follower);
        }
    }

    fn text(&mut self, line: &Line) {
        if line.stream == Stream::Event {
            // What a server wrote before its end comes before word of it.
            self.read_all(|source| source.origin.pid == line.pid);
        }
        let at = SystemTime::now();
        let (rings, of) = match line.stream {
            Stream::Message => (&mut self.messages, LogKind::Messages),
            _ => (&mut self.rings, LogKind::Lines),
        };
        let ring = rings.entry(line.service.as_str().into()).or_default();
        ring.push(line.slot, line.pid, line.stream, at, line.text());
        let of = |query: &Query| query.wants(of, &line.service, line.slot, line.stream);
        self.followers.values_mut().filter(|follower| of(&follower.query)).for_each(|follower| follower.line(line));
    }

    fn dismiss(&mut self, token: usize) {
        if let Some(mut follower) = self.followers.remove(&token) {
            let _ = self.poll.registry().deregister(&mut follower.stream);
        }
    }

    fn read_all(&mut self, of: impl Fn(&Source) -> bool) {
        let tokens: Vec<usize> =
            self.sources.iter().filter(|(_, source)| of(source)).map(|(&token, _)| token).collect();
        for token in tokens {
            // Whoever writes faster than this does not hold up the end.
            for _ in 0..64 {
                if !self.read(token) {
                    break;
                }
            }
        }
    }

    /// Reads for one turn; whether there may be more.
    fn read(&mut self, token: usize) -> bool {
        let mut budget = BUDGET;
        let mut buffer = [0; 16 * 1024];
        while budget > 0 {
            let Some(source) = self.sources.get_mut(&token) else { return false };
            match source.pipe.read(&mut buffer) {
                Ok(0) => return self.end(token),
                Ok(n) => {
                    budget = budget.saturating_sub(n);
                    self.took(token, &buffer[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(token),
            }
        }
        true
    }

    fn took(&mut self, token: usize, bytes: &[u8]) {
        let Some(source) = self.sources.get_mut(&token) else { return };
        let passed = self.sinks.raw(&source.origin, source.stream, bytes);
        source.part.extend_from_slice(bytes);
        let end = match source.part.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => newline + 1,
            None if source.part.len() > LONGEST => source.part.len(),
            None => return,
        };
        let mut part = std::mem::take(&mut source.part);
        let (origin, stream) = (source.origin.clone(), source.stream);
        self.lines(&origin, stream, &part[..end], passed);
        part.drain(..end);
        if let Some(source) = self.sources.get_mut(&token) {
            source.part = part;
        }
    }

    /// Whole lines: kept, shown, and passed on unless they were already.
    fn lines(&mut self, origin: &Origin, stream: Stream, text: &[u8], passed: bool) {
        let at = SystemTime::now();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let lines = || text.split(|&byte| byte == b'\n');
        if stream == Stream::Err {
            self.complaints.look(origin, lines());
        }
        let ring = self.rings.entry(origin.service.clone()).or_default();
        lines().for_each(|line| ring.push(origin.slot, origin.pid, stream, at, line));
        let wants = |query: &Query| query.wants(LogKind::Lines, &origin.service, origin.slot, stream);
        for follower in self.followers.values_mut().filter(|follower| wants(&follower.query)) {
            for line in lines() {
                follower.line(&Line::new(&origin.service, origin.slot, origin.pid, stream, at, line));
            }
        }
        if !passed {
            self.sinks.lines(origin, stream, at, lines());
        }
    }

    /// A stream has ended: what it left without an end of line is a line.
    fn end(&mut self, token: usize) -> bool {
        if let Some(source) = self.sources.remove(&token) {
            let _ = self.poll.registry().deregister(&mut SourceFd(&source.pipe.as_raw_fd()));
            if !source.part.is_empty() {
                let passed = self.sinks.raw(&source.origin, source.stream, b"");
                self.lines(&source.origin, source.stream, &source.part, passed);
            }
            self.sinks.end(&source.origin, source.stream);
        }
        false
    }
}

//! The servers' lines: read from their pipes by one thread, kept for a while, passed on to our stdout and stderr.
//!
//! A server never waits for our reader: what does not fit into a bounded queue is dropped, oldest first, and counted.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::passing::{Format, Passing};

/// Bytes read from one server before others have their turn.
const BUDGET: usize = 64 * 1024;
/// A longer line is kept in pieces.
const LONGEST: usize = 16 * 1024;
/// Lines kept for each slot.
const KEPT: usize = 1000;
const WAKER: Token = Token(usize::MAX);

/// Which of a server's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Whose lines.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The service.
    pub service: Arc<str>,
    /// The slot; `None` for a server that all slots share.
    pub slot: Option<u32>,
    /// The server's process.
    pub pid: u32,
}

/// A line that is kept.
#[derive(Debug, Clone)]
pub struct Line {
    /// Whose.
    pub pid: u32,
    /// Without its end.
    pub text: Vec<u8>,
}

enum Order {
    Add(Origin, Stream, File),
    Last { slot: Option<u32>, pid: u32, most: usize, reply: Sender<Vec<String>> },
    Finish(Sender<()>),
}

/// The handle of the thread that reads.
#[derive(Debug, Clone)]
pub struct Servers {
    orders: Sender<Order>,
    waker: Arc<Waker>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl Servers {
    /// Starts the thread that reads, and those that pass on.
    ///
    /// # Errors
    /// When epoll or a thread cannot be had.
    pub fn start(format: Format) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (orders, receiver) = unbounded();
        let passing = Passing::start(format)?;
        let mut reader =
            Reader { poll, orders: receiver, passing, streams: HashMap::new(), next: 0, kept: HashMap::new() };
        thread::Builder::new().name("servers".into()).spawn(move || reader.run())?;
        Ok(Self { orders, waker })
    }

    fn send(&self, order: Order) {
        // Both fail only when the thread is gone, and then the daemon is ending.
        let _ = self.orders.send(order);
        let _ = self.waker.wake();
    }

    /// Reads one stream of a server to its end.
    pub fn add(&self, origin: Origin, stream: Stream, pipe: OwnedFd) {
        self.send(Order::Add(origin, stream, pipe.into()));
    }

    /// The last lines of a process, as far as they are kept; waits a moment for what lies in its pipes.
    pub fn last(&self, slot: Option<u32>, pid: u32, most: usize) -> Vec<String> {
        let (reply, answer) = bounded(1);
        self.send(Order::Last { slot, pid, most, reply });
        answer.recv_timeout(Duration::from_millis(200)).unwrap_or_default()
    }

    /// Passes on what is there, at the end of the daemon; at most for a moment.
    pub fn finish(&self) {
        let (done, finished) = bounded(1);
        self.send(Order::Finish(done));
        let _ = finished.recv_timeout(Duration::from_millis(500));
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
    passing: Passing,
    streams: HashMap<usize, Source>,
    next: usize,
    kept: HashMap<Option<u32>, VecDeque<Line>>,
}

impl Reader {
    fn run(&mut self) {
        let mut events = Events::with_capacity(64);
        // Those that an edge came for and that have not been read empty since.
        let mut ready: VecDeque<usize> = VecDeque::new();
        loop {
            let timeout = if ready.is_empty() { None } else { Some(Duration::ZERO) };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                thread::sleep(Duration::from_millis(50));
            }
            for event in &events {
                let Token(token) = event.token();
                if event.token() != WAKER && !ready.contains(&token) {
                    ready.push_back(token);
                }
            }
            self.take_orders(&mut ready);
            for _ in 0..ready.len() {
                let Some(token) = ready.pop_front() else { break };
                if self.read(token) {
                    ready.push_back(token);
                }
            }
        }
    }

    fn take_orders(&mut self, ready: &mut VecDeque<usize>) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Add(origin, stream, pipe) => {
                    let token = self.next;
                    self.next += 1;
                    let fd = pipe.as_raw_fd();
                    if self.poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).is_ok() {
                        self.streams.insert(token, Source { origin, stream, pipe, part: Vec::new() });
                        ready.push_back(token);
                    }
                }
                Order::Last { slot, pid, most, reply } => {
                    self.read_all();
                    let kept = self.kept.get(&slot).into_iter().flatten().filter(|line| line.pid == pid);
                    let text = |line: &Line| String::from_utf8_lossy(&line.text).into_owned();
                    let mut lines: Vec<_> = kept.rev().take(most).map(text).collect();
                    lines.reverse();
                    let _ = reply.try_send(lines);
                }
                Order::Finish(done) => {
                    self.read_all();
                    self.passing.finish();
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn read_all(&mut self) {
        let tokens: Vec<usize> = self.streams.keys().copied().collect();
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
            let Some(source) = self.streams.get_mut(&token) else { return false };
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
        let Some(source) = self.streams.get_mut(&token) else { return };
        self.passing.raw(source.stream, bytes);
        source.part.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(end) = source.part[from..].iter().position(|&byte| byte == b'\n') {
            let line = &source.part[from..from + end];
            self.passing.line(&source.origin, source.stream, line);
            keep(&mut self.kept, &source.origin, line);
            from += end + 1;
        }
        source.part.drain(..from);
        if source.part.len() > LONGEST {
            self.passing.line(&source.origin, source.stream, &source.part);
            keep(&mut self.kept, &source.origin, &source.part);
            source.part.clear();
        }
    }

    /// A stream has ended: what it left without an end of line is a line.
    fn end(&mut self, token: usize) -> bool {
        if let Some(source) = self.streams.remove(&token) {
            let _ = self.poll.registry().deregister(&mut SourceFd(&source.pipe.as_raw_fd()));
            if !source.part.is_empty() {
                self.passing.line(&source.origin, source.stream, &source.part);
                keep(&mut self.kept, &source.origin, &source.part);
            }
        }
        false
    }
}

fn keep(kept: &mut HashMap<Option<u32>, VecDeque<Line>>, origin: &Origin, text: &[u8]) {
    let lines = kept.entry(origin.slot).or_default();
    if lines.len() >= KEPT {
        lines.pop_front();
    }
    lines.push_back(Line { pid: origin.pid, text: text.to_vec() });
}

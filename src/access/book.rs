//! The connections of one worker: what its processes recorded, and the lines that come of it.

pub mod record;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::line::{End, Line, Relayed, address};
use super::settings::AccessFormat;
use crate::abi::access::{Closed, IDS, NONE, Received, Record, end};
use crate::handoff::access::AccessReader;
use crate::output::sinks::{Outlet, To};
use crate::sys::clock::monotonic_ns;
use crate::sys::process;

/// Connections of a worker that are remembered until they are closed; the lines of more are lost.
const MAX_OPEN: usize = 1 << 16;
/// Processes of a worker whose ends are watched.
const MAX_PROCESSES: usize = 64;

/// Whose lines, and where they go: all words in a line are from here.
#[derive(Debug)]
pub struct Subject {
    pub service: Arc<str>,
    /// What has a share of the lines that may wait to be written.
    pub share: Arc<str>,
    pub slot: u32,
    pub generation: u64,
    pub format: AccessFormat,
    pub to: To,
    /// Whether a relay worker writes.
    pub relays: bool,
    /// Lines of the service that are missing.
    pub lost: Arc<AtomicU64>,
}

impl Subject {
    pub fn share(service: &str) -> Arc<str> {
        format!("{service} access log").into()
    }
}

/// A process with connections.
#[derive(Debug, Default)]
struct Process {
    watched: Option<OwnedFd>,
    /// It has ended; what it had recorded by then lies before this place in the ring.
    gone: Option<u64>,
    open: usize,
}

/// The same moment on two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall: SystemTime,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub ns: u64,
}

impl Now {
    pub fn read() -> Self {
        Self { wall: SystemTime::now(), ns: monotonic_ns() }
    }
}

#[derive(Debug)]
pub struct Book {
    pub subject: Subject,
    reader: AccessReader,
    /// What it reads, for the program that takes our place.
    file: Arc<OwnedFd>,
    /// When it was begun: no connection is older.
    since: u64,
    pub listeners: BTreeMap<usize, String>,
    pub upstreams: Vec<String>,
    open: HashMap<u32, Received>,
    /// Numbers of open connections by process and descriptor: one that comes where another is shows that the other was
    /// closed unseen.
    places: HashMap<(u32, u32), u32>,
    processes: HashMap<u32, Process>,
    /// The worker is gone; see [`Process::gone`].
    gone: Option<u64>,
    /// Lines to be written.
    bytes: Vec<u8>,
}

impl Book {
    pub fn new(subject: Subject, reader: AccessReader, file: Arc<OwnedFd>, since: u64) -> Self {
        Self {
            subject,
            reader,
            file,
            since,
            listeners: BTreeMap::new(),
            upstreams: Vec::new(),
            open: HashMap::new(),
            places: HashMap::new(),
            processes: HashMap::new(),
            gone: None,
            bytes: Vec::new(),
        }
    }

    pub fn file(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }

    /// The worker is gone. Connections that other processes still have stay open.
    pub fn end(&mut self) {
        self.gone = Some(self.reader.head());
    }

    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// Whether no line can come any more.
    pub fn is_over(&self) -> bool {
        self.gone.is_some_and(|head| self.reader.is_past(head)) && self.open.is_empty()
    }

    /// Has writers ring the bell from now on; whether something came before that.
    pub fn sleep(&self) -> bool {
        self.reader.sleep()
    }

    /// Looks which processes have ended.
    pub fn look(&mut self) {
        let head = self.reader.head();
        for process in self.processes.values_mut() {
            if process.watched.take_if(|fd| process::has_ended(fd)).is_some() {
                process.gone = Some(head);
            }
        }
    }

    /// Takes what was recorded, and closes what is over. Whether there was anything.
    pub fn step(&mut self, registry: &Registry) -> bool {
        let taken = self.reader.take();
        // After all that is in the records.
        let now = Now::read();
        let busy = taken.unfinished || !taken.records.is_empty();
        self.lose(taken.lost);
        for record in taken.records {
            match record {
                Record::Received(received) => self.received(received, now, registry),
                Record::Closed(closed) => self.closed(&closed, now),
            }
        }
        self.bury(now);
        busy
    }

    fn lose(&self, lines: u64) {
        self.subject.lost.fetch_add(lines, Relaxed);
    }

    fn received(&mut self, received: Received, now: Now, registry: &Registry) {
        if !(1..IDS).contains(&received.id) || self.open.len() >= MAX_OPEN {
            return self.lose(1);
        }
        if let Some(before) = self.places.get(&(received.pid, received.fd)).copied() {
            self.finish(before, received.received, End::Server, None, now);
        }
        if self.open.contains_key(&received.id) {
            return self.lose(1);
        }
        self.watch(received.pid, registry);
        self.places.insert((received.pid, received.fd), received.id);
        self.open.insert(received.id, received);
    }

    /// One more connection of a process.
    fn watch(&mut self, pid: u32, registry: &Registry) {
        if !self.processes.contains_key(&pid) {
            if self.processes.len() >= MAX_PROCESSES {
                self.processes.retain(|_, process| process.open > 0);
            }
            // Beyond, its connections end with the worker at the latest.
            if self.processes.len() >= MAX_PROCESSES {
                return;
            }
        }
        let head = self.reader.head();
        let process = self.processes.entry(pid).or_default();
        process.open += 1;
        if process.watched.is_none() && process.gone.is_none() {
            match process::pidfd_open(pid) {
                Ok(fd) => {
                    let watched = registry.register(&mut SourceFd(&fd.as_raw_fd()), DEATH, Interest::READABLE);
                    process.watched = watched.is_ok().then_some(fd);
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => process.gone = Some(head),
                Err(_) => {}
            }
        }
    }

    fn closed(&mut self, closed: &Closed, now: Now) {
        if closed.end == end::MOVED {
            // Its line is that of the worker that has it last.
            self.take(closed.id);
            return;
        }
        let end = match closed.end {
            end::CLIENT => End::Client,
            end::RESET => End::Reset,
            _ => End::Server,
        };
        self.finish(closed.id, closed.closed, end, Some(closed), now);
    }

    /// A process has a connection no more.
    fn take(&mut self, id: u32) -> Option<Received> {
        let received = self.open.remove(&id)?;
        let place = (received.pid, received.fd);
        if self.places.get(&place) == Some(&id) {
            self.places.remove(&place);
        }
        if let Some(process) = self.processes.get_mut(&received.pid) {
            process.open = process.open.saturating_sub(1);
        }
        Some(received)
    }

    /// A connection is over: its line.
    fn finish(&mut self, id: u32, closed_at: u64, end: End, closed: Option<&Closed>, now: Now) {
        let Some(received) = self.take(id) else { return };
        let in_range = |ns: u64| ns.clamp(self.since, now.ns.max(self.since));
        let received_at = in_range(received.received);
        let accepted = if received.accepted == 0 { received_at } else { in_range(received.accepted).min(received_at) };
        let known = |number: u32| Some(number).filter(|&number| number != NONE);
        let bytes = |number: u64| Some(number).filter(|&number| number != u64::MAX);
        let upstream = |closed: &Closed| {
            address(&closed.address)
                .map(|address| address.to_string())
                .or_else(|| self.upstreams.get(closed.upstream as usize).cloned())
        };
        let line = Line {
            time: now.wall.checked_sub(Duration::from_nanos(now.ns.saturating_sub(accepted))).unwrap_or(now.wall),
            service: &self.subject.service,
            slot: self.subject.slot,
            generation: self.subject.generation,
            client: address(&received.client),
            listener: self.listeners.get(&(received.listener as usize)).map(String::as_str),
            wait_us: (received.accepted != 0).then_some((received_at - accepted) / 1000),
            duration_ms: in_range(closed_at).saturating_sub(accepted) / 1000,
            bytes_in: closed.and_then(|closed| bytes(closed.bytes_in)),
            bytes_out: closed.and_then(|closed| bytes(closed.bytes_out)),
            rtt_us: closed.and_then(|closed| known(closed.rtt)),
            retransmits: closed.and_then(|closed| known(closed.retransmits)),
            end,
            relay: self.subject.relays.then(|| Relayed {
                upstream: closed.and_then(upstream),
                connect_us: closed.and_then(|closed| known(closed.connect)),
            }),
        };
        line.write(&mut self.bytes, self.subject.format);
    }

    /// Ends the connections of processes that are gone, once all that they recorded was read.
    fn bury(&mut self, now: Now) {
        let is_past = |gone: &Option<u64>| gone.is_some_and(|head| self.reader.is_past(head));
        let over = is_past(&self.gone);
        let buried: Vec<u32> =
            self.processes.iter().filter(|(_, process)| is_past(&process.gone)).map(|(&pid, _)| pid).collect();
        if buried.is_empty() && !over {
            return;
        }
        let lives = |pid: &u32| self.processes.get(pid).is_some_and(|process| process.watched.is_some());
        let ended = |received: &&Received| buried.contains(&received.pid) || (over && !lives(&received.pid));
        let ids: Vec<u32> = self.open.values().filter(ended).map(|received| received.id).collect();
        ids.into_iter().for_each(|id| self.finish(id, now.ns, End::WorkerExit, None, now));
        buried.iter().for_each(|pid| drop(self.processes.remove(pid)));
    }

    /// Ends everything: the daemon ends.
    pub fn end_all(&mut self) {
        let now = Now::read();
        let ids: Vec<u32> = self.open.keys().copied().collect();
        ids.into_iter().for_each(|id| self.finish(id, now.ns, End::WorkerExit, None, now));
    }

    /// Gives its lines away.
    pub fn write(&mut self, outlet: &Outlet) {
        if !self.bytes.is_empty() {
            outlet.write(&self.subject.share, &self.subject.to, std::mem::take(&mut self.bytes), &self.subject.lost);
        }
    }
}

/// Token of every process that is watched.
pub const DEATH: Token = Token(1);

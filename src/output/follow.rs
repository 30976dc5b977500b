//! `roundsman logs`: who reads along over the control socket. Each has a bounded queue; one that reads too slowly misses
//! the oldest lines and is told how many.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::UnixStream;

use super::line::{Line, Stream};
use super::recent::Recent;

/// What may wait for one reader, in bytes.
const MAX_WAITING: usize = 4 << 20;

/// Lines or messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// What servers wrote.
    Lines,
    /// What workers in Node sent.
    Messages,
    /// The daemon's events, as objects of their own.
    Events,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// What.
    pub of: LogKind,
    /// Whether what the daemon logged of the service is wanted among its lines.
    pub events: bool,
    /// One service, or all.
    pub service: Option<String>,
    /// One slot of it, or all.
    pub slot: Option<u32>,
    /// Lines of what came before.
    pub lines: usize,
    /// Whether what comes is wanted, too.
    pub follow: bool,
}

impl Query {
    /// Whether lines of a service are asked for.
    pub fn wants_service(&self, service: &str) -> bool {
        self.service.as_deref().is_none_or(|wanted| wanted == service)
    }

    /// Whether what comes from there now is.
    pub fn wants(&self, of: LogKind, service: &str, slot: Option<u32>, stream: Stream) -> bool {
        self.follow && self.of == of && self.wants_service(service) && self.wants_line(slot, stream)
    }

    /// Whether such lines of a slot are.
    pub fn wants_line(&self, slot: Option<u32>, stream: Stream) -> bool {
        (self.slot.is_none() || self.slot == slot) && (self.events || stream != Stream::Event)
    }
}

/// What a reader is told that missed something.
fn dropped(count: u64) -> Vec<u8> {
    format!("{{\"dropped\":{count}}}\n").into_bytes()
}

/// One reader.
pub struct Follower {
    /// Its connection.
    pub stream: UnixStream,
    /// What it asked for.
    pub query: Query,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// LogKind the first piece, so much is written.
    written: usize,
    dropped: u64,
    /// Number of the next event for it.
    next_event: Option<u64>,
}

impl Follower {
    /// Takes a connection over, with what is still to be written there.
    pub fn new(stream: UnixStream, query: Query, unwritten: Vec<u8>) -> Self {
        let mut follower =
            Self { stream, query, waiting: VecDeque::new(), bytes: 0, written: 0, dropped: 0, next_event: None };
        follower.push(unwritten);
        follower
    }

    /// Adds a line.
    pub fn line(&mut self, line: &Line) {
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        self.push(bytes);
    }

    /// Adds the events that it has not had yet; at first the last ones that it asked for.
    pub fn events(&mut self, recent: &Recent) {
        let mut events = recent.since(self.next_event.unwrap_or(0));
        let Some((first, last)) = events.first().map(|event| event.number).zip(events.last().map(|event| event.number))
        else {
            self.next_event.get_or_insert(0);
            return;
        };
        let begins = self.next_event.is_none();
        let missed = self.next_event.map_or(0, |next| first - next);
        self.next_event = Some(last + 1);
        let query = &self.query;
        events
            .retain(|event| query.wants_service(&event.service) && (query.slot.is_none() || query.slot == event.slot));
        let skipped = if begins { events.len().saturating_sub(query.lines) } else { 0 };
        // More came in one turn than are kept.
        self.dropped += missed;
        for event in &events[skipped..] {
            let mut bytes = serde_json::to_vec(&event.entry()).unwrap_or_default();
            bytes.push(b'\n');
            self.push(bytes);
        }
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.waiting.push_back(bytes);
        // The first may be on its way in part.
        while self.bytes > MAX_WAITING && self.waiting.len() > 2 {
            if let Some(oldest) = self.waiting.remove(1) {
                self.bytes -= oldest.len();
                self.dropped += 1;
            }
        }
    }

    /// Writes what goes. Whether it is done, and to be closed.
    pub fn write(&mut self) -> bool {
        while let Some(first) = self.waiting.front() {
            match self.stream.write(&first[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
            if self.written >= first.len() {
                self.bytes -= first.len();
                self.written = 0;
                self.waiting.pop_front();
                if self.dropped > 0 {
                    let note = dropped(std::mem::take(&mut self.dropped));
                    self.bytes += note.len();
                    self.waiting.push_front(note);
                }
            }
        }
        !self.query.follow
    }

    /// Whether it went away. What it still says is of no interest.
    pub fn is_gone(&mut self) -> bool {
        let mut buffer = [0; 1024];
        // As much as one that never stops may have looked at; then it is gone for us.
        for _ in 0..16 {
            match self.stream.read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return true,
            }
        }
        true
    }
}

//! What was seen of the daemons since the start: their latest states, rates from two samples, columns for plots.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::control::history::{History, Point, Series};
use crate::control::status::{Daemon, ServiceState};
use crate::sys::reason;

/// The time from one question to the next.
pub const PACE: Duration = Duration::from_secs(1);
/// Daemons that have ended are remembered up to this number of daemons.
const MAX_DAEMONS: usize = 64;

/// Events that are kept.
pub const MAX_EVENTS: usize = 256;

/// An event of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    pub at: SystemTime,
    /// Whether it is a warning or an error.
    pub bad: bool,
    /// `web/1`
    pub place: String,
    pub text: String,
}

/// The answers of all control sockets.
pub type Answers = Vec<(PathBuf, io::Result<Daemon>)>;

/// One daemon.
#[derive(Debug)]
pub struct Watched {
    pub socket: PathBuf,
    /// Its latest state.
    pub daemon: Daemon,
    /// Rates and waits of the last second or two.
    now: Box<[Series]>,
    history: History,
    /// Connections of upstreams at the last state, by service and address; and a second since then.
    upstreams: HashMap<(String, String), (u64, f64)>,
    at: Instant,
    /// Why there is no newer state, and since when.
    pub gone: Option<(SystemTime, String)>,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub daemons: Vec<Watched>,
    /// Why no daemon can be found.
    pub trouble: Option<String>,
    /// The latest events, the oldest first.
    pub events: VecDeque<Happened>,
}

impl Seen {
    /// Adds an event by its time: those of several daemons come in any order.
    pub fn happened(&mut self, event: Happened) {
        let at = self.events.iter().rposition(|known| known.at <= event.at).map_or(0, |at| at + 1);
        self.events.insert(at, event);
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    /// Takes the answers of one round. A daemon that is missing has ended.
    pub fn update(&mut self, answers: Answers, now: Instant, at: SystemTime) {
        for watched in &mut self.daemons {
            if watched.gone.is_none() && !answers.iter().any(|(socket, _)| *socket == watched.socket) {
                watched.gone = Some((at, "it has ended".to_owned()));
            }
        }
        for (socket, answer) in answers {
            let known = self.daemons.iter_mut().find(|watched| watched.socket == socket);
            match (known, answer) {
                (Some(watched), Ok(daemon)) if watched.daemon.pid == daemon.pid => watched.update(daemon, now),
                (Some(watched), Ok(daemon)) => *watched = Watched::new(socket, daemon, now),
                (None, Ok(daemon)) => self.daemons.push(Watched::new(socket, daemon, now)),
                (Some(watched), Err(error)) => drop(watched.gone.get_or_insert_with(|| (at, reason(&error)))),
                (None, Err(_)) => {}
            }
        }
        if self.daemons.len() > MAX_DAEMONS {
            self.daemons.retain(|watched| watched.gone.is_none());
        }
        self.daemons.sort_by(|a, b| a.socket.cmp(&b.socket));
    }
}

impl Watched {
    fn new(socket: PathBuf, daemon: Daemon, now: Instant) -> Self {
        let history = History::every(PACE);
        let mut watched = Self {
            socket,
            daemon: daemon.clone(),
            now: Box::default(),
            history,
            upstreams: HashMap::new(),
            at: now,
            gone: None,
        };
        watched.update(daemon, now);
        watched
    }

    fn update(&mut self, daemon: Daemon, now: Instant) {
        self.history.sample(&daemon, now);
        self.now = self.history.now(&daemon, now);
        let time = now.duration_since(self.at).as_secs_f64();
        let mut upstreams = HashMap::new();
        for service in &daemon.services {
            for upstream in &service.upstreams {
                let key = (service.name.clone(), upstream.addr.clone());
                let before = self.upstreams.get(&key).filter(|_| time > 0.0);
                let more = before.map_or(0, |(before, _)| upstream.connections.saturating_sub(*before));
                upstreams.insert(key, (upstream.connections, if time > 0.0 { more as f64 / time } else { 0.0 }));
            }
        }
        (self.upstreams, self.at, self.daemon, self.gone) = (upstreams, now, daemon, None);
    }

    /// The points of a service: its own, and its slots'.
    fn series(&self, service: &str) -> Option<&Series> {
        self.now.iter().find(|series| *series.service == *service)
    }

    pub fn point(&self, service: &ServiceState, slot: Option<usize>) -> Point {
        let of = |series: &Series| match slot {
            Some(slot) => series.slots.get(slot).copied(),
            None => Some(series.all),
        };
        self.series(&service.name).and_then(of).unwrap_or_default()
    }

    /// Connections a second to an upstream.
    pub fn rate(&self, service: &str, upstream: &str) -> f64 {
        self.upstreams.get(&(service.to_owned(), upstream.to_owned())).map_or(0.0, |(_, rate)| *rate)
    }

    /// The points of a service or slot so far, a second apart, and the number of the first.
    pub fn points(&self, service: &str, slot: Option<usize>) -> (u64, Vec<Point>) {
        let (columns, next) = self.history.since(0);
        let of = |series: &Series| match slot {
            Some(slot) => series.slots.get(slot).copied(),
            None => Some(series.all),
        };
        let find = |services: &[Series]| services.iter().find(|series| *series.service == *service).and_then(of);
        let points = columns.iter().map(|column| find(&column.services).unwrap_or_default()).collect();
        (next.saturating_sub(columns.len() as u64), points)
    }
}

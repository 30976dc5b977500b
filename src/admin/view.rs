//! What a page is shown. Command lines, paths and what comes from servers are for trusted viewers only: a viewer who is not
//! gets a list of known words and numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::control::history::{Column, Point, Series};
use crate::control::status::{Daemon, RecycledState, ServerState, ServiceState, SlotState, UpstreamState};
use crate::output::recent::Event;

/// Events that everybody may see, by the beginning of their message.
const PUBLIC: [&str; 38] = [
    "starting",
    "server started",
    "server exited",
    "server finished",
    "server stopped",
    "relay worker exited",
    "worker online",
    "worker listens again",
    "worker stalled",
    "worker is at its file limit",
    "worker takes connections again",
    "worker not started",
    "worker replaced",
    "old worker",
    "slot given up",
    "given up: no slot is left",
    "reloading",
    "reloaded",
    "reload failed",
    "restarting",
    "scaling",
    "stopping",
    "starting all workers",
    "stopped",
    "draining",
    "drain time is up",
    "connections rescued",
    "connections reset",
    "upstream down",
    "upstream up again",
    "upstream drained",
    "upstream undrained",
    "slot drained",
    "slot undrained",
    "recycling worker",
    "memory ",
    "waiting until others are ready",
    "worker not recycled",
];
/// Fields of events that everybody may see.
const PUBLIC_FIELDS: [&str; 11] =
    ["pid", "status", "restart_in", "took", "open", "count", "from", "to", "slots", "done", "of"];

/// A service on the page.
#[derive(Debug, Serialize)]
struct OfService<'a> {
    name: &'a str,
    policy: &'a str,
    via: &'a str,
    listen: Vec<&'a str>,
    held: u64,
    longest_wait_ms: u64,
    shed: u64,
    waiting_for_upstream: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_reached: Option<&'a str>,
    reloads: u64,
    /// Idle connections that leaving workers gave to others.
    #[serde(skip_serializing_if = "is_zero")]
    moved: u64,
    stopped: bool,
    sick: bool,
    now: [Value; 6],
    slots: Vec<OfSlot<'a>>,
    upstreams: Vec<OfUpstream<'a>>,
    max_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_served: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recycled: Option<RecycledState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<OfServer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
}

/// The server that all slots share.
#[derive(Debug, Serialize)]
struct OfServer<'a> {
    state: &'a str,
    restarts: u64,
    uptime_s: u64,
    last_exit: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct OfSlot<'a> {
    slot: usize,
    state: &'a str,
    pid: Option<u32>,
    generation: u64,
    restarts: u64,
    uptime_s: u64,
    open: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    estimate: bool,
    pending: u64,
    connections: u64,
    rescued: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    finished: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    drain: bool,
    #[serde(skip_serializing_if = "is_one")]
    weight: u16,
    now: [Value; 6],
    #[serde(skip_serializing_if = "Option::is_none")]
    last_exit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct OfUpstream<'a> {
    addr: &'a str,
    up: bool,
    weight: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    drain: bool,
    backup: bool,
    open: u64,
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
    errors: u64,
    last_error: Option<&'a str>,
    last_error_s: Option<u64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The usual weight is not sent.
fn is_one(weight: &u16) -> bool {
    *weight == 1
}

/// Whether someone may see everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// On this machine, or with the token.
    Trusted,
    Stranger,
}

impl Viewer {
    fn only<T>(self, value: Option<T>) -> Option<T> {
        value.filter(|_| self == Self::Trusted)
    }

    /// Addresses are no secret, paths are.
    fn address(self, address: &str) -> &str {
        match self {
            Self::Stranger if address.starts_with("unix:") => "unix",
            _ => address,
        }
    }
}

/// The state, with the new columns and events, as one JSON text.
pub fn state(daemon: &Daemon, now: &[Series], viewer: Viewer) -> Value {
    let none = Point::default();
    let service = |(at, service): (usize, &ServiceState)| {
        let series = now.get(at);
        let limits = service.limits.as_ref();
        let point = |slot: usize| series.and_then(|series| series.slots.get(slot)).unwrap_or(&none);
        json!(OfService {
            name: &service.name,
            policy: &service.policy,
            via: &service.via,
            listen: service.listen.iter().map(|listen| viewer.address(&listen.addr)).collect(),
            held: service.held,
            longest_wait_ms: service.longest_wait_ms,
            shed: service.shed,
            waiting_for_upstream: service.waiting_for_upstream,
            limit_reached: service.limit_reached.as_deref(),
            reloads: service.reloads,
            moved: service.slots.iter().map(|slot| slot.moved).sum(),
            stopped: service.stopped,
            sick: service.sick().is_some(),
            now: numbers(series.map_or(&none, |series| &series.all)),
            slots: service.slots.iter().enumerate().map(|(at, slot)| of_slot(slot, point(at), viewer)).collect(),
            upstreams: service.upstreams.iter().map(|upstream| of_upstream(upstream, viewer)).collect(),
            max_memory: limits.and_then(|limits| limits.max_memory_bytes),
            max_age_s: limits.and_then(|limits| limits.max_age_ms).map(|ms| ms / 1000),
            max_served: limits.and_then(|limits| limits.max_served),
            recycled: service.recycled,
            server: service.server.as_ref().map(of_server),
            command: viewer.only(service.command.as_deref()),
            why: viewer.only(Some(service.via_reason.as_str())),
            cwd: viewer.only(service.cwd.as_deref()),
        })
    };
    json!({
        "at": milliseconds(SystemTime::now()),
        "version": daemon.version,
        "pid": daemon.pid,
        "uptime_s": daemon.uptime_s,
        "stopping": daemon.stopping,
        "services": daemon.services.iter().enumerate().map(service).collect::<Vec<_>>(),
    })
}

fn of_server(server: &ServerState) -> OfServer<'_> {
    OfServer {
        state: &server.state,
        restarts: server.restarts,
        uptime_s: server.uptime_s,
        last_exit: server.last_exit.as_deref(),
    }
}

fn of_slot<'a>(slot: &'a SlotState, point: &Point, viewer: Viewer) -> OfSlot<'a> {
    OfSlot {
        slot: slot.slot,
        state: &slot.state,
        pid: slot.pid,
        generation: slot.generation,
        restarts: slot.restarts,
        uptime_s: slot.uptime_s,
        open: slot.open,
        estimate: slot.open_is_estimate,
        pending: slot.pending,
        connections: slot.connections,
        rescued: slot.rescued,
        finished: slot.finished,
        drain: slot.drain,
        weight: slot.weight,
        now: numbers(point),
        last_exit: slot.last_exit.as_deref(),
        reason: viewer.only(slot.reason.as_deref()),
    }
}

fn of_upstream(upstream: &UpstreamState, viewer: Viewer) -> OfUpstream<'_> {
    OfUpstream {
        addr: viewer.address(&upstream.addr),
        up: upstream.is_up(),
        weight: upstream.weight,
        drain: upstream.drain,
        backup: upstream.backup,
        open: upstream.open,
        connections: upstream.connections,
        bytes_in: upstream.bytes_in,
        bytes_out: upstream.bytes_out,
        errors: upstream.errors,
        last_error: upstream.last_error.as_deref(),
        last_error_s: upstream.last_error_s,
    }
}

/// Rate, open, CPU in percent, memory in bytes, and the latency buckets of half and of 99 % of the hand-offs.
fn numbers(point: &Point) -> [Value; 6] {
    let Point { rate, open, memory, cpu, p50, p99 } = *point;
    [
        tenths((f64::from(rate) * 10.0).round()),
        open.into(),
        tenths(f64::from(cpu)),
        (u64::from(memory) * 1024).into(),
        p50.into(),
        p99.into(),
    ]
}

/// A number of tenths, whole where it is.
fn tenths(value: f64) -> Value {
    if value % 10.0 == 0.0 { ((value / 10.0) as u64).into() } else { (value / 10.0).into() }
}

/// A column of the history.
pub fn column(column: &Column) -> Value {
    let of = |series: &Series| {
        let slots: Vec<_> = series.slots.iter().map(numbers).collect();
        json!({"name": &*series.service, "all": numbers(&series.all), "slots": slots})
    };
    json!({"at": milliseconds(column.at), "services": column.services.iter().map(of).collect::<Vec<_>>()})
}

/// An event.
pub fn event(event: &Event, viewer: Viewer) -> Value {
    let text = match viewer {
        Viewer::Trusted => text(&event.message, event, |_| true),
        Viewer::Stranger => public(event),
    };
    json!({
        "number": event.number,
        "at": milliseconds(event.at),
        "level": event.level.as_str().to_ascii_lowercase(),
        "service": &*event.service,
        "slot": event.slot,
        "text": text,
    })
}

/// The words of an event that are our own.
fn public(event: &Event) -> String {
    match PUBLIC.iter().find(|known| event.message.starts_with(**known)) {
        Some(known) => text(known, event, |name| PUBLIC_FIELDS.contains(&name)),
        None => "(shown on the daemon's machine, or with the token)".to_owned(),
    }
}

fn text(message: &str, event: &Event, shown: impl Fn(&str) -> bool) -> String {
    let fields = event.fields.iter().filter(|(name, _)| shown(name)).map(|(name, value)| format!(" {name}={value}"));
    std::iter::once(message.to_owned()).chain(fields).collect()
}

fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::recent::Value as Field;

    #[test]
    fn strangers_see_known_words_and_numbers_of_an_event() {
        let event = |message: &str| Event {
            number: 0,
            at: SystemTime::now(),
            level: tracing::Level::WARN,
            name: "worker-exited",
            service: "web".into(),
            slot: None,
            message: message.into(),
            fields: Box::new([
                ("status", Field::Text("exit code 1".into())),
                ("reason", Field::Text("/srv/key status=secret".into())),
            ]),
        };
        assert_eq!(public(&event("server exited")), "server exited status=\"exit code 1\"");
        let start = public(&event("worker not started: cannot execute /srv/app --secret"));
        assert_eq!(start, "worker not started status=\"exit code 1\"");
        assert!(!public(&event("cannot open /srv/app")).contains("srv"));
    }

    #[test]
    fn whole_numbers_are_written_as_such() {
        let point = Point { rate: 1.25, open: 3, memory: 1000, cpu: 15, p50: 1, p99: 0 };
        assert_eq!(json!(numbers(&point)).to_string(), "[1.3,3,1.5,1024000,1,0]");
    }
}

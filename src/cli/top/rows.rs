//! The lines of the table: services, each with its slots and upstreams; sorted and filtered.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use super::seen::{Seen, Watched};
use crate::cli::place::Part;
use crate::cli::render::state;
use crate::control::history::Point;
use crate::control::status::{ServiceState, SlotState, UpstreamState};

/// What a line is about.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    Service,
    Slot(&'a SlotState),
    Upstream(&'a UpstreamState),
}

#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub watched: &'a Watched,
    pub service: &'a ServiceState,
    pub subject: Subject<'a>,
    pub point: Point,
}

/// Which line it is, also in the next state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub socket: PathBuf,
    pub service: String,
    pub part: Part,
}

/// What lines are sorted by. All but the first have the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// As configured.
    #[default]
    Name,
    Rate,
    Open,
    Wait,
    Cpu,
    Memory,
    Restarts,
}

impl Sort {
    const ALL: [Self; 7] = [Self::Name, Self::Rate, Self::Open, Self::Wait, Self::Cpu, Self::Memory, Self::Restarts];

    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// The title of its column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Rate => "CONN/S",
            Self::Open => "OPEN",
            Self::Wait => "P99",
            Self::Cpu => "CPU",
            Self::Memory => "MEM",
            Self::Restarts => "RST",
        }
    }
}

impl Row<'_> {
    pub fn key(&self) -> Key {
        let part = match self.subject {
            Subject::Service => Part::Whole,
            Subject::Slot(slot) => Part::Slot(u32::try_from(slot.slot).unwrap_or(u32::MAX)),
            Subject::Upstream(upstream) => Part::Upstream(upstream.addr.clone()),
        };
        Key { socket: self.watched.socket.clone(), service: self.service.name.clone(), part }
    }

    pub fn is(&self, key: &Key) -> bool {
        self.watched.socket == key.socket
            && self.service.name == key.service
            && match (&key.part, self.subject) {
                (Part::Whole, Subject::Service) => true,
                (Part::Slot(number), Subject::Slot(slot)) => *number as usize == slot.slot,
                (Part::Upstream(address), Subject::Upstream(upstream)) => *address == upstream.addr,
                _ => false,
            }
    }

    /// `web`, `web/1`, `web@10.0.0.5:80`, as verbs name it.
    pub fn label(&self) -> String {
        label(&self.key().service, &self.key().part)
    }

    pub fn restarts(&self) -> u64 {
        match self.subject {
            Subject::Service => {
                let slots = self.service.slots.iter().map(|slot| slot.restarts);
                let server = self.service.server.as_ref().map(|server| server.restarts);
                slots.chain(server).fold(0, u64::saturating_add)
            }
            Subject::Slot(slot) => slot.restarts,
            Subject::Upstream(upstream) => upstream.errors,
        }
    }

    pub fn open(&self) -> u64 {
        match self.subject {
            Subject::Service => self.service.slots.iter().fold(0, |sum, slot| slot.open.saturating_add(sum)),
            Subject::Slot(slot) => slot.open,
            Subject::Upstream(upstream) => upstream.open,
        }
    }

    /// The larger, the further up.
    fn weight(&self, sort: Sort) -> u64 {
        match sort {
            Sort::Name => 0,
            Sort::Rate => (f64::from(self.point.rate) * 10.0) as u64,
            Sort::Open => self.open(),
            Sort::Wait => self.point.p99.into(),
            Sort::Cpu => self.point.cpu.into(),
            Sort::Memory => self.point.memory.into(),
            Sort::Restarts => self.restarts(),
        }
    }

    fn matches(&self, filter: &str) -> bool {
        let contains = |text: &str| text.to_lowercase().contains(filter);
        match self.subject {
            Subject::Service => contains(&self.service.name),
            Subject::Slot(slot) => {
                contains(state(self.service, slot))
                    || contains(&self.label())
                    || slot.pid.or(slot.server_pid).is_some_and(|pid| pid.to_string() == filter)
                    || slot.reason.as_deref().is_some_and(contains)
            }
            Subject::Upstream(upstream) => contains(&upstream.state) || contains(&self.label()),
        }
    }
}

/// `web`, `web/1`, `web@10.0.0.5:80`.
pub fn label(service: &str, part: &Part) -> String {
    match part {
        Part::Whole => service.to_owned(),
        Part::Slot(slot) => format!("{service}/{slot}"),
        Part::Upstream(address) => format!("{service}@{address}"),
    }
}

/// The lines of all daemons (or one service), a service before its slots and those before its upstreams. A filter that a
/// service's name matches shows all of it, any other one the lines that match, each with its service.
pub fn rows<'a>(seen: &'a Seen, only: Option<&str>, sort: Sort, filter: &str) -> Vec<Row<'a>> {
    let filter = filter.to_lowercase();
    let of = |watched: &'a Watched, service: &'a ServiceState| {
        let row = |subject, point| Row { watched, service, subject, point };
        let slots = service.slots.iter().map(|slot| row(Subject::Slot(slot), watched.point(service, Some(slot.slot))));
        let mut slots: Vec<_> = slots.collect();
        slots.sort_by_key(|row| Reverse(row.weight(sort)));
        let upstream = |upstream: &'a UpstreamState| {
            let rate = watched.rate(&service.name, &upstream.addr) as f32;
            row(Subject::Upstream(upstream), Point { rate, ..Point::default() })
        };
        let mut upstreams: Vec<_> = service.upstreams.iter().map(upstream).collect();
        upstreams.sort_by_key(|row| Reverse(row.weight(sort)));
        let whole = row(Subject::Service, watched.point(service, None));
        let mut parts = [slots, upstreams].concat();
        if !whole.matches(&filter) {
            parts.retain(|part| part.matches(&filter));
            if parts.is_empty() {
                return Vec::new();
            }
        }
        parts.insert(0, whole);
        parts
    };
    let services =
        seen.daemons.iter().flat_map(|watched| watched.daemon.services.iter().map(move |one| (watched, one)));
    let meant = services.filter(|(_, service)| only.is_none_or(|name| name == service.name));
    let mut groups: Vec<Vec<Row<'a>>> = meant.map(|(watched, service)| of(watched, service)).collect();
    groups.retain(|group| !group.is_empty());
    groups.sort_by_key(|group| Reverse(group.first().map(|row| row.weight(sort))));
    groups.concat()
}

/// The daemon's name, by its socket.
pub fn name_of(socket: &Path) -> String {
    socket.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

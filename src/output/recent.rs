//! The daemon's latest events, in bounded memory, apart from the servers' lines: a server that writes much pushes none of
//! them out.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::time::utc;

/// Events that are kept.
const MAX_EVENTS: usize = 256;
/// Bytes of one event's text.
const MAX_TEXT: usize = 600;
const MAX_FIELDS: usize = 16;

/// The kind of events that have no name of their own.
pub const UNNAMED: &str = "note";

/// A field of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Number(i64),
    Text(Box<str>),
    /// A text that the log does not quote.
    Plain(Box<str>),
}

/// As in the log.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Plain(text) => f.write_str(text),
        }
    }
}

/// Something that the daemon has logged of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counted from 0 since the daemon's start.
    pub number: u64,
    pub at: SystemTime,
    pub level: tracing::Level,
    /// What kind of event, for programs: `worker-online`.
    pub name: &'static str,
    pub service: Arc<str>,
    pub slot: Option<u32>,
    /// What happened, without the fields.
    pub message: Box<str>,
    /// Names and values.
    pub fields: Box<[(&'static str, Value)]>,
}

/// An event as the control socket has it: one JSON object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry<'a> {
    pub number: u64,
    /// RFC 3339, UTC.
    pub time: Cow<'a, str>,
    /// `info`, `warn` or `error`.
    pub level: Cow<'a, str>,
    pub event: Cow<'a, str>,
    pub service: Cow<'a, str>,
    pub slot: Option<u32>,
    /// The process that it is about.
    pub pid: Option<u32>,
    pub message: Cow<'a, str>,
    pub fields: BTreeMap<Cow<'a, str>, Value>,
}

impl Event {
    pub fn entry(&self) -> Entry<'_> {
        let pid = self.fields.iter().find_map(|(name, value)| match value {
            Value::Number(number) if *name == "pid" => u32::try_from(*number).ok(),
            _ => None,
        });
        let fields = self.fields.iter().filter(|(name, _)| *name != "pid");
        Entry {
            number: self.number,
            time: utc(self.at).into(),
            level: self.level.as_str().to_ascii_lowercase().into(),
            event: self.name.into(),
            service: (&*self.service).into(),
            slot: self.slot,
            pid,
            message: (&*self.message).into(),
            fields: fields.map(|(name, value)| ((*name).into(), value.clone())).collect(),
        }
    }
}

/// What is added to the list.
#[derive(Debug, Clone, Copy)]
pub(super) struct New<'a> {
    pub level: tracing::Level,
    pub name: &'static str,
    pub service: &'a str,
    pub slot: Option<u32>,
    pub message: &'a str,
    pub fields: &'a [(&'static str, Value)],
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    next: u64,
}

/// A shared list: logging adds to it, readers copy from it.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<Kept>>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // The list is consistent even if another thread panicked while holding the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, new: New<'_>) {
        let New { level, name, service, slot, message, fields } = new;
        let message = cut(message, MAX_TEXT);
        let mut left = MAX_TEXT - message.len();
        let mut cut_text = |text: &str| {
            let text = cut(text, left);
            left -= text.len();
            text.into()
        };
        let cut_field = |(name, value): &(&'static str, Value)| match value {
            Value::Number(number) => (*name, Value::Number(*number)),
            Value::Text(text) => (*name, Value::Text(cut_text(text))),
            Value::Plain(text) => (*name, Value::Plain(cut_text(text))),
        };
        let fields = fields.iter().take(MAX_FIELDS).map(cut_field).collect();
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        if kept.events.len() == MAX_EVENTS {
            kept.events.pop_front();
        }
        let (service, message) = (service.into(), message.into());
        kept.events.push_back(Event { number, at: SystemTime::now(), level, name, service, slot, message, fields });
    }

    /// Those numbered `from` and later, the oldest first.
    pub fn since(&self, from: u64) -> Vec<Event> {
        let kept = self.lock();
        let known = kept.events.iter().rev().take_while(|event| event.number >= from).count();
        kept.events.range(kept.events.len() - known..).cloned().collect()
    }
}

/// At most so many bytes of a text.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_in_order_and_long_ones_are_cut() {
        let recent = Recent::default();
        let new = New {
            level: tracing::Level::INFO,
            name: "worker-online",
            service: "web",
            slot: Some(1),
            message: "",
            fields: &[],
        };
        for n in 0..1000 {
            recent.push(New { message: &format!("event {n}"), ..new });
        }
        let all = recent.since(0);
        assert_eq!(all.len(), MAX_EVENTS);
        assert_eq!((all[0].number, all[255].number), (744, 999));
        assert_eq!(
            recent.since(998).iter().map(|event| &*event.message).collect::<Vec<_>>(),
            ["event 998", "event 999"]
        );
        assert!(recent.since(1000).is_empty());
        let fields = [("a", Value::Text("1".into())), ("pid", Value::Number(7))];
        recent.push(New { message: &"é".repeat(500), fields: &fields, ..new });
        let last = &recent.since(1000)[0];
        assert!(last.message.len() == MAX_TEXT && last.fields[0].1 == Value::Text("".into()));
        let entry = serde_json::to_value(last.entry()).unwrap_or_default();
        assert_eq!((&entry["pid"], &entry["fields"]), (&7.into(), &serde_json::json!({"a": ""})));
    }
}

//! The daemon's latest events, in bounded memory, apart from the servers' lines: a server that writes much pushes none of
//! them out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Events that are kept.
const MAX_EVENTS: usize = 256;
/// Bytes of one event's text.
const MAX_TEXT: usize = 600;
const MAX_FIELDS: usize = 16;

/// Something that the daemon has logged of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counted from 0 since the daemon's start.
    pub number: u64,
    pub at: SystemTime,
    pub level: tracing::Level,
    pub service: Arc<str>,
    pub slot: Option<u32>,
    /// What happened, without the fields.
    pub message: Box<str>,
    /// Names and values.
    pub fields: Box<[(&'static str, Box<str>)]>,
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

    pub(super) fn push(
        &self,
        level: tracing::Level,
        service: &str,
        slot: Option<u32>,
        message: &str,
        fields: &[(&'static str, String)],
    ) {
        let message = cut(message, MAX_TEXT);
        let mut left = MAX_TEXT - message.len();
        let mut cut_field = |(name, value): &(&'static str, String)| {
            let value = cut(value, left);
            left -= value.len();
            (*name, value.into())
        };
        let fields = fields.iter().take(MAX_FIELDS).map(&mut cut_field).collect();
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        if kept.events.len() == MAX_EVENTS {
            kept.events.pop_front();
        }
        let (service, message) = (service.into(), message.into());
        kept.events.push_back(Event { number, at: SystemTime::now(), level, service, slot, message, fields });
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
        for n in 0..1000 {
            recent.push(tracing::Level::INFO, "web", Some(1), &format!("event {n}"), &[]);
        }
        let all = recent.since(0);
        assert_eq!(all.len(), MAX_EVENTS);
        assert_eq!((all[0].number, all[255].number), (744, 999));
        assert_eq!(
            recent.since(998).iter().map(|event| &*event.message).collect::<Vec<_>>(),
            ["event 998", "event 999"]
        );
        assert!(recent.since(1000).is_empty());
        recent.push(tracing::Level::WARN, "web", None, &"é".repeat(500), &[("a", "1".to_owned())]);
        let last = &recent.since(1000)[0];
        assert!(last.message.len() == MAX_TEXT && *last.fields[0].1 == *"");
    }
}

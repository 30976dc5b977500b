//! On a terminal, what a server wrote to stderr before its end (a stack trace, mostly) is shown once. When the next one
//! ends with the same lines they are counted instead.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::line::Origin;

/// Shorter ends are shown every time.
const MIN_LINES: usize = 3;
/// Of longer ends these last lines are compared.
const MAX_LINES: usize = 64;
const MAX_BYTES: usize = 64 * 1024;
/// A server that writes nothing for this long has not ended: what was held back is shown.
pub const PAUSE: Duration = Duration::from_millis(250);

/// The lines with which servers of a service ended, and how often.
#[derive(Default)]
struct Known {
    lines: Arc<Vec<Vec<u8>>>,
    times: u64,
}

struct Writer {
    origin: Origin,
    /// What it wrote without a pause.
    recent: Vec<Vec<u8>>,
    /// So many of the known lines were written again, and are held back.
    held: usize,
    known: Arc<Vec<Vec<u8>>>,
    last: Instant,
}

impl Writer {
    fn release(&mut self) -> Vec<Vec<u8>> {
        self.known[..std::mem::take(&mut self.held)].to_vec()
    }
}

/// Lines that are to be shown, of one server.
type Shown = (Origin, Vec<Vec<u8>>);

#[derive(Default)]
pub struct Repeats {
    known: HashMap<Arc<str>, Known>,
    /// By pid.
    writers: HashMap<u32, Writer>,
}

impl Repeats {
    /// A line of a server; what is to be shown now.
    pub fn line(&mut self, origin: &Origin, line: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let known = self.known.get(&origin.service).map(|known| known.lines.clone()).unwrap_or_default();
        let new = || Writer { origin: origin.clone(), recent: Vec::new(), held: 0, known: known.clone(), last: now };
        let writer = self.writers.entry(origin.pid).or_insert_with(new);
        if now.duration_since(writer.last) > PAUSE {
            writer.recent.clear();
        }
        writer.last = now;
        writer.recent.push(line.to_owned());
        while writer.recent.len() > MAX_LINES || writer.recent.iter().map(Vec::len).sum::<usize>() > MAX_BYTES {
            writer.recent.remove(0);
        }
        let mut shown = Vec::new();
        if writer.known.get(writer.held).is_none_or(|known| known != line) {
            shown = writer.release();
            writer.known = known;
        }
        if writer.known.len() >= MIN_LINES && writer.known.get(writer.held).is_some_and(|known| known == line) {
            writer.held += 1;
        } else {
            shown.push(line.to_owned());
        }
        shown
    }

    /// When [`Repeats::overdue`] has something to show.
    pub fn due(&self) -> Option<Instant> {
        self.writers.values().filter(|writer| writer.held > 0).map(|writer| writer.last + PAUSE).min()
    }

    pub fn overdue(&mut self, now: Instant) -> Vec<Shown> {
        let late = self.writers.values_mut().filter(|writer| writer.held > 0 && writer.last + PAUSE <= now);
        late.map(|writer| (writer.origin.clone(), writer.release())).collect()
    }

    /// A server's stderr has ended; what is still to be shown of it.
    pub fn end(&mut self, pid: u32) -> Option<Shown> {
        let mut writer = self.writers.remove(&pid)?;
        let known = self.known.entry(writer.origin.service.clone()).or_default();
        if writer.held > 0 && writer.held == writer.known.len() {
            known.times += 1;
            let note = format!("… the same {} lines as before ({} times)", writer.held, known.times);
            return Some((writer.origin, vec![note.into_bytes()]));
        }
        let rest = writer.release();
        *known = Known { lines: Arc::new(writer.recent), times: 1 };
        Some((writer.origin, rest))
    }

    pub fn forget(&mut self, service: &str) {
        self.known.remove(service);
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::Files;
    use super::*;

    fn origin(pid: u32) -> Origin {
        let (out, error, user) = (None, None, None);
        let files = Files { out, error, rotate_size: 1, rotate_keep: 1, timestamps: false, user };
        Origin { service: "web".into(), slot: Some(0), pid, files: Arc::new(files) }
    }

    /// A life of a server: what is shown of what it writes.
    fn life(repeats: &mut Repeats, pid: u32, text: &str, now: Instant) -> String {
        let mut shown: Vec<Vec<u8>> =
            text.lines().flat_map(|line| repeats.line(&origin(pid), line.as_bytes(), now)).collect();
        shown.extend(repeats.end(pid).map(|(_, lines)| lines).unwrap_or_default());
        String::from_utf8_lossy(&shown.join(&b'\n')).into_owned()
    }

    #[test]
    fn the_same_end_is_shown_once_and_then_counted() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let trace = "Traceback:\n  at line 1\n  at line 2\nError";
        assert_eq!(life(&mut repeats, 1, trace, now), trace);
        assert_eq!(life(&mut repeats, 2, trace, now), "… the same 4 lines as before (2 times)");
        let with_more = format!("listening\n{trace}");
        assert_eq!(life(&mut repeats, 3, &with_more, now), "listening\n… the same 4 lines as before (3 times)");
        // Another one is shown whole, also when it begins alike.
        let other = "Traceback:\n  at line 1\n  at line 9\nError";
        assert_eq!(life(&mut repeats, 4, other, now), other);
        assert_eq!(life(&mut repeats, 5, trace, now), trace);
        assert_eq!(life(&mut repeats, 6, "Traceback:\n  at line 1", now), "Traceback:\n  at line 1");
    }

    #[test]
    fn what_is_held_back_comes_when_the_server_goes_on_or_pauses() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let banner = "one\ntwo\nthree";
        assert_eq!(life(&mut repeats, 1, banner, now), banner);
        for line in banner.lines() {
            assert!(repeats.line(&origin(2), line.as_bytes(), now).is_empty());
        }
        assert_eq!(repeats.due(), Some(now + PAUSE));
        assert!(repeats.overdue(now).is_empty());
        let late = repeats.overdue(now + PAUSE);
        assert_eq!(late.len(), 1);
        assert_eq!(late[0].1, banner.lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
        assert!(repeats.due().is_none());
        // It is still there: its end is another one.
        assert_eq!(repeats.line(&origin(2), b"four", now + PAUSE * 3), [b"four".to_vec()]);
    }

    #[test]
    fn a_flood_and_two_lines_are_shown_as_they_come() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let flood: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(life(&mut repeats, 1, &flood, now), flood.trim_end());
        assert!(repeats.known["web"].lines.len() <= MAX_LINES);
        for _ in 0..2 {
            assert_eq!(life(&mut repeats, 2, "a\nb", now), "a\nb");
        }
    }
}

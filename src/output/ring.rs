//! The last lines of a service, in bounded memory: the oldest make room.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::line::{Line, Stream};

/// Bytes of text kept for a service.
const MAX_BYTES: usize = 1 << 20;
/// Lines kept for a service.
const MAX_LINES: usize = 10_000;

struct Kept {
    slot: Option<u32>,
    pid: u32,
    stream: Stream,
    at: SystemTime,
    length: usize,
}

/// The lines of one service.
#[derive(Default)]
pub struct Ring {
    text: VecDeque<u8>,
    lines: VecDeque<Kept>,
}

impl Ring {
    /// Keeps a line.
    pub fn push(&mut self, slot: Option<u32>, pid: u32, stream: Stream, at: SystemTime, text: &[u8]) {
        while !self.lines.is_empty() && (self.lines.len() >= MAX_LINES || self.text.len() + text.len() > MAX_BYTES) {
            let length = self.lines.pop_front().map_or(0, |line| line.length);
            self.text.drain(..length);
        }
        self.text.extend(text);
        self.lines.push_back(Kept { slot, pid, stream, at, length: text.len() });
    }

    /// The last `most` lines that `wanted` says yes to, oldest first.
    pub fn last(&self, service: &str, most: usize, wanted: impl Fn(Option<u32>, u32, Stream) -> bool) -> Vec<Line> {
        let mut end = self.text.len();
        let mut found = Vec::new();
        for line in self.lines.iter().rev() {
            if found.len() >= most {
                break;
            }
            let text = self.text.range(end - line.length..end);
            end -= line.length;
            if wanted(line.slot, line.pid, line.stream) {
                let text: Vec<u8> = text.copied().collect();
                found.push(Line::new(service, line.slot, line.pid, line.stream, line.at, &text));
            }
        }
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_whom_one_asks_are_there_and_memory_is_bounded() {
        let epoch = SystemTime::UNIX_EPOCH;
        let mut ring = Ring::default();
        for n in 0..30_000_u32 {
            ring.push(Some(n % 3), 100 + n % 3, Stream::Out, epoch, format!("line {n} \u{fe}").as_bytes());
        }
        ring.push(Some(0), 100, Stream::Err, epoch, b"\xff\0");
        let lines = ring.last("web", 2, |slot, _, _| slot == Some(1));
        assert_eq!(
            lines.iter().map(|line| line.line.as_str()).collect::<Vec<_>>(),
            ["line 29995 \u{fe}", "line 29998 \u{fe}"]
        );
        let last = ring.last("web", 1, |_, pid, _| pid == 100);
        assert_eq!(last.first().map(Line::text), Some(&b"\xff\0"[..]));
        assert_eq!(ring.last("web", 20_000, |_, _, _| true).len(), MAX_LINES);
        for _ in 0..200 {
            ring.push(Some(0), 100, Stream::Out, epoch, &[b'x'; 16 * 1024]);
        }
        assert!(ring.text.len() <= MAX_BYTES && ring.lines.len() == 64, "{}", ring.lines.len());
    }
}

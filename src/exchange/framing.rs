//! Where the HTTP/1.1 messages of one direction begin and end, found from their bytes alone, however these are split.
//!
//! Strict: whatever two programs could read in two ways (a bare LF, a folded line, two lengths, an unknown coding, chunk
//! extensions, trailers), and whatever ends or changes the connection, is [`Framing::is_lost`], for good.

/// Which messages a direction has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Requests,
    Answers,
}

/// The part of a message that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    FirstLine,
    Header,
    /// The rest of a body, in bytes.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Lost,
}

/// The messages of one direction so far.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    next: Part,
    line: Line,
    head: Head,
    /// Heads that are complete, without those of interim answers.
    pub heads: u64,
    /// Messages that are complete.
    pub ended: u64,
}

/// What a head has said.
#[derive(Debug, Clone, Copy)]
struct Head {
    length: Option<u64>,
    chunked: bool,
    /// An answer that never has a body.
    bodiless: bool,
    /// 100: another answer follows.
    interim: bool,
}

const NO_HEAD: Head = Head { length: None, chunked: false, bodiless: false, interim: false };
const KEPT: usize = 40;
const VERSION: &[u8; 9] = b" HTTP/1.1";

/// A line, as much as is needed of it.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Without its end.
    len: u32,
    spaces: u8,
    /// It ends with CR so far.
    cr: bool,
    tab: bool,
    /// It has bytes that no line may have.
    spoilt: bool,
    first: [u8; KEPT],
    last: [u8; VERSION.len()],
}

const NO_LINE: Line =
    Line { len: 0, spaces: 0, cr: false, tab: false, spoilt: false, first: [0; KEPT], last: [0; VERSION.len()] };

impl Line {
    /// Takes bytes up to the next LF: how many, and whether the line is whole.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes);
        self.add(part);
        match end {
            Some(end) => {
                self.spoilt |= !self.cr;
                (end + 1, true)
            }
            None => (bytes.len(), false),
        }
    }

    fn add(&mut self, part: &[u8]) {
        // A CR that no LF followed.
        self.spoilt |= self.cr && !part.is_empty();
        let part = match part.split_last() {
            Some((b'\r', rest)) => {
                self.cr = true;
                rest
            }
            _ => part,
        };
        let (mut spaces, mut tabs, mut controls) = (0u32, 0u32, 0u32);
        for &byte in part {
            spaces += u32::from(byte == b' ');
            tabs += u32::from(byte == b'\t');
            controls += u32::from(byte < b' ' || byte == 0x7f);
        }
        self.spaces = self.spaces.saturating_add(spaces.min(255) as u8);
        self.tab |= tabs > 0;
        self.spoilt |= controls > tabs;
        let room = self.first.get_mut(self.len.min(KEPT as u32) as usize..).unwrap_or(&mut []);
        room.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        let kept = part.len().min(self.last.len());
        self.last.rotate_left(kept);
        let place = self.last.get_mut(VERSION.len() - kept..).unwrap_or(&mut []);
        place.iter_mut().zip(part.get(part.len() - kept..).unwrap_or(&[])).for_each(|(to, from)| *to = *from);
        self.len = self.len.saturating_add(part.len().min(u32::MAX as usize) as u32);
    }

    /// Its first bytes, all of them where there are no more than [`KEPT`].
    fn first(&self) -> &[u8] {
        self.first.get(..(self.len as usize).min(KEPT)).unwrap_or(&[])
    }

    fn is_whole(&self) -> bool {
        self.len as usize <= KEPT
    }

    /// `GET /path HTTP/1.1`. The answer to HEAD has a length and no body, and after CONNECT anything may follow.
    fn is_request(&self) -> bool {
        let first = self.first();
        let method = first.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        let (name, target) = (first.get(..method), first.get(method + 1));
        (1..=20).contains(&method)
            && first.get(method) == Some(&b' ')
            && target.is_some_and(|byte| matches!(byte, b'/' | b'*' | b'h'))
            && !matches!(name, Some(b"HEAD" | b"CONNECT" | b"PRI"))
            && self.spaces == 2
            && !self.tab
            && self.last == *VERSION
            && self.len as usize > method + 1 + VERSION.len()
    }

    /// The status of an answer: `HTTP/1.1 200 OK`.
    fn status(&self) -> Option<u32> {
        let rest = self.first().strip_prefix(b"HTTP/1.1 ")?;
        let digits = rest.get(..3)?;
        if self.tab || !matches!(rest.get(3), None | Some(b' ')) {
            return None;
        }
        digits.iter().try_fold(0, |status, &byte| Some(status * 10 + (byte as char).to_digit(10)?))
    }

    /// A chunk's size in hexadecimal.
    fn size(&self) -> Option<u64> {
        if self.len == 0 || self.len > 15 {
            return None;
        }
        self.first().iter().try_fold(0, |size, &byte| Some(size << 4 | u64::from((byte as char).to_digit(16)?)))
    }

    /// Name and value; `None` where it is no header or one that programs read in different ways.
    fn header(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let first = self.first();
        let Some(colon) = first.iter().position(|&byte| byte == b':') else {
            // A long name is none of those that matter.
            return if self.is_whole() || !first.iter().all(is_of_name) { None } else { Some((first, None)) };
        };
        let name = first.get(..colon).filter(|name| !name.is_empty() && name.iter().all(is_of_name))?;
        Some((name, first.get(colon + 1..)))
    }
}

fn is_of_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn trimmed(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().take_while(|byte| is_space(byte)).count();
    let value = value.get(start..).unwrap_or(&[]);
    let end = value.iter().rev().take_while(|byte| is_space(byte)).count();
    value.get(..value.len() - end).unwrap_or(&[])
}

/// A length in decimal.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |length, &byte| Some(length * 10 + u64::from((byte as char).to_digit(10)?)))
}

impl Head {
    /// Takes in a header; `None` where the connection may not go on elsewhere.
    fn take(&mut self, line: &Line) -> Option<()> {
        let (name, value) = line.header()?;
        // Some servers take one for the other.
        let is = |known: &[u8]| {
            name.len() == known.len()
                && name
                    .iter()
                    .zip(known)
                    .all(|(&byte, &known)| byte.eq_ignore_ascii_case(&known) || (byte == b'_' && known == b'-'))
        };
        let value = trimmed(value.unwrap_or(&[]));
        let whole = |value| if line.is_whole() { Some(value) } else { None };
        if is(b"content-length") {
            let length = length(whole(value)?)?;
            return if self.length.replace(length).is_none() && !name.contains(&b'_') { Some(()) } else { None };
        }
        if is(b"transfer-encoding") {
            let chunked = whole(value)?.eq_ignore_ascii_case(b"chunked") && !self.chunked && !name.contains(&b'_');
            self.chunked = true;
            return chunked.then_some(());
        }
        if is(b"connection") || is(b"proxy-connection") {
            return whole(value)?.eq_ignore_ascii_case(b"keep-alive").then_some(());
        }
        // Who has logged in belongs to the connection.
        let of_connection = [&b"www-authenticate"[..], b"proxy-authenticate", b"authorization", b"proxy-authorization"];
        let starts = |scheme: &[u8]| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let logs_in = of_connection.into_iter().any(is) && (starts(b"NTLM") || starts(b"Negotiate"));
        (!logs_in).then_some(())
    }
}

impl Framing {
    /// Before the first message.
    pub const NEW: Self = Self { next: Part::FirstLine, line: NO_LINE, head: NO_HEAD, heads: 0, ended: 0 };

    pub fn is_lost(&self) -> bool {
        self.next == Part::Lost
    }

    /// How many of the next bytes nobody has to see: the rest of a body or chunk, or all where it is lost.
    pub fn unread(&self) -> u64 {
        match self.next {
            Part::Body(left) | Part::Chunk(left) => left,
            Part::Lost => u64::MAX,
            _ => 0,
        }
    }

    /// Whether a message is under way that has no length: it may go on for ever.
    pub fn is_in_chunks(&self) -> bool {
        matches!(self.next, Part::ChunkSize | Part::Chunk(_) | Part::ChunkEnd | Part::Trailer)
    }

    /// Whether every message that has begun is complete.
    pub fn is_between(&self) -> bool {
        self.next == Part::FirstLine
            && self.line.len == 0
            && !self.line.cr
            && !self.line.spoilt
            && self.heads == self.ended
    }

    /// Takes in the next bytes. `most`: how many messages there may be.
    pub fn add(&mut self, direction: Direction, mut bytes: &[u8], most: u64) {
        while !bytes.is_empty() {
            let taken = match self.next {
                Part::Lost => return,
                Part::Body(left) | Part::Chunk(left) => self.skip(left, bytes.len() as u64) as usize,
                _ => {
                    let (taken, whole) = self.line.take(bytes);
                    if whole {
                        let line = core::mem::replace(&mut self.line, NO_LINE);
                        self.next = self.after(direction, &line, most).unwrap_or(Part::Lost);
                    }
                    taken
                }
            };
            bytes = bytes.get(taken..).unwrap_or(&[]);
        }
    }

    /// So many bytes follow that nobody has seen.
    pub fn add_unseen(&mut self, mut count: u64) {
        while count > 0 {
            count -= match self.next {
                Part::Body(left) | Part::Chunk(left) => self.skip(left, count),
                _ => {
                    self.next = Part::Lost;
                    return;
                }
            };
        }
    }

    /// Skips what it can of a body or chunk.
    fn skip(&mut self, left: u64, count: u64) -> u64 {
        let skipped = left.min(count);
        let left = left - skipped;
        self.next = match self.next {
            Part::Chunk(_) if left == 0 => Part::ChunkEnd,
            Part::Chunk(_) => Part::Chunk(left),
            _ if left == 0 => self.end(),
            _ => Part::Body(left),
        };
        skipped
    }

    fn end(&mut self) -> Part {
        self.ended += 1;
        Part::FirstLine
    }

    /// What follows a whole line.
    fn after(&mut self, direction: Direction, line: &Line, most: u64) -> Option<Part> {
        if line.spoilt {
            return None;
        }
        match self.next {
            Part::FirstLine => {
                self.head = NO_HEAD;
                match direction {
                    Direction::Requests => line.is_request().then_some(Part::Header),
                    Direction::Answers => {
                        let status = line.status()?;
                        self.head.interim = status == 100;
                        self.head.bodiless = matches!(status, 204 | 304);
                        // 101 and its like: another protocol may follow.
                        (status == 100 || (200..600).contains(&status)).then_some(Part::Header)
                    }
                }
            }
            Part::Header if line.len == 0 => self.after_head(direction, most),
            Part::Header => self.head.take(line).map(|()| Part::Header),
            Part::ChunkSize => Some(match line.size()? {
                0 => Part::Trailer,
                size => Part::Chunk(size),
            }),
            Part::ChunkEnd => (line.len == 0).then_some(Part::ChunkSize),
            Part::Trailer if line.len == 0 => Some(self.end()),
            Part::Trailer | Part::Body(_) | Part::Chunk(_) | Part::Lost => None,
        }
    }

    fn after_head(&mut self, direction: Direction, most: u64) -> Option<Part> {
        if self.heads >= most {
            return None;
        }
        let Head { length, chunked, bodiless, interim } = self.head;
        if interim {
            return (length.is_none() && !chunked).then_some(Part::FirstLine);
        }
        self.heads += 1;
        match (length, chunked) {
            (Some(_), true) => None,
            (None, true) if bodiless => None,
            (None, true) => Some(Part::ChunkSize),
            _ if bodiless => Some(self.end()),
            (Some(0), false) => Some(self.end()),
            (Some(length), false) => Some(Part::Body(length)),
            (None, false) if direction == Direction::Requests => Some(self.end()),
            // It ends with the connection.
            (None, false) => None,
        }
    }
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;

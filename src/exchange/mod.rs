//! What a server has read from an HTTP/1.1 connection and written to it: whether another server could go on with it. The preload
//! library has this, too.

mod framing;

pub use framing::Direction;
use framing::Framing;

/// The two directions of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    requests: Framing,
    answers: Framing,
    /// Bytes that servers have read and written since the connection was made, as the kernel counts them.
    pub read: u64,
    pub written: u64,
    /// Another server has answered requests on it before.
    resumed: bool,
}

impl Exchange {
    /// Of a connection that was received after so many bytes. The master writes nothing: what was written comes from a
    /// server that gave it away between two requests.
    pub const fn new(read: u64, written: u64) -> Self {
        Self { requests: Framing::NEW, answers: Framing::NEW, read, written, resumed: written > 0 }
    }

    pub fn has_read(&mut self, bytes: &[u8]) {
        self.read = self.read.wrapping_add(bytes.len() as u64);
        self.requests.add(Direction::Requests, bytes, u64::MAX);
    }

    pub fn has_written(&mut self, bytes: &[u8]) {
        self.written = self.written.wrapping_add(bytes.len() as u64);
        self.answers.add(Direction::Answers, bytes, self.requests.heads);
    }

    /// So many bytes were written that went from a file to the socket.
    pub fn has_written_unseen(&mut self, count: u64) {
        self.written = self.written.wrapping_add(count);
        self.answers.add_unseen(count);
    }

    /// So many bytes were read that nobody has seen.
    pub fn has_read_unseen(&mut self, count: u64) {
        self.read = self.read.wrapping_add(count);
        self.requests.add_unseen(count);
    }

    /// How many of the next bytes of a direction nobody has to see.
    pub fn unread(&self, direction: Direction) -> u64 {
        let direction = match direction {
            _ if self.is_lost() => return u64::MAX,
            Direction::Requests => &self.requests,
            Direction::Answers => &self.answers,
        };
        direction.unread()
    }

    /// Whether it is something else than HTTP/1.1 by now, or cannot be followed any more.
    pub fn is_lost(&self) -> bool {
        self.requests.is_lost() || self.answers.is_lost()
    }

    /// Whether an answer is under way whose length nobody knows.
    pub fn is_streaming(&self) -> bool {
        self.answers.is_in_chunks()
    }

    /// Whether no byte was read or written.
    pub fn is_unused(&self) -> bool {
        self.read == 0 && self.written == 0
    }

    /// Whether every request that the server has begun to read was read to its end and answered to the end, and nothing of
    /// the next one was read. A connection that nobody has used yet may belong to a child by now.
    pub fn is_at_rest(&self) -> bool {
        self.requests.is_between()
            && self.answers.is_between()
            && self.requests.ended == self.answers.ended
            && (self.requests.ended > 0 || self.resumed)
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;

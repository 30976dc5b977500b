//! Splits a stream of bytes into lines of bounded length.

use std::io;

/// Bytes received and not yet returned as lines.
#[derive(Debug)]
pub struct Lines {
    /// The longest line without its end, in bytes.
    max_len: usize,
    bytes: Vec<u8>,
    /// Bytes before this were returned.
    from: usize,
    /// Bytes before this contain no end of line that is still to be returned.
    searched: usize,
}

impl Lines {
    pub fn up_to(max_len: usize) -> Self {
        Self { max_len, bytes: Vec::new(), from: 0, searched: 0 }
    }

    /// The beginning of a line whose end has not come.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// Adds bytes from the stream.
    ///
    /// # Errors
    /// When a line is too long.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.drain(..self.from);
        self.searched -= self.from;
        self.from = 0;
        self.bytes.extend_from_slice(bytes);
        let complete = self.bytes[self.searched..].contains(&b'\n');
        if !complete && self.bytes.len() > self.max_len {
            let why = format!("a message is longer than {} bytes", self.max_len);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
    }
}

impl Iterator for Lines {
    type Item = Vec<u8>;

    /// The next complete line, without its end.
    fn next(&mut self) -> Option<Vec<u8>> {
        match self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                let end = self.searched + at;
                let line = self.bytes[self.from..end].to_vec();
                (self.from, self.searched) = (end + 1, end + 1);
                Some(line)
            }
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_LEN: usize = 16 << 20;

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            lines in prop::collection::vec("[^\n]{0,50}", 0..30), piece in 1usize..300,
        ) {
            let bytes: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut reader, mut found) = (Lines::up_to(MAX_LEN), Vec::new());
            for piece in bytes.as_bytes().chunks(piece) {
                reader.push(piece).unwrap();
                found.extend(reader.by_ref().map(|line| String::from_utf8(line).unwrap()));
            }
            prop_assert_eq!(found, lines);
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_a_long_one_with_an_end_is_not() {
        let mut reader = Lines::up_to(MAX_LEN);
        let half = vec![b'x'; MAX_LEN / 2];
        reader.push(&half).unwrap();
        assert!(reader.next().is_none());
        reader.push(&half).unwrap();
        reader.push(b"\n").unwrap();
        assert_eq!(reader.next().unwrap().len(), MAX_LEN);
        reader.push(&half).unwrap();
        reader.push(&half).unwrap();
        assert!(reader.push(b"x").is_err());
    }
}

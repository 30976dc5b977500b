//! A stream of bytes, taken apart into lines: a message each.

use std::io;

/// The longest message of a worker. Longer ones than people send by IPC; shorter than what would hurt.
pub const LONGEST: usize = 16 << 20;

/// Lines of bounded length.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Lines before this are taken.
    from: usize,
    /// Up to here there is no end of line.
    looked: usize,
}

impl Lines {
    /// Adds what came.
    ///
    /// # Errors
    /// When a line becomes too long.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.drain(..self.from);
        self.looked -= self.from;
        self.from = 0;
        self.bytes.extend_from_slice(bytes);
        let complete = self.bytes[self.looked..].contains(&b'\n');
        if !complete && self.bytes.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than 16 MiB"));
        }
        Ok(())
    }
}

impl Iterator for Lines {
    type Item = Vec<u8>;

    /// The next whole line, without its end.
    fn next(&mut self) -> Option<Vec<u8>> {
        match self.bytes[self.looked..].iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                let end = self.looked + at;
                let line = self.bytes[self.from..end].to_vec();
                (self.from, self.looked) = (end + 1, end + 1);
                Some(line)
            }
            None => {
                self.looked = self.bytes.len();
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

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            lines in prop::collection::vec("[^\n]{0,50}", 0..30), piece in 1usize..300,
        ) {
            let bytes: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut reader, mut found) = (Lines::default(), Vec::new());
            for piece in bytes.as_bytes().chunks(piece) {
                reader.push(piece).unwrap();
                found.extend(reader.by_ref().map(|line| String::from_utf8(line).unwrap()));
            }
            prop_assert_eq!(found, lines);
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_a_long_one_with_an_end_is_not() {
        let mut reader = Lines::default();
        let half = vec![b'x'; LONGEST / 2];
        reader.push(&half).unwrap();
        assert!(reader.next().is_none());
        reader.push(&half).unwrap();
        reader.push(b"\n").unwrap();
        assert_eq!(reader.next().unwrap().len(), LONGEST);
        reader.push(&half).unwrap();
        reader.push(&half).unwrap();
        assert!(reader.push(b"x").is_err());
    }
}

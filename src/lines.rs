//! A stream of bytes, taken apart into lines: a message each.

use std::io;

/// Lines of bounded length.
#[derive(Debug)]
pub struct Lines {
    /// A longer one is refused.
    longest: usize,
    bytes: Vec<u8>,
    /// Lines before this are taken.
    from: usize,
    /// Up to here there is no end of line.
    looked: usize,
}

impl Lines {
    /// None yet; each at most so long, in bytes.
    pub fn up_to(longest: usize) -> Self {
        Self { longest, bytes: Vec::new(), from: 0, looked: 0 }
    }

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
        if !complete && self.bytes.len() > self.longest {
            let why = format!("a message is longer than {} bytes", self.longest);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
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

    const LONGEST: usize = 16 << 20;

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            lines in prop::collection::vec("[^\n]{0,50}", 0..30), piece in 1usize..300,
        ) {
            let bytes: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut reader, mut found) = (Lines::up_to(LONGEST), Vec::new());
            for piece in bytes.as_bytes().chunks(piece) {
                reader.push(piece).unwrap();
                found.extend(reader.by_ref().map(|line| String::from_utf8(line).unwrap()));
            }
            prop_assert_eq!(found, lines);
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_a_long_one_with_an_end_is_not() {
        let mut reader = Lines::up_to(LONGEST);
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

//! Bytes of a control client, taken apart into requests.

use std::io;

use super::Request;
use crate::lines::Lines;

/// The longest request.
const MAX_REQUEST: usize = 64 * 1024;

/// Lines of JSON, of bounded length.
#[derive(Debug)]
pub struct Requests(Lines);

impl Default for Requests {
    fn default() -> Self {
        Self(Lines::up_to(MAX_REQUEST))
    }
}

impl Requests {
    /// The beginning of a request whose end has not come, and requests that were not taken yet.
    pub fn rest(&self) -> &[u8] {
        self.0.rest()
    }

    /// Adds what came.
    ///
    /// # Errors
    /// When a line becomes too long.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.push(bytes)
    }
}

impl Iterator for Requests {
    type Item = Result<Request, String>;

    /// The next whole line, or what is wrong with it.
    fn next(&mut self) -> Option<Self::Item> {
        let line = self.0.next()?;
        Some(serde_json::from_slice(&line).map_err(|error| format!("bad request: {error}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::instances::Change;

    fn request() -> impl Strategy<Value = Request> {
        let service = || prop::option::of("[a-z\"\\\\\u{e9}]{0,9}");
        prop_oneof![
            Just(Request::Hello {}),
            Just(Request::Ls {}),
            (service(), any::<Option<u32>>()).prop_map(|(service, slot)| Request::Reload { service, slot }),
            service().prop_map(|service| Request::Stop { service }),
            (service(), any::<i32>()).prop_map(|(service, by)| Request::Scale { service, to: Change::By(by) }),
            (service(), any::<Option<u32>>(), any::<usize>(), any::<bool>()).prop_map(
                |(service, slot, lines, follow)| Request::Logs { service, slot, lines, follow, events: slot.is_none() }
            ),
        ]
    }

    fn read(bytes: &[u8], piece: usize) -> Vec<Result<Request, String>> {
        let mut requests = Requests::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            if requests.push(piece).is_err() {
                break;
            }
            found.extend(requests.by_ref());
        }
        found
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(wanted in prop::collection::vec(request(), 0..20), piece in 1usize..200) {
            let lines: Vec<String> = wanted.iter().map(|request| serde_json::to_string(request).unwrap() + "\n").collect();
            let found: Result<Vec<_>, _> = read(lines.concat().as_bytes(), piece).into_iter().collect();
            prop_assert_eq!(found, Ok(wanted));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..200) {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
            prop_assert_eq!(read(&bytes, piece).len(), lines);
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut requests = Requests::default();
        let long = vec![b'x'; MAX_REQUEST];
        assert!(requests.push(&long).is_ok() && requests.next().is_none());
        assert!(requests.push(b"x").is_err());
    }
}

//! What the loaders of a server's programs say of our preload library: named once per service, with what to do.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::warn;

use super::line::Origin;

/// glibc's, before the path (rtld.c).
const START: &[u8] = b"ERROR: ld.so: object '";
/// The end of the name of a library of ours that is a file.
const FILE: &[u8] = b"-preload.so";

/// The services of which it was said.
#[derive(Default)]
pub struct Complaints(BTreeSet<Arc<str>>);

impl Complaints {
    pub fn look<'a>(&mut self, origin: &Origin, mut lines: impl Iterator<Item = &'a [u8]>) {
        let Some(path) = lines.find_map(ours) else { return };
        if self.0.insert(origin.service.clone()) {
            let path = String::from_utf8_lossy(path).into_owned();
            warn!(
                service = %origin.service, slot = origin.slot, pid = origin.pid,
                "a program that the server starts cannot load {path}: it has another root or other rights, or closed what it \
                 inherited; it is served only if it gets its connections from one that did; else use --via relay, or --user \
                 in place of what changes the user"
            );
        }
    }
}

/// The path of our library in a complaint.
fn ours(line: &[u8]) -> Option<&[u8]> {
    let path = line.strip_prefix(START)?.split(|&byte| byte == b'\'').next()?;
    (path.ends_with(FILE) || path.starts_with(b"/proc/")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complaints_about_our_library_count() {
        let line = |path: &str| format!("ERROR: ld.so: object '{path}' from LD_PRELOAD cannot be preloaded: ignored.");
        for (path, is_ours) in
            [("/run/roundsman-7-0-preload.so", true), ("/proc/self/fd/900", true), ("/usr/lib/libjemalloc.so.2", false)]
        {
            assert_eq!(ours(line(path).as_bytes()), is_ours.then_some(path.as_bytes()));
        }
        assert_eq!(ours(b"ERROR: ld.so"), None);
    }
}

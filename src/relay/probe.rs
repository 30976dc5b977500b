//! Probes of upstreams without a client: while all are down, the master may send no client to try one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use socket2::SockRef;

use super::connect::Started;
use super::sessions::Sessions;

impl Sessions {
    /// Begins one attempt at the next upstream, unless one is under way.
    pub fn probe(&mut self, poll: &Poll, token: Token, now: Instant) {
        match self.probe.take() {
            Some((target, _, since)) if now.duration_since(since) >= self.connect_timeout => {
                self.probe_failed(target, &io::Error::from_raw_os_error(libc::ETIMEDOUT), now);
            }
            None => {}
            under_way => {
                self.probe = under_way;
                return;
            }
        }
        self.stale.extend(self.upstreams.unresolved());
        let Some(target) = self.upstreams.pick(now) else { return };
        let Some(address) = self.upstreams.address(target) else { return };
        match self.sources.connect(address) {
            Ok(Started::Going(socket)) => match watch(poll, token, &socket) {
                Ok(()) => self.probe = Some((target, socket, now)),
                Err(_) => self.upstreams.closed(target),
            },
            Ok(Started::Later) => self.upstreams.closed(target),
            Err(error) => self.probe_failed(target, &error, now),
        }
    }

    /// The attempt has ended: takes its result.
    pub fn probed(&mut self, now: Instant) {
        let Some((target, socket, _)) = self.probe.take() else { return };
        match SockRef::from(&socket).take_error() {
            Ok(None) => {
                let change = self.upstreams.succeeded(target);
                self.upstreams.closed(target);
                self.report_up(target, change);
            }
            Ok(Some(error)) | Err(error) => self.probe_failed(target, &error, now),
        }
    }

    fn probe_failed(&mut self, target: usize, error: &io::Error, now: Instant) {
        Self::failed(&mut self.upstreams, &mut self.reports, &mut self.stale, target, error, now);
    }
}

fn watch(poll: &Poll, token: Token, socket: &OwnedFd) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::WRITABLE)
}

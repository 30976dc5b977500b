//! What a running daemon leaves to the program that takes its place by execve(2): text, with times and the numbers of descriptors.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::clock::monotonic_ns;
use crate::sys::closer::Foreign;
use crate::sys::sock::adopt_inherited;

/// A descriptor by its number, which stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(RawFd);

impl Fd {
    pub fn number(self) -> RawFd {
        self.0
    }

    pub fn of(fd: impl AsFd) -> Self {
        Self(fd.as_fd().as_raw_fd())
    }
}

/// A time in nanoseconds of CLOCK_MONOTONIC, which goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(i64);

fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        let (now, own) = (Instant::now(), i64::try_from(monotonic_ns()).unwrap_or(i64::MAX));
        Self(
            own.saturating_add(ns(at.saturating_duration_since(now)))
                .saturating_sub(ns(now.saturating_duration_since(at))),
        )
    }
}

impl From<Moment> for Instant {
    fn from(Moment(at): Moment) -> Self {
        let (now, own) = (Self::now(), i64::try_from(monotonic_ns()).unwrap_or(i64::MAX));
        let distance = Duration::from_nanos(at.abs_diff(own));
        if at >= own { now + distance } else { now.checked_sub(distance).unwrap_or(now) }
    }
}

/// The descriptors that are to stay open.
#[derive(Debug, Default)]
pub struct Kept(Vec<Fd>, Vec<OwnedFd>);

impl Kept {
    pub fn keep(&mut self, fd: impl AsFd) -> Fd {
        let fd = Fd(fd.as_fd().as_raw_fd());
        self.0.push(fd);
        fd
    }

    pub fn add(&mut self, fds: impl IntoIterator<Item = Fd>) {
        self.0.extend(fds);
    }

    pub fn all(&self) -> &[Fd] {
        &self.0
    }

    /// Those that another thread keeps.
    pub fn join(&mut self, Self(fds, duplicates): Self) {
        self.0.extend(fds);
        self.1.extend(duplicates);
    }

    /// A duplicate of one that has another owner, too; it stays open in this process.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn duplicate(&mut self, fd: impl AsFd) -> io::Result<Fd> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let number = self.keep(&fd);
        self.1.push(fd);
        Ok(number)
    }

    pub fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|fd| fd.0)
    }
}

/// The descriptors that were found open: each has one owner.
#[derive(Debug, Default)]
pub struct Found(BTreeSet<RawFd>);

impl Found {
    /// # Errors
    /// As [`Found::take`].
    pub fn number(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        self.take(Fd(number))
    }

    /// Closes those that nothing has taken.
    pub fn close_others(&mut self, all: Vec<Fd>) {
        // Other processes may have a say in how long that takes.
        all.into_iter().filter_map(|fd| self.take(fd).ok()).for_each(|fd| drop(Foreign::received(fd)));
    }

    /// # Errors
    /// EBADF for one that is not open, or was taken already.
    pub fn take(&mut self, Fd(number): Fd) -> io::Result<OwnedFd> {
        if number <= 2 || !self.0.insert(number) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        adopt_inherited(number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_now_come_back_as_they_were() {
        for distance in [0, 1, 999, 60_000].map(Duration::from_millis) {
            let now = Instant::now();
            for at in [now + distance, now - distance] {
                let back = Instant::from(Moment::from(at));
                let off = back.max(at).duration_since(back.min(at));
                assert!(off < Duration::from_millis(20), "{off:?}");
            }
        }
    }

    #[test]
    fn what_nothing_takes_is_closed() {
        use std::io::Read;
        let (mut ours, taken) = std::os::unix::net::UnixStream::pair().unwrap();
        let other = taken.try_clone().unwrap();
        let fds: Vec<Fd> = [taken, other].map(|socket| Fd(std::os::fd::IntoRawFd::into_raw_fd(socket))).into();
        let mut found = Found::default();
        let taken = found.take(fds[0]).unwrap();
        found.close_others(fds);
        ours.set_nonblocking(true).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(taken);
        ours.set_nonblocking(false).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_descriptor_has_one_owner() {
        let mut found = Found::default();
        assert!(found.take(Fd(1)).is_err() && found.take(Fd(100_000)).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = Kept::default().keep(&file);
        std::mem::forget(file);
        drop(found.take(fd).unwrap());
        assert!(found.take(fd).is_err());
    }
}

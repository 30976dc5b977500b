//! Registrations with epoll that are a matter of bind(2): those that the server made before (Asio does) are its socket's, and a
//! stand-in is another file; and those of a stand-in that the server had at that number before and closed are still there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::bind::Place;
use super::caller;
use crate::sys::registrations::{self, Change, Registration};
use crate::sys::{reason, sock};

/// What is to be moved or removed when a stand-in gets its place.
#[derive(Debug)]
pub struct Watched {
    registrations: Vec<Registration>,
    stale: Vec<Registration>,
    socket: io::Result<OwnedFd>,
}

impl Watched {
    /// `None` where nothing is registered, as with most servers.
    pub fn of(thread: u32, place: Place, stand_in: BorrowedFd<'_>) -> Option<Self> {
        let registrations = registrations::of(thread, place.fd, place.inode);
        let stale = sock::inode(stand_in).map_or_else(Vec::new, |inode| registrations::of(thread, place.fd, inode));
        let none = registrations.is_empty() && stale.is_empty();
        (!none).then(|| Self { registrations, stale, socket: caller::take(thread, place.fd) })
    }

    /// Once the stand-in is at its place, `fd`; this is before bind(2) returns.
    pub fn move_to(self, thread: u32, fd: i32, stand_in: BorrowedFd<'_>) {
        if let Err(error) = self.try_move_to(thread, fd, stand_in) {
            eprintln!(
                "roundsman: descriptor {fd} was registered with epoll before bind(2), and cannot be registered again: {}: \
                 its connections may not be noticed: use --via relay",
                reason(&error)
            );
        }
    }

    fn try_move_to(self, thread: u32, fd: i32, stand_in: BorrowedFd<'_>) -> io::Result<()> {
        for registration in self.stale {
            let instance = caller::take(thread, registration.instance)?;
            registrations::change(instance.as_fd(), fd, &[Change::Remove(stand_in)])?;
        }
        for registration in self.registrations {
            let (instance, socket) = (caller::take(thread, registration.instance)?, self.socket.as_ref());
            let socket = socket.map_err(|error| io::Error::from(error.kind()))?.as_fd();
            let changes = [Change::Remove(socket), Change::Add(stand_in, registration)];
            registrations::change(instance.as_fd(), fd, &changes)?;
        }
        Ok(())
    }
}

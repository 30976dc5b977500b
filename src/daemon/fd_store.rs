//! Listeners in systemd's descriptor store (FDSTORE=1, sd_pid_notify_with_fds(3)): they outlive a master that is killed, and clients
//! wait in their backlogs until the next one takes them over.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::debug;

use crate::accept::orders::{ListenerId, ServiceId};
use crate::service::{Service, awaiting};
use crate::sys::{reason, scm, sock};

/// The beginning of the names under which listeners are stored; a socket's inode is the rest.
const PREFIX: &str = "roundsman-listener-";
/// Milliseconds that systemd has at the start to close what the configuration no longer names.
const BARRIER_MS: u16 = 1000;

/// What systemd has been given.
#[derive(Debug, Default)]
pub struct Store(BTreeMap<(ServiceId, ListenerId), String>);

/// A listener in the store, in a daemon's record: the place of its service, its id there, and the name.
pub type Stored = (usize, ListenerId, String);

/// Whether a passed descriptor is one of ours, from the store.
pub fn is_stored(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|inode| !inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Store {
    pub fn record(&self, services: &[Service]) -> Vec<Stored> {
        let place = |id: ServiceId| services.iter().position(|service| service.id() == id);
        self.0.iter().filter_map(|((id, listener), name)| Some((place(*id)?, *listener, name.clone()))).collect()
    }

    pub fn adopt(stored: Vec<Stored>, services: &[Service]) -> Self {
        let of = |(place, listener, name): Stored| Some(((services.get(place)?.id(), listener), name));
        Self(stored.into_iter().filter_map(of).collect::<BTreeMap<_, _>>())
    }

    /// Stores the listeners of services that go on, and removes the others, so that their last copies are closed here.
    pub fn step(&mut self, services: &[Service], stopping: bool) {
        let going_on = |service: &&Service| !stopping && !awaiting::is_stopping(service) && !service.view().removed;
        let wanted = |service: ServiceId, listener: ListenerId| {
            let service = services.iter().filter(going_on).find(|one| one.id() == service);
            service.is_some_and(|one| one.view().listeners.flags().any(|(id, _)| id == listener))
        };
        self.0.retain(|&(service, listener), name| wanted(service, listener) || !forget(name));
        for service in services.iter().filter(going_on) {
            for (id, listener) in service.view().listeners.flags().filter(|(_, listener)| !listener.passed) {
                if let Entry::Vacant(entry) = self.0.entry((service.id(), id))
                    && let Some(name) = store(listener.socket.as_fd())
                {
                    entry.insert(name);
                }
            }
        }
    }
}

/// Hands systemd a copy; it keeps one of each socket. Its name, unless systemd has no room for the message now.
fn store(socket: BorrowedFd<'_>) -> Option<String> {
    let name = format!("{PREFIX}{}", sock::inode(socket)?);
    send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), Some(socket)).then_some(name)
}

/// Has systemd close what it has under a name; whether it was told.
fn forget(name: &str) -> bool {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)
}

/// Has systemd close listeners that nobody wants, and waits for that: their addresses may be wanted in another way.
pub fn forget_all(names: &[String]) {
    for name in names {
        forget(name);
    }
    let Ok((ours, theirs)) = sock::pipe() else { return };
    if !names.is_empty() && send("BARRIER=1\n", Some(theirs.as_fd())) {
        drop(theirs);
        // Hung up when systemd has read as far as this.
        let _ = poll(&mut [PollFd::new(ours.as_fd(), PollFlags::empty())], PollTimeout::from(BARRIER_MS));
    }
}

/// Whether to go on: only a full queue is worth another try.
fn send(message: &str, fd: Option<BorrowedFd<'_>>) -> bool {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return true };
    match connect(&path).and_then(|socket| scm::send_fds(socket.as_fd(), message.as_bytes(), fd.into_iter())) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => {
            debug!("NOTIFY_SOCKET: {}", reason(&error));
            true
        }
        Ok(()) => true,
    }
}

fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(path)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_come_from_the_store() {
        assert!(is_stored("roundsman-listener-4711"));
        for other in ["roundsman-listener-", "roundsman-listener-4711.socket", "roundsman.socket", "unknown", ""] {
            assert!(!is_stored(other), "{other}");
        }
    }
}

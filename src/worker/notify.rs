//! `--wait-ready`: a socket on which a server says READY=1 (sd_notify(3)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::direct::attach::{hex, secret};
use crate::events::{Registry, Source};
use crate::limited::OfUsers;
use crate::record::{Fd, Found, Kept};
use crate::sys::closer::{self, Foreign};
use crate::sys::{inspect, process, scm, sock};

/// Messages are short; what is longer is cut.
const MAX_MESSAGE: usize = 4096;
/// Messages read before others have their turn.
const MESSAGES_A_TURN: usize = 32;
/// Messages of one other user per second for which /proc is searched.
const SEARCH_RATE: f64 = 10.0;
/// Other users whose messages are counted.
const MAX_USERS: usize = 64;

/// The socket of one server. Its name is no secret (/proc/net/unix), so the senders are looked at.
#[derive(Debug)]
pub struct Notify {
    socket: Foreign,
    name: String,
    /// The server's user.
    uid: u32,
    /// It has said it.
    ready: bool,
    /// There may be more to read without a new event.
    more: bool,
    /// What other users have left.
    looks: OfUsers,
}

/// The same in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct NotifyRecord {
    socket: Fd,
    name: String,
    uid: u32,
    ready: bool,
}

impl Notify {
    pub fn record(&self, kept: &mut Kept) -> NotifyRecord {
        let Self { socket, name, uid, ready, more: _, looks: _ } = self;
        NotifyRecord { socket: kept.keep(socket), name: name.clone(), uid: *uid, ready: *ready }
    }

    /// # Errors
    /// When its socket is not there, and as epoll_ctl(2).
    pub fn adopt(record: NotifyRecord, found: &mut Found, registry: &Registry) -> io::Result<Self> {
        let NotifyRecord { socket, name, uid, ready } = record;
        let (socket, looks) = (Foreign::socket(found.take(socket)?), OfUsers::new(SEARCH_RATE, MAX_USERS));
        let notify = Self { socket, name, uid, ready, more: true, looks };
        notify.watch(registry)?;
        Ok(notify)
    }

    /// Opens one at an abstract name that nobody can guess, for a server that runs as this user.
    ///
    /// # Errors
    /// As socket(2), bind(2), setsockopt(2).
    pub fn open(uid: u32) -> io::Result<Self> {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("roundsman-notify-{}", hex(&secret()?));
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
        let socket = OwnedFd::from(UnixDatagram::bind_addr(&address)?);
        sock::pass_senders(socket.as_fd())?;
        // Without it descriptors are received, and closed where that disturbs nobody.
        let _ = sock::refuse_descriptors(socket.as_fd());
        Ok(Self {
            socket: Foreign::socket(socket),
            name,
            uid,
            ready: false,
            more: false,
            looks: OfUsers::new(SEARCH_RATE, MAX_USERS),
        })
    }

    /// The value of NOTIFY_SOCKET.
    pub fn variable(&self) -> String {
        format!("@{}", self.name)
    }

    /// Has epoll watch it.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, registry: &Registry) -> io::Result<()> {
        registry.watch(Source::Notify, &self.socket)
    }

    /// Reads what came, for a turn; whether the server (the process `server`, or one below it) has said that it is ready.
    pub fn is_ready(&mut self, server: u32) -> bool {
        let (mut message, mut fds) = ([0; MAX_MESSAGE], Vec::new());
        self.more = true;
        for _ in 0..MESSAGES_A_TURN {
            if closer::received_wait() {
                // The next turn, whatever it is for, tries again.
                self.more = false;
                break;
            }
            let received = match scm::recv_fds(self.socket.as_fd(), &mut message, &mut fds) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.more = false;
                    break;
                }
            };
            fds.drain(..).map(Foreign::received).for_each(drop);
            let mut lines = message[..received.len].split(|&byte| byte == b'\n');
            if self.ready || !lines.any(|line| line == b"READY=1") {
                continue;
            }
            // One that has ended already (systemd-notify) can only be known by its user, which a server may have changed.
            self.ready = received.sender.is_some_and(|sender| {
                [0, self.uid].contains(&sender.uid)
                    || (self.looks.take(sender.uid, Instant::now()).is_ok()
                        && (process::is_below(sender.pid, &[server]) || inspect::runs_as(server, sender.uid)))
            });
            if !self.ready {
                debug!(sender = ?received.sender, "READY=1 ignored: it is not from the server");
            }
        }
        self.ready
    }

    /// Whether there may be more to read without a new event.
    pub fn has_more(&self) -> bool {
        self.more
    }
}

//! A server's process, and how it is asked to stop.

use std::net::SocketAddr;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::ipc::Ipc;
use super::listen_watch::Complained;
use super::notify::Notify;
use super::probe::Probe;
use crate::sys::process;

/// A server's process.
#[derive(Debug)]
pub struct Server {
    /// The process that we started.
    pub pid: u32,
    /// Where it listens: the private address, corrected to what really accepts.
    pub address: Option<SocketAddr>,
    /// Looks whether it accepts; `None` once it does.
    pub probe: Option<Probe>,
    /// When it was started.
    pub since: Instant,
    /// What was said of its not listening.
    pub complained: Complained,
    /// Why it is not online, as far as is known.
    pub trouble: Option<String>,
    /// The address that it wanted and did not get, and why.
    pub refused: Option<String>,
    /// Whether it was told to stop.
    pub told: Told,
    /// What its processes have in their environment, and no other server's.
    pub mark: String,
    /// Where it says that it is ready, as long as that is waited for.
    pub notify: Option<Notify>,
    /// Node's channel.
    pub ipc: Option<Ipc>,
    /// The port of Node's inspector: nobody's but its own.
    pub inspect: Option<u16>,
}

impl Told {
    /// When it got the stop message, if it waits for the signal since.
    pub fn by_message(self) -> Option<Instant> {
        match self {
            Self::ByMessage(at) => Some(at),
            Self::Nothing | Self::ToStop(_) => None,
        }
    }

    /// When it got its stop signal.
    pub fn by_signal(self) -> Option<Instant> {
        match self {
            Self::ToStop(at) => Some(at),
            Self::Nothing | Self::ByMessage(_) => None,
        }
    }
}

impl Server {
    /// Whether it has said that it is ready, or need not.
    pub fn has_said_ready(&mut self) -> bool {
        let by_message = self.ipc.as_ref().is_some_and(|ipc| ipc.ready);
        let pid = self.pid;
        // Read in any case: nothing may be left over for the next turn for ever.
        let by_notify = self.notify.as_mut().is_none_or(|notify| notify.is_ready(pid));
        by_message || by_notify
    }
}

/// Whether a server got its stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It shall go on.
    Nothing,
    /// It got `--stop-message` then; the signal follows.
    ByMessage(Instant),
    /// It got it then.
    ToStop(Instant),
}

/// Tells a server to stop, once: by its stop message, where there is one, else by the signal.
pub fn tell(server: &mut Server, attached: Option<u32>, by: Signal) {
    if server.told != Told::Nothing {
        return;
    }
    if server.ipc.as_mut().is_some_and(Ipc::stop) {
        server.told = Told::ByMessage(Instant::now());
    } else {
        signal(server, attached, by);
    }
}

/// Sends a server its stop signal.
pub fn signal(server: &mut Server, attached: Option<u32>, signal: Signal) {
    server.told = Told::ToStop(Instant::now());
    if let Ok(pidfd) = process::pidfd_open(attached.unwrap_or(server.pid)) {
        let _ = process::pidfd_signal(&pidfd, signal);
    }
}

//! The channels of relay workers and of workers in Node.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use tracing::warn;

use super::Daemon;
use crate::events::Source;
use crate::relay::protocol::{self, FromWorker};
use crate::sys::closer::Foreign;
use crate::sys::process;

impl Daemon {
    /// A relay worker says something. One that talks nonsense is killed, and so replaced.
    pub(super) fn read_relay(&mut self, pid: u32) {
        let of = |relay: &crate::worker::relay::Relay| relay.pid == pid;
        let found = self.services.iter_mut().find_map(|service| {
            let at = service.slots().iter().position(|slot| slot.relay().is_some_and(of))?;
            Some((service, at))
        });
        let Some((service, at)) = found else { return };
        loop {
            let Some(relay) = service.slots()[at].relay() else { return };
            let mut fds = Vec::new();
            let received = protocol::receive::<FromWorker>(relay.channel.as_fd(), &mut fds);
            // It has none to send.
            fds.into_iter().map(Foreign::received).for_each(drop);
            match received {
                Ok(Some(message)) => service.on_relay_message(at, message, Instant::now()),
                // Its death follows.
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(service = %service.config().name, slot = at, pid, "killed: nonsense on its channel: {error}");
                    process::kill_tree(pid);
                    return;
                }
            }
        }
    }

    /// A worker in Node says something.
    pub(super) fn read_node(&mut self, pid: u32) {
        let more = self.services.iter_mut().find_map(|service| service.hear_node(pid, &self.context));
        if more == Some(true) {
            self.unread.push(Source::Node(pid));
        }
    }
}

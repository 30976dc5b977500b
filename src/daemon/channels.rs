//! The channels of relay workers and of workers in Node.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use tracing::warn;

use super::Daemon;
use crate::events::Source;
use crate::relay::protocol::{self, FromWorker};
use crate::sys::closer::Foreign;
use crate::sys::{process, reason};

impl Daemon {
    /// A relay worker says something. One that talks nonsense is killed, and so replaced.
    pub(super) fn read_relay(&mut self, pid: u32) {
        let Some((service, Some(at), context)) = self.owner(pid) else { return };
        let at = at as usize;
        loop {
            let Some(relay) = service.slots().get(at).and_then(|slot| slot.relay_with(pid)) else { return };
            let mut fds = Vec::new();
            let received = protocol::receive::<FromWorker>(relay.channel.as_fd(), &mut fds);
            let sockets: Vec<_> = fds.into_iter().map(Foreign::received).collect();
            match received {
                Ok(Some(FromWorker::Moved(given))) => {
                    let mut handler = service.attach(context);
                    given.iter().zip(sockets).for_each(|(given, socket)| handler.relay_gave(at, pid, *given, socket));
                }
                Ok(Some(message)) => service.on_relay_message(at, message, Instant::now()),
                // Its death follows.
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let why = reason(&error);
                    warn!(name: "worker-killed", service = %service.config().name, slot = at, pid, "killed: nonsense on its channel: {why}");
                    process::kill_tree(pid);
                    return;
                }
            }
        }
    }

    /// A worker in Node says something.
    pub(super) fn read_node(&mut self, pid: u32) {
        let Some((service, _, context)) = self.owner(pid) else { return };
        if service.attach(context).hear(pid) == Some(true) {
            self.unread.push(Source::Node(pid));
        }
    }
}

//! What comes in over sockets: relay workers' channels, the attach socket, the control socket.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use tracing::warn;

use super::reload::Progress;
use super::{ATTACHED, CLIENTS, Supervisor, WORKERS, worker};
use crate::control::{Answer, Request, Said, snapshot};
use crate::direct::attach::{Heard, What};
use crate::relay::protocol::{self, FromWorker};
use crate::sys::process;

impl Supervisor {
    /// A relay worker says something. One that talks nonsense is killed, and so replaced.
    pub(super) fn hear(&mut self, pid: u32) {
        let of = |relay: &worker::Relay| relay.pid == pid;
        let Some(at) = self.service.slots.iter().position(|slot| slot.relay.as_ref().is_some_and(of)) else { return };
        loop {
            let Some(relay) = &self.service.slots[at].relay else { return };
            match protocol::receive::<FromWorker>(relay.channel.as_fd(), &mut Vec::new()) {
                Ok(Some(message)) => self.service.told(at, message),
                // Its death follows.
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(service = %self.service.config.name, slot = at, pid, "killed: nonsense on its channel: {error}");
                    process::kill_tree(pid);
                    return;
                }
            }
        }
    }

    /// A server's preload library asks.
    pub(super) fn serve_attached(&mut self, token: usize) {
        loop {
            let Some(attachment) = &mut self.tools.attach else { return };
            match attachment.server.next(&self.poll, token) {
                Ok(None) => return,
                Ok(Some(Heard::Ended(pid, secret))) => return self.service.lease_ended(pid, secret, Instant::now()),
                Ok(Some(Heard::Asked(asked))) => {
                    let leases = matches!(asked.what, What::Lease).then_some((asked.pid, asked.secret));
                    let answer = self.service.asked(asked, &self.tools);
                    let Some(attachment) = &mut self.tools.attach else { return };
                    match answer {
                        Some(answer) => {
                            attachment.server.answer(token, &answer);
                            if let Some((pid, secret)) = leases {
                                attachment.server.watch(&self.poll, ATTACHED..WORKERS, pid, secret);
                            }
                        }
                        None => attachment.server.close(token),
                    }
                }
                Err(error) => warn!(service = %self.service.config.name, "nonsense on the attach socket: {error}"),
            }
        }
    }

    pub(super) fn serve_control(&mut self, client: Option<usize>) {
        let Some(control) = &mut self.control else { return };
        let Some(token) = client else { return control.accept(&self.poll, CLIENTS, ATTACHED) };
        let (service, tools, started, waiting) = (&mut self.service, &self.tools, self.started, &mut self.waiting);
        control.serve(&self.poll, token, |request| {
            let now = Instant::now();
            let begun = match request {
                Request::Ls {} => {
                    return Answer::Now(serde_json::to_vec(&snapshot::daemon(&[service], started)).unwrap_or_default());
                }
                Request::Reload {} => service.reload(now),
                Request::Restart {} => service.restart(tools, now),
                Request::Stop {} => service.pause(tools, now),
                Request::Start {} => service.start(now),
                Request::Scale { to } => service.scale(to.from(service.config.instances), tools, now),
            };
            match begun {
                Ok(()) => {
                    waiting.push(token);
                    Answer::Later
                }
                Err(why) => Answer::Now(serde_json::to_vec(&Said::Error(why)).unwrap_or_default()),
            }
        });
    }

    /// Passes on what became of what was asked for.
    pub(super) fn tell_waiting(&mut self) {
        while let Some(progress) = self.service.said.pop_front() {
            let (said, over) = match progress {
                Progress::Step(text) => (Said::Step(text), false),
                Progress::Done(text) => (Said::Done(text), true),
                Progress::Failed(text) => (Said::Error(text), true),
            };
            if let Some(control) = &mut self.control {
                self.waiting.retain(|&token| control.tell(token, &said) && !over);
            }
        }
    }
}

//! Requests of preload libraries, and the processes that live as long as their leases.

use std::time::Instant;

use tracing::warn;

use super::Daemon;
use crate::direct::attach::{AttachEvent, Refusal, RequestKind, Secret};
use crate::direct::guests::{Guest, Ours};
use crate::events::Source;
use crate::service::Service;
use crate::service::attach::Shown;

/// Requests of one attach connection before others have their turn.
const REQUESTS_A_TURN: usize = 8;

impl Daemon {
    /// Takes connections of preload libraries.
    pub(super) fn accept_attached(&mut self) {
        let Some(attach) = &mut self.context.attach else { return };
        let users = self.services.iter().filter_map(|service| Some(service.config().user.as_ref()?.uid.as_raw()));
        let ours = Ours {
            users: users.chain([0, nix::unistd::geteuid().as_raw()]).collect(),
            servers: self.services.iter().flat_map(Service::pids).collect(),
        };
        attach.accept(&ours, Instant::now());
    }

    /// A server's preload library asks; one connection is heard for a turn.
    pub(super) fn serve_attached(&mut self, number: u32) {
        for _ in 0..REQUESTS_A_TURN {
            let Some(attach) = &mut self.context.attach else { return };
            let admits = |secret: &Secret, guest: &Guest| {
                let (pid, uid) = (guest.pid, guest.uid);
                let shown = if guest.proven == Some(*secret) { Shown::Before } else { Shown::By { pid, uid } };
                self.services.iter().any(|one| one.admits(secret, shown))
            };
            match attach.next(number, admits) {
                Ok(None) => return,
                Ok(Some(AttachEvent::Ended(pid, secret))) => {
                    let now = Instant::now();
                    self.services.iter_mut().for_each(|service| service.attach(&self.context).ended(pid, secret, now));
                    return;
                }
                Ok(Some(AttachEvent::Request(request))) => {
                    let leases = matches!(request.kind, RequestKind::Lease).then_some((request.pid, request.secret));
                    let known = |one: &&mut Service| one.admits(&request.secret, Shown::Before);
                    let reply =
                        self.services.iter_mut().find(known).and_then(|one| one.attach(&self.context).request(request));
                    let Some(attach) = &mut self.context.attach else { return };
                    match reply {
                        Some(reply) => {
                            attach.reply(number, &reply);
                            if let Some((pid, secret)) = leases {
                                attach.watch(pid, secret);
                            }
                        }
                        None => attach.close(number),
                    }
                }
                Err(Refusal::NotOurs { pid, uid }) => {
                    if let Some(suppressed) = self.refused.pass(Instant::now()) {
                        warn!(pid, uid, suppressed, "attach refused: not one of our workers");
                    }
                    return;
                }
                Err(Refusal::Nonsense(why)) => {
                    if let Some(suppressed) = self.nonsense.pass(Instant::now()) {
                        warn!(suppressed, "nonsense on the attach socket: {why}");
                    }
                    return;
                }
            }
        }
        self.unread.push(Source::Attached(number));
    }

    /// Processes that have stand-ins and never asked for them.
    pub(super) fn watch_holders(&mut self) {
        let now = Instant::now();
        for at in 0..self.services.len() {
            let unwatched = self.services[at].attach(&self.context).take_unwatched();
            for (pid, secret) in unwatched {
                let Some(attach) = &mut self.context.attach else { return };
                if !attach.watch(pid, secret) {
                    self.services[at].attach(&self.context).ended(pid, secret, now);
                }
            }
        }
    }
}

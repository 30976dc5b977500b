//! What the accept thread says.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::operations::Operations;
use super::{Context, Service};
use crate::accept::orders::{Report, WorkerId};
use crate::accept::stage::refusals::Refusal;
use crate::accept::waits::ShedReason;
use crate::config::ServiceConfig;
use crate::slot::Slot;
use crate::sys::process;
use crate::sys::reason;

/// Stalls and rescues of one worker are written to the log at most this often; `ls` counts them all.
const STALL_LOG: Duration = Duration::from_secs(10);

impl Service {
    /// What the accept thread says.
    pub fn reported(&mut self, report: &Report, context: &Context, now: Instant) {
        let name = self.config.name.clone();
        match report {
            Report::Stalled(worker) => {
                if let Some(slot) = self.slots.get_mut(worker.slot as usize)
                    && slot.history.stall_logged.is_none_or(|at| now.duration_since(at) >= STALL_LOG)
                {
                    slot.history.stall_logged = Some(now);
                    warn!(name: "worker-stalled", service = %name, slot = worker.slot, "worker stalled: its queue goes to the others");
                }
            }
            Report::Drained(worker) => {
                let old = self.slots.iter_mut().flat_map(|slot| &mut slot.retiring);
                old.filter(|old| old.worker.id == *worker).for_each(|old| old.out_of_rotation = true);
            }
            Report::Served(worker) => self.recycling.served(*worker, self.slots.len()),
            Report::Hung(worker) => hung(&mut self.slots, &self.config, *worker),
            Report::NeverReceived(worker) => {
                warn!(
                    service = %name, slot = worker.slot,
                    "worker was handed connections and has received none for 5 s: it is blocked, or it accepts by \
                     io_uring or raw system calls; in that case use --via relay"
                );
            }
            Report::Inexact(worker) => {
                warn!(
                    service = %name, slot = worker.slot,
                    "--worker-conns is not exact for this server: its processes close connections that others received, \
                     or there are too many to count; use --via relay"
                );
            }
            Report::Rescued { worker, count } => {
                let Some(slot) = self.slots.get_mut(worker.slot as usize) else { return };
                let recent = |(of, at): (_, Instant)| of == *worker && at != now && now.duration_since(at) < STALL_LOG;
                if !slot.history.rescue_logged.is_some_and(recent) {
                    slot.history.rescue_logged = Some((*worker, now));
                    info!(name: "rescued", service = %name, slot = worker.slot, count, "connections rescued");
                }
            }
            Report::Uncountable(_) => warn!(
                service = %name,
                "--max-conns does not hold: the server closes connections in processes that did not accept them, so those \
                 open cannot be counted"
            ),
            Report::SourcesUnknown(_) => warn!(
                service = %name,
                "--source-conns does not hold: the kernel does not say which connections are open (no socket diagnostics, or \
                 the listener belongs to another network namespace)"
            ),
            Report::SourcesKnown(_) => info!(service = %name, "--source-conns holds again"),
            Report::Shed { count, reason, .. } => match reason {
                ShedReason::QueueTimeout => {
                    warn!(name: "shed", service = %name, count, "connections reset: no worker took them within the queue timeout");
                }
                ShedReason::QueueFull => {
                    warn!(name: "shed", service = %name, count, "connections reset: --max-queue clients were waiting already");
                }
                ShedReason::NoWorker | ShedReason::ClientLeft => {
                    warn!(name: "shed", service = %name, count, "connections reset: no worker will take them");
                }
            },
            Report::Refused { count, reason, .. } => {
                let why = match reason {
                    Refusal::ProxyInvalid => "a source of --proxy-from did not begin with a valid PROXY header",
                    Refusal::ProxyTimeout => "the PROXY header did not come within 3 s",
                    Refusal::ClientLeft => "they left before their first bytes came",
                    Refusal::StageFull => "too many connections have not sent their first bytes yet",
                    Refusal::Denied => "--allow and --deny exclude their addresses",
                    Refusal::SourceConns => "their source has --source-conns open",
                    Refusal::SourceRate => "their source opens more than --source-rate",
                    Refusal::FirstByteTimeout => "they sent nothing within --first-byte-timeout",
                };
                warn!(name: "refused", service = %name, count, "connections reset: {why}");
            }
            Report::AcceptTrouble { errno: Some(libc::EINTR), listener, .. } => {
                let address = self.listeners.find(*listener).map(|listener| listener.address.as_str());
                warn!(
                    service = %name, address,
                    "a process that has this listening socket, too, makes it blocking; connections are accepted less often"
                );
            }
            Report::AcceptTrouble { errno: Some(errno), listener, .. } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                let address = self.listeners.find(*listener).map(|listener| listener.address.as_str());
                warn!(service = %name, address, "cannot accept for now: {}; clients wait in the backlog", reason(&error));
            }
            Report::AcceptTrouble { errno: None, .. } => info!(service = %name, "accepting again"),
            Report::Forgotten { listener, .. } => self.listeners.forgotten(*listener),
            Report::Paused(_) => self.operate(context, now, Operations::paused_intake),
            Report::Stopped(_) => {
                self.handoff_done = true;
                self.slots.iter_mut().flat_map(|slot| &mut slot.retiring).for_each(|old| old.out_of_rotation = true);
                debug!(service = %name, "listeners closed");
            }
        }
    }
}

/// A worker hangs: it serves nobody, so nothing is gained by a successor first.
fn hung(slots: &mut [Slot], config: &ServiceConfig, worker: WorkerId) {
    let seconds = config.limits.hang_timeout.unwrap_or_default().as_secs_f32();
    let Some(slot) = slots.get_mut(worker.slot as usize) else { return };
    let Some(current) = slot.current.as_ref().filter(|current| current.id == worker) else { return };
    let server = current.direct().map(|(server, _)| server.pid);
    let Some(pid) = current.relay().map(|relay| relay.pid).or(server) else { return };
    let reason = format!("hung: it took nothing for {seconds} s while connections waited");
    warn!(name: "worker-killed", service = %config.name, slot = worker.slot, pid, "worker {reason}: killed");
    slot.history.replace_reason = Some(reason.clone());
    slot.history.kill_reason = Some(reason);
    process::kill_tree(pid);
}

//! Signals.

use std::io;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook_mio::v1_0::Signals;
use tracing::{info, warn};

use super::Daemon;
use crate::config::instances::Change;
use crate::service::operations::Operation;

/// A second stop signal this soon is the first one once more: timeout(1) and shells signal the process and then
/// its group.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// Whether there was a terminal at the start: a hang-up then means that it went away.
#[derive(PartialEq, Eq)]
pub(super) enum Terminal {
    Had,
    None,
}

/// Whether our log goes to a terminal that another process group has.
fn in_background() -> bool {
    let foreground = nix::unistd::tcgetpgrp(std::io::stderr());
    foreground.is_ok_and(|group| group != nix::unistd::getpgrp())
}

pub(super) fn terminal() -> Terminal {
    if std::fs::File::open("/dev/tty").is_ok() { Terminal::Had } else { Terminal::None }
}

/// Takes all signals that mean something. With SIGXFSZ nothing is done, but it would end the process: with a limit of file sizes (RLIMIT_FSIZE)
/// the kernel sends it when the log or a memory file cannot grow, and the write fails as well.
///
/// # Errors
/// As sigaction(2).
pub(super) fn take() -> io::Result<Signals> {
    Signals::new([SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU, SIGXFSZ])
}

impl Daemon {
    /// Returns the exit code when the daemon ends at once.
    pub(super) fn take_signals(&mut self) -> Option<u8> {
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            match signal {
                SIGTERM | SIGINT => match self.stopping {
                    None => self.begin_stop(if signal == SIGINT { "SIGINT" } else { "SIGTERM" }),
                    Some(since) if since.elapsed() < SAME_SIGNAL => {}
                    Some(_) => return Some(self.end_at_once(signal)),
                },
                SIGQUIT => return Some(self.end_at_once(signal)),
                SIGHUP if self.terminal == Terminal::Had && terminal() == Terminal::None => {
                    self.begin_stop("SIGHUP (the terminal went away)");
                }
                SIGHUP => match self.reload(None, Instant::now()) {
                    Ok(begun) => begun.refused.iter().for_each(|why| warn!("reload refused: {why}")),
                    Err(why) => warn!("reload refused: {why}"),
                },
                // The terminal also sends them to a background process that writes to it.
                SIGTTIN | SIGTTOU if in_background() => {}
                SIGTTIN => self.scale_by(1),
                SIGTTOU => self.scale_by(-1),
                SIGUSR1 => {
                    info!("reopening log files");
                    self.context.launcher.outputs.reopen();
                }
                SIGUSR2 => {
                    if let Err(why) = self.upgrade(None, None) {
                        warn!("not upgraded: {why}");
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn scale_by(&mut self, by: i32) {
        let refused = match self.services.as_mut_slice() {
            [service] => {
                let to = Change::By(by).from(service.config().instances);
                service.begin(Operation::Scale(to), &self.context, Instant::now()).map(drop)
            }
            _ => Err("several services; use roundsman scale N NAME".to_owned()),
        };
        if let Err(why) = refused {
            warn!("scale refused: {why}");
        }
    }

    fn end_at_once(&mut self, signal: i32) -> u8 {
        warn!(signal, "stopping at once");
        self.end_all();
        (128 + signal) as u8
    }
}

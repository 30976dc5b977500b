//! `roundsman upgrade` and SIGUSR2: another program takes this one's place and goes on with its workers and connections.
//!
//! First the program is tried on a copy of the record, as a child: what it refuses changes nothing. Then the accept thread, the access
//! log's and the one that reads servers' output stand still, the record is made once more, and execve(2) does the rest. Until then everything can
//! be taken back; after that a program that cannot go on runs this one again.

pub mod record;
mod said;
pub mod takeover;

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::WaitStatus;
use signal_hook_mio::v1_0::Signals;
use tracing::{info, warn};

use self::record::DaemonRecord;
use self::said::Said;
use super::Daemon;
use crate::accept::orders::Order;
use crate::accept::record::StandStill;
use crate::control::Reply;
use crate::control::server::Finality;
use crate::launch;
use crate::record::Kept;
use crate::sys::{exec, image, mmap, process, reason};

/// The word by which a program is tried, and the beginning and end of what one says that can go on.
pub const TRY: &str = "try-record";
pub const CAN: (&str, &str) = ("roundsman ", " can go on");
/// The variable that names the record's descriptor, and that of the program before: `7 8`.
pub const VARIABLE: &str = "ROUNDSMAN_RECORD";
/// A program has so long to say whether it can go on.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// What is under way and cannot be handed over has so long to end, unless somebody asked for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);
/// The accept thread, and then those of the access log and of servers' output, have so long each to stand still: the control thread waits.
const STAND_STILL: Duration = Duration::from_millis(250);
/// After one that was too late.
const AGAIN: Duration = Duration::from_secs(1);
/// Descriptors that a program has besides those that it takes over.
const OWN_FILES: u64 = 64;

/// A program that is to take this one's place.
#[derive(Debug)]
pub struct Trial {
    image: OwnedFd,
    file: PathBuf,
    /// The control client that waits for it.
    client: Option<u32>,
    stage: Stage,
    until: Instant,
    /// It is not looked at before.
    next: Instant,
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// Something is under way that cannot be handed over.
    Waits,
    Tries {
        pid: u32,
        said: Said,
    },
    /// It can go on: its version.
    Can(String),
}

/// Why a program does not take over.
enum Obstacle {
    /// Of something that ends.
    Passing(String),
    /// Of a thread that did not stand still in time.
    Busy(&'static str),
    Lasting(String),
}

impl From<std::io::Error> for Obstacle {
    fn from(error: std::io::Error) -> Self {
        Self::Lasting(reason(&error))
    }
}

impl Trial {
    /// When it is to be looked at.
    pub fn due(&self) -> Instant {
        match self.stage {
            Stage::Tries { .. } => self.next.min(self.until),
            Stage::Waits | Stage::Can(_) => self.next,
        }
    }

    /// Whether this is its process.
    pub fn is(&self, own: u32) -> bool {
        matches!(self.stage, Stage::Tries { pid, .. } if pid == own)
    }
}

/// The file of the running program, also after it was replaced.
///
/// # Errors
/// Without /proc.
fn own_file() -> std::io::Result<PathBuf> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
    Ok(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned())
}

impl Daemon {
    /// Begins an upgrade to a program; `None`: the file that this one was started from. What comes next, for people.
    ///
    /// # Errors
    /// Why it cannot be; nothing has changed.
    pub(super) fn upgrade(&mut self, file: Option<PathBuf>, client: Option<u32>) -> Result<String, String> {
        if self.stopping.is_some() {
            return Err("the daemon is stopping".to_owned());
        }
        if self.trial.is_some() {
            return Err("an upgrade is under way".to_owned());
        }
        let file = match file {
            Some(file) => file,
            None => own_file().map_err(|error| format!("cannot find this program: {}", reason(&error)))?,
        };
        let shown = file.display();
        let meta = std::fs::metadata(&file).map_err(|error| format!("cannot run {shown}: {}", reason(&error)))?;
        if !meta.is_file() {
            return Err(format!("cannot run {shown}: it is not a regular file"));
        }
        let failed = |error: std::io::Error| format!("cannot run {shown}: {}", reason(&error));
        let image = exec::open_image(&file).map_err(failed)?;
        let now = Instant::now();
        self.trial = Some(Trial { image, file, client, stage: Stage::Waits, until: now + PATIENCE, next: now });
        let Err(why) = self.record(None, Vec::new(), Vec::new(), None) else {
            return Ok("trying the program".to_owned());
        };
        info!("upgrade: waiting: {why}");
        Ok(format!("waiting: {why}"))
    }

    /// Goes on with an upgrade, and ends one that takes too long.
    pub(super) fn step_trial(&mut self, now: Instant) {
        let Some(trial) = self.trial.take_if(|trial| now >= trial.due()) else { return };
        let Trial { image, file, client, mut stage, mut until, next: _ } = trial;
        if let (Stage::Waits | Stage::Can(_), Some(client), Some(control)) = (&stage, client, &self.control)
            && !control.has(client)
        {
            return info!("upgrade: nobody waits for it any more");
        }
        if self.is_operated() && !matches!(stage, Stage::Tries { .. }) {
            // That has bounds of its own.
            until = until.max(now + PATIENCE);
        }
        let next = now + LOOK;
        let outcome = match &mut stage {
            Stage::Tries { pid, .. } if now >= until => {
                warn!(pid, "upgrade: the program does not say whether it can go on; killed");
                process::kill_tree(*pid);
                self.trial = Some(Trial { image, file, client, stage, until: now + TRIAL_TIMEOUT, next });
                return;
            }
            Stage::Tries { said, .. } => {
                said.read();
                self.trial = Some(Trial { image, file, client, stage, until, next });
                return;
            }
            Stage::Waits => self.start_trial(&image).map(|(pid, said)| {
                info!(file = %file.display(), pid, "upgrade: trying the program");
                (Stage::Tries { pid, said: said.into() }, now + TRIAL_TIMEOUT)
            }),
            // Returns only if it fails.
            Stage::Can(version) => self.give_way(&image, version, client).map(|never| match never {}),
        };
        match outcome {
            Ok((stage, until)) => self.trial = Some(Trial { image, file, client, stage, until, next }),
            Err(Obstacle::Passing(_)) if now < until && self.stopping.is_none() => {
                self.trial = Some(Trial { image, file, client, stage, until, next });
            }
            Err(Obstacle::Busy(_)) if now < until && self.stopping.is_none() => {
                let next = Instant::now() + AGAIN;
                self.trial = Some(Trial { image, file, client, stage, until, next });
            }
            Err(Obstacle::Busy(what)) => self.not_upgraded(&file, client, &format!("{what} is busy")),
            Err(Obstacle::Passing(why) | Obstacle::Lasting(why)) => self.not_upgraded(&file, client, &why),
        }
    }

    /// Whether somebody has asked for something else, and it is not done.
    fn is_operated(&self) -> bool {
        !self.waiting.is_empty() || self.services.iter().any(|service| service.view().reloading)
    }

    fn start_trial(&self, image: &OwnedFd) -> Result<(u32, OwnedFd), Obstacle> {
        let (record, _) = self.record(None, Vec::new(), Vec::new(), None).map_err(Obstacle::Passing)?;
        let record = record.sealed()?;
        let failed = |error: std::io::Error| Obstacle::Lasting(format!("cannot run it: {}", reason(&error)));
        launch::try_program(image.as_fd(), TRY, record).map_err(failed)
    }

    fn not_upgraded(&mut self, file: &Path, client: Option<u32>, why: &str) {
        let text = format!("not upgraded to {}: {why}", file.display());
        warn!("{text}");
        if let (Some(client), Some(control)) = (client, &mut self.control) {
            control.tell(client, &Reply::Error(text), Finality::Last);
        }
    }

    /// A child has ended that is no worker.
    pub(super) fn tried(&mut self, pid: u32, status: WaitStatus) {
        let Some(trial) = self.trial.take_if(|trial| trial.is(pid)) else { return };
        let Trial { image, file, client, stage, .. } = trial;
        let Stage::Tries { mut said, .. } = stage else { return };
        let last = said.last_line();
        let can = last.strip_prefix(CAN.0).and_then(|rest| rest.strip_suffix(CAN.1));
        match (status, can) {
            (WaitStatus::Exited(_, 0), Some(version)) => {
                let (stage, next) = (Stage::Can(version.to_owned()), Instant::now());
                self.trial = Some(Trial { image, file, client, stage, until: next + PATIENCE, next });
            }
            (WaitStatus::Exited(_, 0), None) => {
                self.not_upgraded(&file, client, "it is not a roundsman that can go on");
            }
            _ => {
                let why = last.trim_start_matches("roundsman: ");
                let status = crate::worker::exit::LastExit::from(status).text;
                let why = if why.is_empty() { status } else { format!("{why} ({status})") };
                self.not_upgraded(&file, client, &why);
            }
        }
    }

    /// Has another program take this one's place.
    ///
    /// # Errors
    /// Why it does not; everything goes on as before.
    fn give_way(&mut self, image: &OwnedFd, version: &str, client: Option<u32>) -> Result<Infallible, Obstacle> {
        let (accept_goes_on, still) = bounded::<()>(0);
        let (told, telling) = bounded(1);
        self.context.orders.send(Order::StandStill(StandStill { told, go_on: still }));
        let told = telling.recv_timeout(STAND_STILL).map_err(|_| Obstacle::Busy("the accept thread"))?;
        let told = told.map_err(Obstacle::Passing)?;
        // What it said before is in the record.
        self.take_reports();
        let (access_goes_on, still) = bounded::<()>(0);
        let books = self.context.access.stand_still(still, STAND_STILL).ok_or(Obstacle::Busy("the access log"))?;
        // It writes what the access log has given it.
        let (output_goes_on, still) = bounded::<()>(0);
        let outputs = &self.context.launcher.outputs;
        let outputs = outputs.stand_still(still, STAND_STILL).ok_or(Obstacle::Busy("the servers' output"))?;
        let (record, kept) = self.record(Some(told), outputs, books, client).map_err(Obstacle::Passing)?;
        room(kept.numbers().count())?;
        let sealed = record.sealed()?;
        let back = image::own()?;
        info!(version, "upgrade: the program takes over");
        self.log.flush();
        let why = run(image, &kept, &sealed, &back, &mut self.signals);
        drop((accept_goes_on, access_goes_on, output_goes_on));
        Err(why.into())
    }
}

/// Whether the file limit leaves room for what stays open, for the duplicates that the program makes of it, and for its own.
fn room(kept: usize) -> Result<(), Obstacle> {
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(std::io::Error::from)?;
    let needed = 2 * kept as u64 + OWN_FILES;
    let why = || format!("it needs {needed} descriptors, more with every client that waits, and the limit is {most}");
    if needed <= most { Ok(()) } else { Err(Obstacle::Lasting(why())) }
}

/// Returns only if it fails.
fn run(image: &OwnedFd, kept: &Kept, record: &OwnedFd, back: &OwnedFd, signals: &mut Signals) -> std::io::Error {
    let numbers: Vec<_> = kept.numbers().chain([record.as_raw_fd(), back.as_raw_fd()]).collect();
    let value = format!("{} {}", record.as_raw_fd(), back.as_raw_fd());
    let mut ready = || {
        exec::hold_signals()?;
        numbers.iter().try_for_each(|&fd| exec::stay_open(fd, true))?;
        // Those that have come and were not looked at; held back now, they wait for who takes signals next.
        signals.pending().try_for_each(exec::send_to_thread)
    };
    let error = match ready().and_then(|()| exec::replace(image.as_fd(), std::env::args_os(), (VARIABLE, &value))) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    for fd in numbers {
        let _ = exec::stay_open(fd, false);
    }
    let _ = exec::take_signals();
    error
}

impl DaemonRecord {
    /// In a memory file that nothing can change.
    ///
    /// # Errors
    /// As memfd_create(2) and write(2).
    pub fn sealed(&self) -> std::io::Result<OwnedFd> {
        mmap::sealed_file(c"roundsman-record", &serde_json::to_vec(self)?)
    }
}

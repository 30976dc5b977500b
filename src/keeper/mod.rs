//! The keeper: parent of a server that cannot be preloaded, since it makes its system calls itself (static programs, Go). It answers
//! those by which the server binds, listens and accepts (seccomp user notification), with connections from the master's queue or,
//! under policy none, from the listening socket that all workers share.
//!
//! One per slot, with the server's user: it reads the server's memory and takes its descriptors, which takes the right to trace it.
//! To the master it is what the preload library is.

mod answers;
mod bind;
mod caller;
pub mod gives;
mod listening;
mod master;
mod open;
mod options;
pub mod probe;
mod requests;
mod server;
mod stand_in;
mod undelivered;
mod waker;
mod watched;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollTimeout};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use self::answers::{Answers, Look};
use self::gives::Gives;
use self::master::Master;
use self::server::Started;
use self::waker::Waker;
use crate::abi::attach::VARIABLE;
use crate::codes::{NOT_EXECUTABLE, OS};
use crate::sys::{clock, image, process, reason};

/// Passed on to the server: all that it may be asked to stop with.
const SIGNALS: [Signal; 17] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
    Signal::SIGABRT,
    Signal::SIGCONT,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// How often the kernel is asked which connections are open: at first, and while none is closed.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Why there is no server, or nobody to answer for it.
#[derive(Debug, Error)]
pub enum KeeperError {
    #[error("the keeper was started without a command")]
    NoCommand,
    #[error("cannot reach the daemon: {}", reason(.0))]
    NoMaster(io::Error),
    #[error("cannot execute {program}: {}", reason(.source))]
    NotExecutable { program: String, source: io::Error },
    #[error("{what}: {}", reason(.source))]
    Os { what: &'static str, source: io::Error },
}

impl KeeperError {
    /// In place of the code of a server that never ran.
    pub fn code(&self) -> u8 {
        match self {
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
            _ => OS,
        }
    }
}

fn os<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> KeeperError {
    move |source| KeeperError::Os { what, source: source.into() }
}

/// Sources of events of the main thread; stand-ins follow.
const SERVER: u64 = 0;
const SIGNAL: u64 = 1;
const WAKE: u64 = 2;
const FIRST_STAND_IN: u64 = 3;

/// The role's `main`: starts the server (program, its name, its arguments) and ends as it ends. The first arguments are the number
/// of the signal for the end of the master and what its server gets for its listening sockets ([`Gives`]).
///
/// # Errors
/// When there is no server.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<u8, KeeperError> {
    process::set_thread_name(probe::NAME);
    let death_signal = arguments.next().and_then(|signal| signal.to_str()?.parse::<i32>().ok());
    if let Some(signal) = death_signal.and_then(|signal| Signal::try_from(signal).ok()) {
        // A change of user on the way here has disarmed it. Without a master there will be no connection.
        set_pdeathsig(signal).map_err(os("prctl"))?;
    }
    let gives = arguments.next().and_then(|word| word.to_str()?.parse().ok()).unwrap_or(Gives::Queues);
    close_image();
    let (Some(program), Some(name)) = (arguments.next(), arguments.next()) else { return Err(KeeperError::NoCommand) };
    let variable = std::env::var(VARIABLE).unwrap_or_default();
    let master = Master::connect(&variable).map_err(KeeperError::NoMaster)?;
    let mut signals = SigSet::empty();
    SIGNALS.iter().for_each(|&signal| signals.add(signal));
    signals.thread_block().map_err(os("signals"))?;
    let signals =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(os("signals"))?;
    let Started { mut server, notifications } = server::start(&program, &name, arguments, gives.rules())
        .map_err(|source| KeeperError::NotExecutable { program: program.to_string_lossy().into_owned(), source })?;
    // The server raises its own if it wants to; connections come by way of this process.
    process::raise_nofile().map_err(os("RLIMIT_NOFILE"))?;
    let waker = Waker::new().map_err(os("epoll"))?;
    let pidfd = process::pidfd_open(server.id()).map_err(os("pidfd"))?;
    waker.watch(&pidfd, SERVER).map_err(os("epoll"))?;
    waker.watch(&signals, SIGNAL).map_err(os("epoll"))?;
    let (requests, calls) = mpsc::channel();
    let answers = Arc::new(Answers::new(notifications, master, waker, server.id()));
    let (answering, asking) = (answers.clone(), answers.clone());
    thread::Builder::new().name("answers".into()).spawn(move || answering.run(&requests)).map_err(os("thread"))?;
    thread::Builder::new().name("requests".into()).spawn(move || asking.carry_out(&calls)).map_err(os("thread"))?;
    // The interval, and when the next look is due.
    let mut look: Option<(Duration, Instant)> = None;
    let mut events = [EpollEvent::empty(); 16];
    loop {
        // A millisecond more, so that it is due then.
        let left = |due: Instant| due.saturating_duration_since(clock::now()) + Duration::from_millis(1);
        let timeout = look.and_then(|(_, due)| EpollTimeout::try_from(left(due)).ok()).unwrap_or(EpollTimeout::NONE);
        let count = answers.waker.wait(&mut events, timeout);
        for event in &events[..count] {
            match event.data() {
                SERVER => {}
                SIGNAL => {
                    while let Ok(Some(signal)) = signals.read_signal() {
                        if let Ok(signal) = Signal::try_from(signal.ssi_signo as i32) {
                            let _ = process::pidfd_signal(&pidfd, signal);
                        }
                    }
                }
                WAKE => {
                    answers.waker.awake();
                    look = Some(in_time(LOOKS.0));
                }
                stand_in => answers.arrived((stand_in - FIRST_STAND_IN) as usize),
            }
        }
        if let Ok(Some(status)) = server.try_wait() {
            // Not given back before: no answer is under way any more.
            let mut state = answers.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.give_all_back();
            let code = end_as(status);
            // Nor does one begin: a child of the server may still ask.
            std::mem::forget(state);
            return Ok(code);
        }
        if let Some((interval, _)) = look.filter(|(_, due)| *due <= clock::now()) {
            look = match answers.look() {
                Look::NoneOpen => None,
                Look::Changed => Some(in_time(LOOKS.0)),
                Look::Same => Some(in_time((interval * 2).min(LOOKS.1))),
            };
        }
    }
}

/// Where wrappers have started this process by a descriptor that it inherits, its server has no use for that.
fn close_image() {
    let image = std::env::args_os().next();
    let image = image.as_deref().and_then(OsStr::to_str).and_then(image::at);
    if let Some(image) = image.filter(|&fd| fd > libc::STDERR_FILENO) {
        let _ = nix::unistd::close(image);
    }
}

/// An interval, and its end.
fn in_time(interval: Duration) -> (Duration, Instant) {
    (interval, clock::now() + interval)
}

/// The exit code of the server; where a signal has killed it, that signal kills this process, too.
fn end_as(status: ExitStatus) -> u8 {
    let Some(signal) = status.signal() else { return status.code().unwrap_or(1) as u8 };
    // The server's own dump is enough.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok(signal) = Signal::try_from(signal) {
        let mut only = SigSet::empty();
        only.add(signal);
        let _ = only.thread_unblock();
        // The first one may only remove the standard library's handler.
        let _ = raise(signal).and_then(|()| raise(signal));
    }
    128 + signal as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_do_not_tell_of_the_keeper_itself_are_passed_on() {
        let own = [
            Signal::SIGKILL,
            Signal::SIGSTOP,
            Signal::SIGCHLD,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGSEGV,
            Signal::SIGSYS,
            Signal::SIGPIPE,
            Signal::SIGURG,
            Signal::SIGXCPU,
            Signal::SIGXFSZ,
            Signal::SIGSTKFLT,
        ];
        for signal in Signal::iterator() {
            assert_ne!(own.contains(&signal), SIGNALS.contains(&signal), "{signal}");
        }
    }
}

//! The control thread: signals, children, timers, channels and the control socket → slot transitions →
//! `reconcile` → actions. It is the only thread that starts processes.

mod attaching;
mod direct;
mod ending;
mod inherit;
mod leaving;
mod memory;
mod notify;
mod plan;
mod probe;
mod readiness;
mod reload;
mod retiring;
pub mod service;
mod serving;
pub mod slot;
mod starting;
mod stop;
mod worker;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals;
use tracing::{debug, error, info, warn};

use crate::accept::{self, orders::Report};
use crate::config::Config;
use crate::control::server::ControlServer;
use crate::exit::{Exit, OS};
use crate::launch::Launcher;
use crate::listener::Listener;
use crate::output::servers::Servers;
use crate::sys::process;
use service::{ID, Service, Tools};
use slot::{Action, reconcile};

pub use inherit::{inherited, take_inherited};

const SIGNALS: Token = Token(0);
const REPORTS: Token = Token(1);
const CONTROL: Token = Token(2);
const ATTACH: Token = Token(3);
/// Control connections: from here on.
const CLIENTS: usize = 16;
/// Any server's ready message: only a reason to look.
const NOTIFIED: Token = Token(4);
/// Attach connections: from here to `WORKERS`.
const ATTACHED: usize = 1 << 24;
/// Channels of relay workers, by pid.
const WORKERS: usize = 1 << 32;

/// The role's `main`: serves until told to stop or until nothing is left to serve with. Returns the exit code.
///
/// # Errors
/// What kept it from starting, with the exit code that says so.
pub fn main(config: Config, listeners: Vec<Listener>, servers: &Servers) -> Result<u8, Exit> {
    let nofile = process::raise_nofile().map_err(|error| Exit::os("cannot read the file limit", &error))?;
    process::become_subreaper();
    let mut supervisor = Supervisor::start(config, listeners, nofile, servers)?;
    supervisor.run()
}

struct Supervisor {
    poll: Poll,
    signals: Signals,
    reports: Receiver<Report>,
    control: Option<ControlServer>,
    tools: Tools,
    service: Service,
    started: Instant,
    /// Channels that epoll watches, by the pids of their workers.
    watched: Vec<u32>,
    /// Control clients that wait for the end of what they asked for.
    waiting: Vec<usize>,
    terminal: Terminal,
    /// When the stop was asked for.
    stopping: Option<Instant>,
}

/// A second stop signal this soon is the first one once more: timeout(1) and shells signal the process and then
/// its group.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// Whether there was a terminal at the start: a hang-up then means that it went away.
#[derive(PartialEq, Eq)]
enum Terminal {
    Had,
    None,
}

/// Whether our log goes to a terminal that another process group has.
fn in_background() -> bool {
    let foreground = nix::unistd::tcgetpgrp(std::io::stderr());
    foreground.is_ok_and(|group| group != nix::unistd::getpgrp())
}

fn terminal() -> Terminal {
    if std::fs::File::open("/dev/tty").is_ok() { Terminal::Had } else { Terminal::None }
}

impl Supervisor {
    fn start(
        mut config: Config,
        listeners: Vec<Listener>,
        nofile: process::NoFile,
        servers: &Servers,
    ) -> Result<Self, Exit> {
        let os = |doing: &'static str| move |error: io::Error| Exit::os(doing, &error);
        let poll = Poll::new().map_err(os("cannot make an epoll"))?;
        let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU])
            .map_err(os("cannot take signals"))?;
        let registry = poll.registry();
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(os("cannot watch signals"))?;
        let waker = Arc::new(Waker::new(registry, REPORTS).map_err(os("cannot make a waker"))?);
        let (sender, reports) = unbounded();
        let orders = accept::spawn(move |report| {
            let _ = sender.send(report);
            let _ = waker.wake();
        })
        .map_err(os("cannot start the accept thread"))?;
        let launcher = Launcher::new(nofile, config.service.user.clone(), servers.clone())
            .map_err(os("cannot open /proc/self/exe"))?;
        let attach = direct::Attachment::open(&mut config.service, !listeners.is_empty(), &poll, ATTACH)?;
        let registry = poll.registry().try_clone().map_err(os("cannot share an epoll"))?;
        let ports = probe::PrivatePorts::new();
        let tools = Tools { launcher, orders, attach, ports, nofile: nofile.hard, registry, notified: NOTIFIED };
        let now = Instant::now();
        let name = config.service.name.clone();
        let control = ControlServer::open(&poll, CONTROL, &name, config.control.as_deref())?;
        let why = config.service.instances_why.clone().unwrap_or_else(|| "as asked".to_owned());
        info!(
            service = %name, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(),
            instances = config.service.instances, %why, policy = %config.service.policy,
            via = config.service.behind.via(), via_reason = %config.service.via_reason,
            "starting"
        );
        let service = Service::new(config.service, listeners, &tools, now);
        Ok(Self {
            poll,
            signals,
            reports,
            control,
            tools,
            service,
            started: now,
            watched: Vec::new(),
            waiting: Vec::new(),
            terminal: terminal(),
            stopping: None,
        })
    }

    fn run(&mut self) -> Result<u8, Exit> {
        let mut events = Events::with_capacity(256);
        loop {
            if let Some(code) = self.tick()? {
                return Ok(code);
            }
            let now = Instant::now();
            let timeout = self.service.deadline(now).map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Exit::new(OS, format!("epoll: {error}")));
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    SIGNALS => {
                        if let Some(code) = self.take_signals() {
                            return Ok(code);
                        }
                    }
                    REPORTS => self.take_reports(),
                    CONTROL => self.serve_control(None),
                    // The next turn looks at all of them.
                    NOTIFIED => {}
                    ATTACH => {
                        if let Some(attachment) = &mut self.tools.attach {
                            attachment.server.accept(&self.poll, ATTACHED..WORKERS);
                        }
                    }
                    Token(token) if token >= WORKERS => self.hear((token - WORKERS) as u32),
                    Token(token) if token >= ATTACHED => self.serve_attached(token),
                    Token(token) => self.serve_control(Some(token)),
                }
            }
        }
    }

    /// Everything that follows from the facts at this time. Returns the exit code when all is over.
    fn tick(&mut self) -> Result<Option<u8>, Exit> {
        let now = Instant::now();
        self.reap(now);
        if let Some(code) = self.service.given_up() {
            error!(service = %self.service.config.name, code, "given up: no slot is left");
            self.end_all();
            return Ok(Some(code));
        }
        self.service.step_stop(&self.tools, now);
        if self.service.is_over() {
            info!(service = %self.service.config.name, "stopped");
            return Ok(Some(0));
        }
        for action in reconcile(now, self.service.wanted(), &self.service.lives()) {
            match action {
                Action::Start(slot) => self.service.start_slot(slot, &mut self.tools, now),
                // The steps of the stop do it in their time.
                Action::Stop(_) => {}
            }
        }
        self.service.end_abandoned(now);
        self.service.start_shared(&self.tools, now);
        self.service.check_memory(&self.tools, now);
        self.watch_channels();
        if let Err(exit) = self.service.check_ready(&self.tools, now) {
            self.end_all();
            return Err(exit);
        }
        self.service.step_retiring(&self.tools, now);
        self.service.step_reload(&self.tools, now);
        self.service.step_pause(now);
        self.service.step_restart();
        self.service.step_scale(now);
        self.tell_waiting();
        Ok(None)
    }

    fn watch_channels(&mut self) {
        let relays = self.service.slots.iter().filter_map(|slot| slot.relay.as_ref());
        for relay in relays.filter(|relay| !self.watched.contains(&relay.pid)) {
            let fd = relay.channel.as_raw_fd();
            let token = Token(WORKERS + relay.pid as usize);
            // Without the watch the worker never becomes ready, and its death is still seen.
            if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE) {
                warn!("cannot watch a worker's channel: {error}");
            }
        }
        let pids = self.service.slots.iter().filter_map(|slot| Some(slot.relay.as_ref()?.pid));
        // One on its way out may come back.
        let retiring = self.service.slots.iter().flat_map(|slot| &slot.retiring).flat_map(|old| old.pids());
        self.watched = pids.chain(retiring).collect();
    }

    /// SIGCHLD may stand for many children: asks until there is none. The dead are looked at first and reaped
    /// last: until then their pids, and the sessions named after them, mean nobody else.
    fn reap(&mut self, now: Instant) {
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::All, look) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    if !self.service.child_gone(pid.as_raw() as u32, status, &self.tools, now) {
                        debug!(pid = pid.as_raw(), "orphan reaped");
                    }
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    warn!("waitpid: {error}");
                    return;
                }
            }
        }
    }

    fn take_signals(&mut self) -> Option<u8> {
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
                SIGHUP => self.do_or_warn("reload", |service, _, now| service.reload(now)),
                // The terminal sends them, too, to whoever writes to it from the background.
                SIGTTIN | SIGTTOU if in_background() => {}
                SIGTTIN => self.do_or_warn("scale", |service, tools, now| {
                    service.scale(service.config.instances.saturating_add(1), tools, now)
                }),
                SIGTTOU => self.do_or_warn("scale", |service, tools, now| {
                    service.scale(service.config.instances.saturating_sub(1), tools, now)
                }),
                // Log files, upgrade: what they will mean. Their default actions would end us.
                SIGUSR1 | SIGUSR2 => {
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                    warn!(service = %self.service.config.name, "{name} does nothing in this version yet");
                }
                _ => {}
            }
        }
        None
    }

    fn do_or_warn(&mut self, what: &str, act: impl FnOnce(&mut Service, &Tools, Instant) -> Result<(), String>) {
        if let Err(why) = act(&mut self.service, &self.tools, Instant::now()) {
            warn!(service = %self.service.config.name, "no {what}: {why}");
        }
    }

    fn begin_stop(&mut self, cause: &str) {
        if self.stopping.is_none() {
            self.stopping = Some(Instant::now());
            info!(service = %self.service.config.name, cause, "stopping");
            self.service.begin_stop(Instant::now());
        }
    }

    fn end_at_once(&mut self, signal: i32) -> u8 {
        warn!(service = %self.service.config.name, signal, "ending at once");
        self.end_all();
        (128 + signal) as u8
    }

    fn end_all(&mut self) {
        for pid in self.service.pids() {
            process::kill_tree(pid);
        }
        self.service.listeners.iter().for_each(Listener::remove_file);
    }

    fn take_reports(&mut self) {
        let now = Instant::now();
        while let Ok(report) = self.reports.try_recv() {
            self.service.reported(&report, now);
        }
    }
}

/// The id that everything belongs to while there is one service.
const _: () = assert!(ID == 0);

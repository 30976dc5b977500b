//! The control thread: signals, children, timers, channels and the control socket → slot transitions →
//! `reconcile` → actions. It is the only thread that starts processes.

mod attach;
mod channels;
mod children;
mod error;
mod fd_store;
mod listen_fds;
mod order;
mod reconfigure;
mod requests;
mod signals;
mod status;
mod systemd;
pub mod upgrade;
mod waiting;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded, unbounded};
use mio::{Events, Interest, Poll, Waker};
use signal_hook_mio::v1_0::Signals;
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::accept::{
    self,
    orders::{Report, ServiceId},
};
use crate::access::Access;
use crate::admin::{self, Ask, token::Token};
use crate::config::Config;
use crate::control::server::ControlServer;
use crate::control::status::Daemon as Status;
use crate::events::{Registry, Source};
use crate::launch::Launcher;
use crate::limited::Limited;
use crate::listener::Listener;
use crate::output::Log;
use crate::output::servers::Servers;
use crate::service::Service;
use crate::sys::cpu::CpuMeter;
use crate::sys::{closer, process};
use crate::worker::Context;
use crate::worker::children::Children;
use crate::worker::probe;
use error::os;
use signals::Terminal;
use systemd::Systemd;
use upgrade::Trial;
use waiting::Waiting;

pub use error::DaemonError;
pub use listen_fds::{ListenError, inherited, take_inherited};

/// Questions of the admin thread that may wait.
const QUESTIONS: usize = 4;

/// The role's `main`: serves until told to stop or until nothing is left to serve with. Returns the exit code.
///
/// # Errors
/// See [`DaemonError`].
pub fn main(
    config: Config,
    listeners: Vec<Vec<Listener>>,
    servers: &Servers,
    admin: Option<admin::Open>,
    log: Log,
) -> Result<u8, DaemonError> {
    let nofile = process::raise_nofile().map_err(os("cannot read the file limit"))?;
    process::become_subreaper();
    closer::start().map_err(os("cannot start a thread"))?;
    let mut daemon = Daemon::start(config, listeners, nofile, servers, admin, log)?;
    daemon.run()
}

struct Daemon {
    poll: Poll,
    signals: Signals,
    /// Wakes this thread.
    waker: Arc<Waker>,
    reports: Receiver<Report>,
    control: Option<ControlServer>,
    /// What the admin thread asks: each gets the state.
    questions: Option<Receiver<oneshot::Sender<Status>>>,
    /// The admin thread's, read again by a reload.
    token: Token,
    context: Context,
    /// As it was read last; the services have their own parts of it.
    config: Config,
    services: Vec<Service>,
    /// The next service's.
    next_id: ServiceId,
    started: Instant,
    /// For `ls`.
    cpu: CpuMeter,
    /// Sources that may have more to read than one turn allows, and no event will say so.
    unread: Vec<Source>,
    /// Warnings about requests on the attach socket: from none of our workers, and without sense.
    refused: Limited,
    nonsense: Limited,
    /// Control clients that wait for the end of what they asked for.
    waiting: Vec<Waiting>,
    terminal: Terminal,
    /// When the stop was asked for.
    stopping: Option<Instant>,
    systemd: Option<Systemd>,
    /// A copy of the listener of `--admin`, for a program that takes this one's place.
    admin: Option<OwnedFd>,
    log: Log,
    /// A program that may take this one's place.
    trial: Option<Trial>,
}

impl Daemon {
    fn start(
        mut config: Config,
        listeners: Vec<Vec<Listener>>,
        nofile: process::NoFile,
        servers: &Servers,
        admin: Option<admin::Open>,
        log: Log,
    ) -> Result<Self, DaemonError> {
        let signals = signals::take().map_err(os("cannot take signals"))?;
        let services = std::mem::take(&mut config.services);
        let names: Vec<&str> = services.iter().map(|(service, _)| service.name.as_str()).collect();
        let (name, place) = (config.name.clone(), config.control.clone());
        let mut daemon = Self::new(config, nofile, servers, signals, log)?;
        daemon.control = ControlServer::open(&daemon.context.registry, &name, &names, place.as_deref())?;
        if let Some(admin) = admin {
            let path = daemon.control.as_ref().map(|control| control.path().to_owned());
            daemon.open_admin(admin, path)?;
        }
        for (service, listeners) in services.into_iter().zip(listeners) {
            let service = daemon.prepare(service, !listeners.is_empty())?;
            daemon.begin(service, listeners);
        }
        Ok(daemon)
    }

    /// One without services, control socket and page.
    fn new(
        config: Config,
        nofile: process::NoFile,
        servers: &Servers,
        mut signals: Signals,
        log: Log,
    ) -> Result<Self, DaemonError> {
        let poll = Poll::new().map_err(os("cannot make an epoll"))?;
        let registry = poll.registry();
        registry
            .register(&mut signals, Source::Signals.into(), Interest::READABLE)
            .map_err(os("cannot watch signals"))?;
        let waker = Arc::new(Waker::new(registry, Source::Waker.into()).map_err(os("cannot make a waker"))?);
        let (sender, reports) = unbounded();
        let wake = waker.clone();
        let orders = accept::spawn(move |report| {
            let _ = sender.send(report);
            let _ = wake.wake();
        })
        .map_err(os("cannot start the accept thread"))?;
        let launcher = Launcher::new(nofile, servers.clone()).map_err(os("cannot open /proc/self/exe"))?;
        let registry = Registry::new(poll.registry()).map_err(os("cannot share an epoll"))?;
        let ports = probe::PrivatePorts::default();
        let children = Children::default();
        let access = Access::new(servers.outlet());
        let context =
            Context { launcher, orders, access, attach: None, ports, nofile: nofile.hard, registry, children };
        Ok(Self {
            poll,
            signals,
            waker,
            reports,
            control: None,
            questions: None,
            token: Token::default(),
            context,
            config,
            services: Vec::new(),
            next_id: 0,
            started: Instant::now(),
            cpu: CpuMeter::default(),
            unread: Vec::new(),
            refused: Limited::default(),
            nonsense: Limited::default(),
            waiting: Vec::new(),
            terminal: signals::terminal(),
            stopping: None,
            systemd: Systemd::find(Instant::now()),
            admin: None,
            log,
            trial: None,
        })
    }

    fn open_admin(&mut self, admin: admin::Open, control: Option<PathBuf>) -> Result<(), DaemonError> {
        let (sender, questions) = bounded(QUESTIONS);
        let copy = admin.listener.as_fd().try_clone_to_owned().map_err(os("cannot start the admin thread"))?;
        (self.token, self.admin, self.questions) = (admin.token.clone(), Some(copy), Some(questions));
        let ask = Ask::new(sender, self.waker.clone());
        admin::start(admin, ask, control).map_err(os("cannot start the admin thread"))
    }

    fn answer_admin(&mut self) {
        while let Some(Ok(answer)) = self.questions.as_ref().map(Receiver::try_recv) {
            // The admin thread may have given up waiting.
            let _ = answer.send(self.status());
        }
    }

    fn run(&mut self) -> Result<u8, DaemonError> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = Instant::now();
            if let Some(code) = self.step(now)? {
                return Ok(code);
            }
            let accept_due = self.context.attach.as_ref().and_then(|attach| attach.deadline(now));
            let mut unread = std::mem::take(&mut self.unread);
            unread.extend(self.control.iter().flat_map(ControlServer::unread).map(Source::ControlClient));
            let due = if unread.is_empty() { self.next_due().into_iter().chain(accept_due).min() } else { Some(now) };
            match self.poll.poll(&mut events, due.map(|at| at.saturating_duration_since(now))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(os("epoll")(error));
                }
                _ => {}
            }
            let mut accepts = accept_due.is_some_and(|due| due <= Instant::now());
            for source in unread.into_iter().chain(events.iter().filter_map(|event| Source::of(event.token()))) {
                accepts |= source == Source::AttachListener;
                if let Some(code) = self.dispatch(source) {
                    return Ok(code);
                }
            }
            // After the requests of those that are connected already.
            if accepts {
                self.accept_attached();
            }
        }
    }

    /// Returns the exit code when a signal ends the daemon at once.
    fn dispatch(&mut self, source: Source) -> Option<u8> {
        match source {
            Source::Signals => return self.take_signals(),
            Source::Waker => {
                self.take_reports();
                self.answer_admin();
            }
            Source::ControlListener => self.accept_clients(),
            Source::ControlClient(client) => self.serve_client(client),
            Source::Attached(number) => self.serve_attached(number),
            Source::Relay(pid) => self.read_relay(pid),
            Source::Node(pid) => self.read_node(pid),
            // The next step looks at every NOTIFY_SOCKET.
            Source::AttachListener | Source::Notify => {}
        }
        None
    }

    fn next_due(&self) -> Option<Instant> {
        let watchdog = self.systemd.as_ref().and_then(Systemd::deadline);
        let trial = self.trial.as_ref().map(Trial::due);
        let own = watchdog.into_iter().chain(trial).chain(self.next_stop());
        self.services.iter().filter_map(|service| service.next_due()).chain(own).min()
    }

    /// Everything that follows from the facts at this time. Returns the exit code when all is over.
    fn step(&mut self, now: Instant) -> Result<Option<u8>, DaemonError> {
        self.reap(now);
        self.step_trial(now);
        self.start_in_order(now);
        if let Some(code) = self.given_up() {
            self.end_operations(now);
            self.end_all();
            return Ok(Some(code));
        }
        self.stop_in_order(now);
        for service in &mut self.services {
            service.step_stop(&self.context, now);
        }
        self.drop_removed();
        if self.stopping.is_some() && self.services.iter().all(Service::is_over) {
            self.services
                .iter()
                .for_each(|service| info!(name: "stopped", service = %service.config().name, "stopped"));
            self.end_all();
            return Ok(Some(0));
        }
        let steps = self.services.iter_mut().try_for_each(|service| service.step(&self.context, now));
        if steps.is_err() {
            self.end_all();
        }
        steps?;
        self.watch_holders();
        self.pass_on_progress();
        if let Some(systemd) = &mut self.systemd {
            systemd.step(&self.services, self.stopping.is_some(), now);
        }
        Ok(None)
    }

    /// The exit code when every service has ended for good.
    fn given_up(&self) -> Option<u8> {
        let codes: Option<Vec<u8>> = self.services.iter().map(Service::given_up).collect();
        let codes = codes?;
        let code = codes.iter().rev().copied().find(|&code| code != 0).or(codes.last().copied())?;
        let names: Vec<&str> = self.services.iter().map(|service| service.config().name.as_str()).collect();
        match code {
            0 => info!(name: "finished", service = %names.join(", "), "finished"),
            _ => error!(name: "given-up", service = %names.join(", "), code, "given up: no slot is left"),
        }
        Some(code)
    }

    fn take_reports(&mut self) {
        let now = Instant::now();
        while let Ok(report) = self.reports.try_recv() {
            if let Some(service) = self.services.iter_mut().find(|service| service.id() == report.service()) {
                service.reported(&report, &self.context, now);
            }
        }
    }
}

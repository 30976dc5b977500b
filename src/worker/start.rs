//! Starting the processes of a worker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use thiserror::Error;
use tracing::{debug, warn};

use super::attachment::Attachment;
use super::children::Owner;
use super::context::Context;
use super::delivery::{Delivery, Library};
use super::ipc::{Ipc, Mode};
use super::notify::Notify;
use super::probe::{self, Probe};
use super::relay::Relay;
use super::server::Server;
use super::totals::Totals;
use super::{Kind, Worker};
use crate::abi::attach::VARIABLE;
use crate::accept::orders::WorkerId;
use crate::access::{Logged, WorkerLog};
use crate::codes::OS;
use crate::config::ServiceConfig;
use crate::config::options::DrainIdle;
use crate::direct::attach::secret;
use crate::events::Source;
use crate::handoff::page::CountersPage;
use crate::handoff::translations::TranslationsFile;
use crate::launch::{self, LaunchError, Launched};
use crate::program::command::CommandLine;
use crate::program::node::inspect_port;
use crate::sys::reason;

/// The environment variable by which the processes of one server are known, wherever they went.
pub const MARK: &str = "ROUNDSMAN_WORKER";

/// The number of the next mark.
static NEXT_MARK: AtomicU64 = AtomicU64::new(0);

fn unique_mark() -> String {
    format!("{}-{}", std::process::id(), NEXT_MARK.fetch_add(1, Relaxed))
}

/// How many marks there were.
pub fn marks() -> u64 {
    NEXT_MARK.load(Relaxed)
}

/// Goes on after the marks of the program whose place this one took.
pub fn go_on_with_marks(marks: u64) {
    NEXT_MARK.store(marks, Relaxed);
}

/// Why a worker does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("{doing}: {}", reason(.source))]
    Os { doing: &'static str, source: io::Error },
}

impl StartError {
    /// In place of the code of a server that never ran.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Launch(error) => error.exit_code(),
            Self::Os { .. } => OS,
        }
    }
}

fn os(doing: &'static str) -> impl Fn(io::Error) -> StartError + Copy {
    move |source| StartError::Os { doing, source }
}

/// Where a worker is started.
#[derive(Debug)]
pub struct Seat<'a> {
    pub config: &'a ServiceConfig,
    pub id: WorkerId,
    /// That a relay worker gets a queue for.
    pub listeners: usize,
    /// PORT and HOST of a direct server.
    pub told: Option<SocketAddr>,
    pub now: Instant,
}

impl Worker {
    /// Starts all of a worker but its relay worker: see [`Worker::start_relay`]. A relayed server gets the address where
    /// its predecessor accepted, if that is free: a relay worker that still has clients for that one finds this one.
    ///
    /// # Errors
    /// What could not be had.
    pub fn start(
        seat: &Seat,
        delivery: &Delivery,
        last_address: Option<SocketAddr>,
        totals: &mut Totals,
        context: &Context,
    ) -> Result<Self, StartError> {
        let slot = Some(seat.id.slot);
        let kind = match delivery {
            Delivery::Direct(command, library) => start_direct(seat, command, library, totals, context)?,
            Delivery::NoPort(command) => {
                Kind::NoPort { server: start_server(seat, slot, command, None, Extras::default(), context)? }
            }
            Delivery::Relay(None) => Kind::Relay { relay: None, server: None },
            Delivery::Relay(Some(command)) => {
                let address = match last_address.filter(|address| probe::is_free(address.port())) {
                    Some(address) => address,
                    None => context.ports.choose().map_err(os("cannot choose a port for the server"))?,
                };
                let server = start_server(seat, slot, command, Some(address), Extras::default(), context)?;
                let probe = Some(Probe::private(address, seat.now));
                Kind::Relay { relay: None, server: Some(Server { address: Some(address), probe, ..server }) }
            }
        };
        Ok(Self { id: seat.id, kind, queues: Vec::new() })
    }

    /// Starts the relay worker of a worker that should have one and has none.
    ///
    /// # Errors
    /// What could not be had.
    pub fn start_relay(&mut self, seat: &Seat, totals: &mut Totals, context: &Context) -> Result<(), StartError> {
        let Kind::Relay { relay: relay @ None, .. } = &mut self.kind else { return Ok(()) };
        let refused = os("cannot start a relay worker");
        let bell = bell(seat.config, context).map_err(refused)?;
        let log = log(seat, true, context).map_err(refused)?;
        let started =
            Relay::start(&context.launcher, seat.config, seat.id.slot, seat.listeners, bell, log).map_err(refused)?;
        debug!(service = %seat.config.name, slot = seat.id.slot, pid = started.pid, "relay worker started");
        // Without the watch the worker never becomes ready, and its death is still seen.
        if let Err(error) = context.registry.watch(Source::Relay(started.pid), &started.channel) {
            warn!("cannot watch a worker's channel: {}", reason(&error));
        }
        let owner = Owner { service: seat.id.service, slot: Some(seat.id.slot) };
        context.children.add(started.pid, owner);
        totals.track(&started.page);
        *relay = Some(started);
        self.id = seat.id;
        Ok(())
    }
}

/// The doorbell of a worker whose connections, or whose service's, are limited.
fn bell(config: &ServiceConfig, context: &Context) -> io::Result<Option<OwnedFd>> {
    if config.limits.worker_conns.is_none() && config.limits.max_conns.is_none() {
        return Ok(None);
    }
    Ok(Some(context.orders.bell()?.as_fd().try_clone_to_owned()?))
}

/// Where a worker's connections are recorded, if they are to be logged.
fn log(seat: &Seat, relays: bool, context: &Context) -> io::Result<Option<WorkerLog>> {
    let Some(log) = &seat.config.access else { return Ok(None) };
    let (files, service) = (&seat.config.files, seat.config.name.as_str());
    let (service_id, slot, generation) = (seat.id.service, seat.id.slot, seat.id.generation);
    context.access.open(&Logged { log, files, service, service_id, slot, generation, relays }).map(Some)
}

fn start_direct(
    seat: &Seat,
    command: &CommandLine,
    library: &Arc<Library>,
    totals: &mut Totals,
    context: &Context,
) -> Result<Kind, StartError> {
    let refused = os("cannot start a worker");
    let secret = secret().map_err(refused)?;
    let (page, page_fd) = CountersPage::create().map(|(page, fd)| (Arc::new(page), fd)).map_err(refused)?;
    let bell = bell(seat.config, context).map_err(refused)?;
    let log = log(seat, false, context).map_err(refused)?;
    page.set_logs(log.is_some());
    let translations =
        seat.config.proxy_from.as_ref().map(|_| TranslationsFile::create()).transpose().map_err(refused)?;
    page.set_translates(translations.is_some());
    page.set_watches(seat.config.limits.drain_idle == DrainIdle::Move);
    let mut environment = vec![(VARIABLE, library.variable(&secret, translations.is_some()))];
    environment
        .extend(library.value().map_err(os("cannot put the preload library back"))?.map(|value| ("LD_PRELOAD", value)));
    let extras = Extras { environment, kept: library.inherited(), launched: library.launched(seat.config.policy) };
    let server = start_server(seat, Some(seat.id.slot), command, seat.told, extras, context)?;
    totals.track(&page);
    let mut attachment = Box::new(Attachment::new(secret, page, page_fd, library.clone()));
    (attachment.bell, attachment.log, attachment.translations) = (bell, log, translations);
    Ok(Kind::Direct { server, attachment })
}

/// What a server gets in addition.
#[derive(Debug, Default)]
pub struct Extras<'a> {
    pub environment: Vec<(&'static str, String)>,
    /// Stays open in it, at its number.
    pub kept: Option<BorrowedFd<'a>>,
    pub launched: Launched,
}

/// Starts a server that is told an address. `slot`: `None` for one that all slots share.
///
/// # Errors
/// What could not be had.
pub fn start_server(
    seat: &Seat,
    slot: Option<u32>,
    command: &CommandLine,
    told: Option<SocketAddr>,
    Extras { mut environment, kept, launched }: Extras<'_>,
    context: &Context,
) -> Result<Server, StartError> {
    let config = seat.config;
    let mark = unique_mark();
    environment.push((MARK, mark.clone()));
    let notify = match config.limits.wait_ready {
        true => {
            let refused = os("cannot open a NOTIFY_SOCKET");
            let uid = config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid);
            let notify = Notify::open(uid.as_raw()).map_err(refused)?;
            notify.watch(&context.registry).map_err(refused)?;
            environment.push(("NOTIFY_SOCKET", notify.variable()));
            Some(notify)
        }
        false => None,
    };
    let refused = os("cannot make a channel for Node");
    let mode = slot.and_then(|_| Mode::of(config, command));
    let channel = mode.map(|mode| Ipc::new(mode, config.stop_message.as_deref())).transpose().map_err(refused)?;
    let (ipc, theirs) = channel.unzip();
    if let (Some(ipc), Some(slot)) = (&ipc, slot) {
        environment.extend(ipc.environment(slot));
    }
    // The one before it still has its own port for a while.
    let turn = (seat.id.generation % 2) as u16 * config.instances as u16;
    let inspect = mode.and_then(|_| inspect_port(command.words()));
    let inspect = inspect.map(|first| first.wrapping_add(slot.unwrap_or(0) as u16).wrapping_add(turn));
    let pid = context.launcher.server(&launch::Server {
        channel: theirs.as_ref().map(AsFd::as_fd),
        kept,
        inspect,
        service: &config.name,
        slot,
        command,
        launched,
        address: told,
        variables: &config.environment,
        environment,
        cwd: config.cwd.as_deref(),
        user: config.user.as_ref(),
        files: &config.files,
        death_signal: config.limits.stop_signal,
    })?;
    context.children.add(pid, Owner { service: seat.id.service, slot });
    if let Some(ipc) = &ipc {
        ipc.watch(&context.registry, pid).map_err(refused)?;
    }
    Ok(Server::new(pid, seat.now, mark, notify, ipc, inspect))
}

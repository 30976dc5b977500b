//! The program that takes another one's place.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use signal_hook_mio::v1_0::Signals;
use tracing::{info, warn};

use super::super::error::os;
use super::super::signals::{self, Terminal};
use super::super::{Daemon, DaemonError};
use super::record::{DaemonRecord, Head, VERSIONS};
use super::{CAN, VARIABLE};
use crate::accept::orders::Order;
use crate::admin;
use crate::config::error::LoadError;
use crate::config::sources::Given;
use crate::config::{Config, Inherited};
use crate::control::Reply;
use crate::control::server::{ControlServer, Finality};
use crate::direct::attach::AttachServer;
use crate::output::Log;
use crate::output::servers::Servers;
use crate::record::Found;
use crate::service::record::ServiceRecord;
use crate::sys::process::NoFile;
use crate::sys::{closer, exec, process, reason};
use crate::worker::record::Libraries;
use crate::worker::{Delivery, start};
use thiserror::Error;

/// Why a program cannot go on where another one was.
#[derive(Debug, Error)]
pub enum TakeoverError {
    #[error("cannot read the record: {0}")]
    Record(String),
    #[error("it speaks version {theirs} of the record and this program version {ours}")]
    Version { theirs: String, ours: String },
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("{service}: would be {now} in place of {before}")]
    Delivery { service: String, before: String, now: &'static str },
    #[error("--admin-token-file: {0}")]
    Token(String),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("{doing}: {}", reason(.source))]
    Os { doing: &'static str, source: io::Error },
}

/// A record to go on from, and the way back.
pub struct Takeover {
    record: DaemonRecord,
    signals: Signals,
    found: Found,
    /// The record's memory file, and the program before.
    file: OwnedFd,
    back: Option<OwnedFd>,
    /// Duplicates of all descriptors in the record, with their numbers.
    spares: Vec<(i32, OwnedFd)>,
}

/// What the program before does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gives {
    Way,
    /// This one had given way to it, and it could not go on.
    Back,
}

fn read(mut file: &File) -> Result<DaemonRecord, TakeoverError> {
    let failed = |error: io::Error| TakeoverError::Record(reason(&error));
    let mut text = Vec::new();
    file.rewind().map_err(failed)?;
    file.read_to_end(&mut text).map_err(failed)?;
    let failed = |error: serde_json::Error| TakeoverError::Record(error.to_string());
    let head: Head = serde_json::from_slice(&text).map_err(failed)?;
    if !understands(&head.versions) {
        let words = |all: &[u32]| all.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        return Err(TakeoverError::Version { theirs: words(&head.versions), ours: words(&VERSIONS) });
    }
    serde_json::from_slice(&text).map_err(failed)
}

/// A record may be one version older; what running workers speak has to be the same.
fn understands(versions: &[u32]) -> bool {
    let [of_record, ours @ ..] = VERSIONS;
    matches!(versions, [theirs, rest @ ..] if (of_record - 1..=of_record).contains(theirs) && *rest == ours)
}

/// The configuration that was in force.
fn config(record: &mut DaemonRecord, given: Given) -> Result<Config, TakeoverError> {
    let services = std::mem::take(&mut record.of_services);
    // LISTEN_FDS is not for the process that tries a record.
    let passed = record.services.iter().any(ServiceRecord::has_passed);
    let inherited = if passed { Inherited::Some } else { Inherited::None };
    Ok(Config::in_force(given, record.name.clone(), record.settings.clone(), services, inherited)?)
}

/// Tries a record that is standard input: says whether this program could go on from it, and changes nothing.
///
/// # Errors
/// Why it could not.
pub fn try_record(given: Given) -> Result<(), TakeoverError> {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let stdin = stdin.map_err(|source| TakeoverError::Os { doing: "cannot read the record", source })?;
    let mut record = read(&File::from(stdin))?;
    let mut config = config(&mut record, given)?;
    let token = admin::token::Token::of(config.admin_token_file.as_deref());
    token.map_err(|error| TakeoverError::Token(error.to_string()))?;
    for ((service, _), recorded) in config.services.iter_mut().zip(&record.services) {
        let listens = !service.listen.is_empty() || recorded.listens();
        Delivery::prepare(service, listens, || Ok("trial".to_owned())).map_err(DaemonError::from)?;
        same(service.backend.via(), recorded)?;
        service.files.try_open(&service.name).map_err(DaemonError::LogFile)?;
        if let Some(access) = &service.access {
            access.try_open(&service.name, &service.files).map_err(DaemonError::LogFile)?;
        }
    }
    println!("{}{}{}", CAN.0, env!("CARGO_PKG_VERSION"), CAN.1);
    Ok(())
}

fn same(now: &'static str, recorded: &ServiceRecord) -> Result<(), TakeoverError> {
    if recorded.via == now {
        return Ok(());
    }
    Err(TakeoverError::Delivery { service: recorded.name.clone(), before: recorded.via.clone(), now })
}

impl Takeover {
    /// What the program before left; `None`: there was none.
    ///
    /// # Errors
    /// Why there is no going on; the program before is run again, if it can be.
    pub fn begin() -> Result<Option<Self>, TakeoverError> {
        static BEGUN: AtomicBool = AtomicBool::new(false);
        let Some(value) = std::env::var(VARIABLE).ok().filter(|_| !BEGUN.swap(true, Relaxed)) else { return Ok(None) };
        let mut numbers = value.split(' ').filter_map(|word| word.parse().ok());
        // Somebody else's variable, inherited from a daemon above this one.
        let Some(file) = numbers.next().filter(|&fd| is_record(fd)) else { return Ok(None) };
        exec::name_process(c"roundsman");
        let os = |doing| move |source| TakeoverError::Os { doing, source };
        // Nothing is lost from here on: what comes meanwhile has been held back.
        let signals = signals::take().map_err(os("cannot take signals"))?;
        exec::take_signals().map_err(os("cannot take signals"))?;
        let mut found = Found::default();
        let file = found.number(file).map_err(os("cannot find the record"))?;
        let back = numbers.next().and_then(|number| found.number(number).ok());
        let copy = file.try_clone().map_err(os("cannot read the record"))?;
        let record = match read(&File::from(copy)) {
            Ok(record) => record,
            Err(error) => {
                // Nothing was closed: all that has to stay open does.
                run_back(&file, back.as_ref(), &[], &error);
                return Err(error);
            }
        };
        let numbers: std::collections::BTreeSet<i32> = record.fds.iter().map(|fd| fd.number()).collect();
        // Without a way back nothing needs them, and they might be too many.
        let spares = numbers.iter().filter(|_| back.is_some()).map(|&number| Ok((number, exec::spare(number)?)));
        match spares.collect::<io::Result<Vec<_>>>() {
            Ok(spares) => Ok(Some(Self { record, signals, found, file, back, spares })),
            Err(source) => {
                let error = os("a descriptor of the record is missing")(source);
                run_back(&file, back.as_ref(), &[], &error);
                Err(error)
            }
        }
    }

    /// The configuration that was in force.
    ///
    /// # Errors
    /// What this program makes of it.
    pub fn config(&mut self, given: Given) -> Result<Config, TakeoverError> {
        config(&mut self.record, given)
    }

    /// The listener of `--admin`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn admin(&mut self) -> Result<Option<std::net::TcpListener>, TakeoverError> {
        let listener = self.record.admin.take().map(|fd| self.found.take(fd)).transpose();
        let failed = |source| TakeoverError::Os { doing: "the listener of --admin is missing", source };
        Ok(listener.map_err(failed)?.map(Into::into))
    }

    /// Goes on as the daemon that it was. Returns the exit code at its end.
    ///
    /// # Errors
    /// Why it cannot; the program before is run again, if it can be.
    pub fn go_on(
        self,
        config: Config,
        servers: &Servers,
        admin: Option<admin::Open>,
        log: Log,
    ) -> Result<u8, TakeoverError> {
        let Self { record, signals, mut found, file, back, spares } = self;
        let mut orders = Vec::new();
        // There is a way back only for a program that has not given back.
        let gives = if back.is_some() { Gives::Way } else { Gives::Back };
        let with = (servers, admin, log);
        let adopted = Daemon::adopt(record, gives, signals, &mut found, config, with, &mut orders);
        let mut daemon = match adopted {
            Ok(daemon) => daemon,
            Err(error) => {
                run_back(&file, back.as_ref(), &spares, &error);
                return Err(error);
            }
        };
        drop((spares, file, back));
        orders.into_iter().for_each(|order| daemon.context.orders.send(order));
        daemon.context.access.go_on();
        Ok(daemon.run()?)
    }

    /// Runs the program before, since this one cannot go on. Returns only if that fails.
    pub fn give_back(self, why: &dyn std::fmt::Display) {
        run_back(&self.file, self.back.as_ref(), &self.spares, why);
    }
}

/// Whether a descriptor is a record, and this process the one that it is for.
fn is_record(number: i32) -> bool {
    let path = std::fs::read_link(format!("/proc/self/fd/{number}"));
    path.is_ok_and(|path| path.to_string_lossy().starts_with("/memfd:roundsman-record"))
}

/// Runs the program before in place of this one. Returns only if that fails.
fn run_back(file: &OwnedFd, back: Option<&OwnedFd>, spares: &[(i32, OwnedFd)], why: &dyn std::fmt::Display) {
    let Some(back) = back else { return };
    eprintln!("roundsman: cannot take over: {why}; going back to the program before");
    // What was dropped and waits for its close has numbers to which spares go.
    let _pause = closer::pause();
    for (number, spare) in spares {
        let _ = exec::put_back(spare, *number);
    }
    let _ = exec::hold_signals();
    let _ = exec::stay_open(file.as_raw_fd(), true);
    // There is no way back from there.
    let value = file.as_raw_fd().to_string();
    match exec::replace(back.as_fd(), std::env::args_os(), (VARIABLE, &value)) {
        Err(failed) => eprintln!("roundsman: cannot go back: {}", reason(&failed)),
        Ok(never) => match never {},
    }
}

impl Daemon {
    fn adopt(
        record: DaemonRecord,
        gives: Gives,
        signals: Signals,
        found: &mut Found,
        mut config: Config,
        (servers, admin, log): (&Servers, Option<admin::Open>, Log),
        orders: &mut Vec<Order>,
    ) -> Result<Self, TakeoverError> {
        let DaemonRecord {
            head,
            name: _,
            settings: _,
            of_services: _,
            services: records,
            libraries,
            control,
            attach,
            systemd,
            admin: _,
            bell,
            outputs,
            access,
            started,
            had_terminal,
            nofile: soft,
            marks,
            client,
            cwd,
            fds,
        } = record;
        let missing = |source| TakeoverError::Os { doing: "something in the record is missing", source };
        let nofile = process::raise_nofile().map_err(os("cannot read the file limit"))?;
        process::become_subreaper();
        closer::start().map_err(os("cannot start a thread"))?;
        start::go_on_with_marks(marks);
        let services = std::mem::take(&mut config.services);
        let nofile = NoFile { soft, hard: nofile.hard };
        let mut daemon = Self::new(config, nofile, servers, signals, log)?;
        if let Some(bell) = bell {
            let bell = found.take(bell).map_err(missing)?;
            daemon.context.orders.take_bell(bell).map_err(missing)?;
        }
        if let Some(attach) = attach {
            let (registry, nofile) = (daemon.context.registry.clone(), daemon.context.nofile);
            daemon.context.attach = Some(AttachServer::adopt(attach, found, &registry, nofile).map_err(missing)?);
        }
        let libraries = Libraries::adopt(libraries, found).map_err(missing)?;
        // Their files are not to go if something fails from here on.
        let held = std::mem::ManuallyDrop::new(libraries.clone());
        let known = (daemon.next_id..).zip(&services);
        let known = known.map(|(id, (config, _))| (id, config.name.as_str(), &config.files));
        daemon.context.access.adopt(access, known, found).map_err(missing)?;
        for (config, record) in services.into_iter().zip(records) {
            let listens = !config.0.listen.is_empty() || record.listens();
            let prepared = daemon.prepare(config, listens)?;
            let (config, delivery) = prepared.into_parts();
            same(config.0.backend.via(), &record)?;
            let id = daemon.next_id;
            daemon.next_id += 1;
            let context = (&daemon.context, &mut *orders);
            let service = record.adopt(id, config, delivery, &libraries, found, context).map_err(missing)?;
            daemon.services.push(service);
        }
        for output in outputs {
            let known = daemon.services.iter().find(|service| service.config().name == output.service);
            if let Some(files) = known.map(|service| service.config().files.clone()) {
                servers.adopt(output, files.into(), found).map_err(missing)?;
            }
        }
        if let (Some(record), Some(systemd)) = (systemd, &mut daemon.systemd) {
            systemd.go_on(record, &daemon.services);
        }
        daemon.started = started.into();
        daemon.context.launcher.go_on_in(cwd);
        daemon.terminal = if had_terminal { Terminal::Had } else { Terminal::None };
        if let Some(admin) = admin {
            daemon.open_admin(admin, control.as_ref().map(|control| control.path.clone()))?;
        }
        // Its end would remove the file, so nothing fails after it.
        let control = control.map(|control| ControlServer::adopt(control, found, &daemon.context.registry));
        daemon.control = control.transpose().map_err(missing)?;
        drop(std::mem::ManuallyDrop::into_inner(held));
        // Of services that are no more, for one.
        found.close_others(fds);
        let version = env!("CARGO_PKG_VERSION");
        let pid = std::process::id();
        let reply = match gives {
            Gives::Way => {
                info!(from = head.version, version, pid, "upgraded");
                Reply::Done(format!("upgraded from {} to {version} (pid {pid})", head.version))
            }
            Gives::Back => {
                let why = "not upgraded: the program could not take over; its reason is in the log";
                warn!(version, pid, "{why}");
                Reply::Error(why.to_owned())
            }
        };
        if let (Some(client), Some(control)) = (client, &mut daemon.control) {
            control.tell(client, &reply, Finality::Last);
        }
        Ok(daemon)
    }
}

//! The validated configuration of one service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::clients::Clients;
use super::error::{ConfigError, Kind, unusable};
use super::memory::MaxMemory;
use super::options::{DrainIdle, NodeIpc, OnErrored, OnExit, Options};
use super::sources::COMMAND;
use super::upstream::{self, WeightedUpstream};
use super::{Inherited, MAX_ADDRESSES, delivery, draining, hashing, proxy_loop, user};
use crate::accept::policy::Policy;
use crate::access::settings::{AccessFormat, AccessLog, Sample};
use crate::addr::{Listen, ListenAddr};
use crate::affinity::HashOn;
use crate::output::files::Files;
use crate::program::command::{CommandLine, Lookup};
use crate::proxy_protocol::balancers::Balancers;
use crate::proxy_protocol::sending::Version;
use crate::sys::process::Credentials;
use crate::sys::reason;

#[derive(Debug, Clone)]
pub struct ServiceConfig {
    pub name: String,
    /// Empty if inherited sockets are adopted, or the server decides.
    pub listen: Vec<Listen>,
    /// Who gets the next connection.
    pub policy: Policy,
    /// What a policy that hashes goes by.
    pub hash_on: Option<HashOn>,
    pub instances: u32,
    /// How the number was found, if it was not given.
    pub instances_why: Option<String>,
    pub backend: Backend,
    /// Reason for the delivery, shown by `ls`.
    pub via_reason: String,
    pub chosen: Chosen,
    /// Direct: the server's system calls are answered, since it cannot be preloaded.
    pub seccomp: bool,
    /// Of servers and relay workers; `None`: the daemon's.
    pub user: Option<Credentials>,
    /// Working directory of servers; `None`: the daemon's.
    pub cwd: Option<PathBuf>,
    /// Variables for servers, from files and options.
    pub environment: Vec<(String, String)>,
    pub files: Files,
    pub access: Option<AccessLog>,
    /// Sources whose connections begin with a PROXY header.
    pub proxy_from: Option<Balancers>,
    /// Which clients are served.
    pub clients: Clients,
    /// The header that relayed servers get.
    pub send_proxy: Option<Version>,
    pub node_ipc: NodeIpc,
    pub stop_message: Option<String>,
    /// Names of the services that must be ready before it starts.
    pub after: Vec<String>,
    pub limits: Limits,
}

/// How a service's connections are served.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Relayed to addresses; the command, if there is one, is started once and serves them.
    Upstreams(Vec<WeightedUpstream>, Option<CommandLine>),
    /// Relayed to a copy of the command in every slot.
    Relayed(CommandLine),
    /// Handed to a copy of the command in every slot.
    Direct(CommandLine),
    /// A copy of the command in every slot, without a port.
    NoPort(CommandLine),
}

impl Backend {
    /// The delivery, as `ls` names it.
    pub fn via(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Upstreams(..) | Self::Relayed(_) => "relay",
            Self::NoPort(_) => "none",
        }
    }
}

/// Who chose the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    AsAsked,
    ByUs,
}

/// Times and limits of a service.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub listen_timeout: Duration,
    pub wait_ready: bool,
    /// `--max-memory`, in bytes.
    pub max_memory: Option<u64>,
    pub max_age: Option<Duration>,
    /// In connections.
    pub max_served: Option<u32>,
    /// In percent.
    pub recycle_jitter: u8,
    pub hang_timeout: Option<Duration>,
    /// Connections accepted per second, at most.
    pub accept_rate: Option<u32>,
    /// Connections of the service at a time, at most.
    pub max_conns: Option<u32>,
    pub drain_timeout: Duration,
    pub drain_idle: DrainIdle,
    pub drain_spread: Option<Duration>,
    pub kill_timeout: Duration,
    pub max_surge: u32,
    pub stop_timeout: Duration,
    pub stop_delay: Duration,
    pub stall_timeout: Duration,
    pub queue_timeout: Duration,
    pub hash_wait: Duration,
    /// The most connections of a worker.
    pub worker_conns: Option<u32>,
    /// The most clients that wait for room in a worker.
    pub max_queue: Option<u32>,
    pub abort_on_close: bool,
    pub slow_start: Duration,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub stop_signal: Signal,
    pub max_restarts: u32,
    pub min_uptime: Duration,
    pub backoff: (Duration, Duration),
    pub on_errored: OnErrored,
    pub on_exit: OnExit,
}

impl ServiceConfig {
    /// Validates options.
    ///
    /// # Errors
    /// The first mistake.
    pub fn new(run: Options, inherited: Inherited) -> Result<Self, ConfigError> {
        if run.command.is_empty() && run.upstream.is_empty() {
            return Err(Kind::Nothing.of(COMMAND));
        }
        let clients = Clients::new(&run)?;
        let upstreams = upstream::grouped(run.upstream).map_err(|kind| kind.of("upstream"))?;
        for (key, count) in [("listen", run.listen.len()), ("upstream", upstreams.len())] {
            if count > MAX_ADDRESSES {
                return Err(Kind::TooMany.of(key));
            }
            if count > 0 && run.no_listen {
                return Err(Kind::Excludes(key).of("no-listen"));
            }
        }
        let by_master = [
            ("accept-rate", run.accept_rate.is_some()),
            ("max-conns", run.max_conns.is_some()),
            ("proxy-from", !run.clients.proxy_from.is_empty()),
            ("allow", !run.clients.allow.is_empty()),
            ("deny", !run.clients.deny.is_empty()),
            ("source-conns", run.clients.source_conns.is_some()),
            ("source-rate", run.clients.source_rate.is_some()),
            ("first-byte-timeout", run.clients.first_byte_timeout.is_some()),
            ("send-proxy", run.clients.send_proxy.is_some()),
        ];
        for (key, given) in by_master {
            if given && run.no_listen {
                return Err(Kind::Excludes("no-listen").of(key));
            }
            if given && run.policy == Policy::None {
                return Err(Kind::WorkersAccept.of(key));
            }
        }
        for (at, address) in run.listen.iter().enumerate() {
            let same = run.listen[..at].iter().any(|other| other.address == address.address);
            if same && address.address != ListenAddr::Port(0) {
                return Err(Kind::Repeated(address.address.clone()).of("listen"));
            }
        }
        if !run.slow_start.is_zero() {
            match run.policy {
                Policy::Rr | Policy::LeastConn if run.no_listen => {
                    return Err(Kind::Excludes("no-listen").of("slow-start"));
                }
                Policy::Rr | Policy::LeastConn => {}
                Policy::IpHash | Policy::Hash => {
                    return Err(Kind::SlowStart("the same client gets the same worker").of("slow-start"));
                }
                Policy::None => return Err(Kind::SlowStart("workers take connections themselves").of("slow-start")),
            }
        }
        proxy_loop::refuse(&run.listen, &upstreams)?;
        let cwd = run.cwd.map(directory).transpose().map_err(|kind| kind.of("cwd"))?;
        let environment = environment(&run.env_file, run.env).map_err(|kind| kind.of("env-file"))?;
        let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.into());
        let command = match run.command.as_slice() {
            [] => None,
            words => {
                let found = CommandLine::find(words, Lookup { cwd: cwd.clone(), path });
                Some(found.map_err(|error| Kind::Command(error).of(COMMAND))?)
            }
        };
        let name = match (run.name, &command) {
            (Some(name), _) => checked(name)?,
            (None, Some(command)) => command.name(),
            (None, None) => match run.listen.first().map(|listen| &listen.address) {
                Some(ListenAddr::Port(port)) => format!("proxy-{port}"),
                Some(ListenAddr::Tcp(address)) => format!("proxy-{}", address.port()),
                Some(ListenAddr::Unix(_)) | None => "proxy".to_owned(),
            },
        };
        let delivery::Choice { backend, reason: via_reason, chosen, seccomp } = delivery::choose(
            run.via,
            run.clients.send_proxy,
            command,
            upstreams,
            &run.listen,
            inherited,
            run.no_listen,
        )?;
        let drained = (run.drain_idle, run.drain_spread, run.drain_timeout);
        let hash_on = hashing::key(run.policy, run.hash_on, run.no_listen, run.node_ipc, &backend)?;
        if run.node_ipc == NodeIpc::Cluster && !matches!(backend, Backend::Direct(_)) {
            return Err(Kind::ClusterByRelay.of("node-ipc"));
        }
        draining::check(drained, run.policy, hash_on.as_ref(), &backend)?;
        let recycles = [("max-age", run.max_age.is_some()), ("max-served", run.max_served.is_some())];
        if let (Some((key, _)), Backend::Upstreams(..)) = (recycles.iter().find(|(_, given)| *given), &backend) {
            return Err(Kind::NoServerInSlot.of(key));
        }
        if run.max_served.is_some() && run.no_listen {
            return Err(Kind::Excludes("no-listen").of("max-served"));
        }
        if run.max_served.is_some() && run.policy == Policy::None {
            return Err(Kind::NotCounted.of("max-served"));
        }
        let found =
            |user: &str| user::find(user).map_err(|reason| Kind::User { user: user.to_owned(), reason }.of("user"));
        let user = run.user.as_deref().map(found).transpose()?;
        match run.worker_conns {
            Some(_) if run.policy == Policy::None => return Err(Kind::WorkersAccept.of("worker-conns")),
            Some(_) if run.no_listen => return Err(Kind::Excludes("no-listen").of("worker-conns")),
            Some(_) => {}
            None if run.max_queue.is_some() => return Err(Kind::Needs("worker-conns").of("max-queue")),
            None if run.abort_on_close => return Err(Kind::Needs("worker-conns").of("abort-on-close")),
            None => {}
        }
        let (instances, instances_why) = run.instances.resolve();
        let per_slot = |limit: MaxMemory| limit.per_slot(instances).ok_or_else(|| Kind::NoMemoryLimit.of("max-memory"));
        let limits = Limits {
            listen_timeout: run.listen_timeout,
            wait_ready: run.wait_ready,
            max_memory: run.max_memory.map(per_slot).transpose()?,
            max_age: run.max_age,
            max_served: run.max_served,
            recycle_jitter: run.recycle_jitter,
            hang_timeout: run.hang_timeout,
            accept_rate: run.accept_rate,
            max_conns: run.max_conns,
            drain_timeout: run.drain_timeout,
            drain_idle: run.drain_idle,
            drain_spread: run.drain_spread,
            kill_timeout: run.kill_timeout,
            max_surge: run.max_surge,
            stop_timeout: run.stop_timeout,
            stop_delay: run.stop_delay,
            stall_timeout: run.stall_timeout,
            queue_timeout: run.queue_timeout,
            hash_wait: run.hash_wait,
            worker_conns: run.worker_conns,
            max_queue: run.max_queue,
            abort_on_close: run.abort_on_close,
            slow_start: run.slow_start,
            connect_timeout: run.connect_timeout,
            idle_timeout: run.idle_timeout,
            stop_signal: run.stop_signal,
            max_restarts: run.max_restarts,
            min_uptime: run.min_uptime,
            backoff: run.backoff,
            on_errored: run.on_errored,
            on_exit: run.on_exit,
        };
        let (format, sample) = (run.access_format, run.access_sample);
        let access = match run.access_log {
            Some(_) if run.no_listen => return Err(Kind::Excludes("no-listen").of("access-log")),
            Some(to) => {
                let (format, sample) = (format.unwrap_or(AccessFormat::Text), sample.unwrap_or(Sample::ALL));
                Some(AccessLog { to, format, sample })
            }
            None if format.is_some() => return Err(Kind::Needs("access-log").of("access-format")),
            None if sample.is_some() => return Err(Kind::Needs("access-log").of("access-sample")),
            None => None,
        };
        let files = Files {
            out: run.out,
            error: run.error,
            rotate_size: run.rotate_size,
            rotate_keep: run.rotate_keep,
            timestamps: run.timestamps,
            user: user.clone(),
        };
        Ok(Self {
            name,
            listen: run.listen,
            policy: run.policy,
            hash_on,
            instances,
            instances_why,
            backend,
            via_reason,
            chosen,
            seccomp,
            user,
            cwd,
            environment,
            files,
            access,
            proxy_from: (!run.clients.proxy_from.is_empty()).then_some(Balancers(run.clients.proxy_from)),
            clients,
            send_proxy: run.clients.send_proxy,
            node_ipc: run.node_ipc,
            after: run.after,
            stop_message: run.stop_message,
            limits,
        })
    }

    /// The delivery with what it goes by, for people.
    pub fn via(&self) -> &'static str {
        match self.backend {
            Backend::Direct(_) if self.seccomp => "direct (seccomp)",
            _ => self.backend.via(),
        }
    }

    /// The command, if it has one.
    pub fn command(&self) -> Option<&CommandLine> {
        match &self.backend {
            Backend::Direct(command)
            | Backend::Relayed(command)
            | Backend::NoPort(command)
            | Backend::Upstreams(_, Some(command)) => Some(command),
            Backend::Upstreams(_, None) => None,
        }
    }
}

/// Checks a name: it becomes a file name and a label.
pub fn checked(name: String) -> Result<String, ConfigError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(valid) && !name.starts_with('.') {
        Ok(name)
    } else {
        Err(Kind::Name(name).of("name"))
    }
}

fn directory(cwd: PathBuf) -> Result<PathBuf, Kind> {
    let refused = |why: &dyn std::fmt::Display| unusable(&cwd, why);
    match std::fs::metadata(&cwd) {
        Ok(meta) if meta.is_dir() => std::path::absolute(&cwd).map_err(|error| refused(&reason(&error))),
        Ok(_) => Err(refused(&"it is not a directory")),
        Err(error) => Err(refused(&reason(&error))),
    }
}

/// Variables of files, overridden by those given one by one.
fn environment(files: &[PathBuf], given: Vec<(String, String)>) -> Result<Vec<(String, String)>, Kind> {
    let mut all = Vec::new();
    for file in files {
        all.extend(variables(file).map_err(|error| match error {
            dotenvy::Error::Io(error) => unusable(file, &reason(&error)),
            error => unusable(file, &error),
        })?);
    }
    all.extend(given);
    Ok(all)
}

fn variables(file: &Path) -> Result<Vec<(String, String)>, dotenvy::Error> {
    dotenvy::from_path_iter(file)?.collect()
}

//! One service, as its options say it. A `ServiceConfig` that exists is valid.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::options::{NodeIpc, OnErrored, OnExit, Run};
use super::{Inherited, MAX_ADDRESSES, delivery, proxy_loop, usage, user};
use crate::accept::policy::Policy;
use crate::addr::{Listen, ListenAddr, Upstream};
use crate::exit::Exit;
use crate::output::files::Files;
use crate::program::command::{CommandLine, Place};
use crate::sys::process::Credentials;

/// One service.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// Where clients come in; empty when inherited sockets are to be adopted, or the server decides.
    pub listen: Vec<Listen>,
    /// Who gets the next connection.
    pub policy: Policy,
    /// Slots.
    pub instances: u32,
    /// Why so many, where the machine decided.
    pub instances_why: Option<String>,
    pub backend: Backend,
    /// Why connections reach it as they do.
    pub via_reason: String,
    /// Whether the choice is ours, and may still be revised.
    pub chosen: Chosen,
    /// Who servers and relay workers run as; `None`: as we do.
    pub user: Option<Credentials>,
    /// Where servers run; `None`: where we do.
    pub cwd: Option<PathBuf>,
    /// What servers find in their environment.
    pub environment: Vec<(String, String)>,
    /// Where their output goes.
    pub files: Files,
    /// `--node-ipc`.
    pub node_ipc: NodeIpc,
    /// `--stop-message`.
    pub stop_message: Option<String>,
    /// Times and limits.
    pub limits: Limits,
}

/// How a service's connections are served.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Relayed to addresses; the command, if there is one, is started once and serves them.
    Upstreams(Vec<Upstream>, Option<CommandLine>),
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
    /// The user.
    AsAsked,
    /// We.
    ByUs,
}

/// Times and limits of a service.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `--listen-timeout`.
    pub listen_timeout: Duration,
    /// `--wait-ready`.
    pub wait_ready: bool,
    /// `--max-memory`, in bytes.
    pub max_memory: Option<u64>,
    /// `--hang-timeout`.
    pub hang_timeout: Option<Duration>,
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
    /// `--kill-timeout`.
    pub kill_timeout: Duration,
    /// `--max-surge`.
    pub max_surge: u32,
    /// `--stop-timeout`.
    pub stop_timeout: Duration,
    /// `--stop-delay`.
    pub stop_delay: Duration,
    /// `--stall-timeout`.
    pub stall_timeout: Duration,
    /// `--queue-timeout`.
    pub queue_timeout: Duration,
    /// `--hash-wait`.
    pub hash_wait: Duration,
    /// `--connect-timeout`.
    pub connect_timeout: Duration,
    /// `--idle-timeout`.
    pub idle_timeout: Duration,
    /// `--stop-signal`.
    pub stop_signal: Signal,
    /// `--max-restarts`.
    pub max_restarts: u32,
    /// `--min-uptime`.
    pub min_uptime: Duration,
    /// `--backoff`.
    pub backoff: (Duration, Duration),
    /// `--on-errored`.
    pub on_errored: OnErrored,
    /// `--on-exit`.
    pub on_exit: OnExit,
}

impl ServiceConfig {
    /// From its options.
    ///
    /// # Errors
    /// [`crate::exit::USAGE`], or the codes of [`CommandLine::find`], with what to do about it.
    pub fn new(run: Run, inherited: Inherited) -> Result<Self, Exit> {
        if run.command.is_empty() && run.upstream.is_empty() {
            return Err(usage("nothing to serve: give a command (-- ./server) or an upstream (-u host:port)"));
        }
        if run.listen.len() > MAX_ADDRESSES || run.upstream.len() > MAX_ADDRESSES {
            return Err(usage(&format!("at most {MAX_ADDRESSES} listeners and as many upstreams")));
        }
        for (at, address) in run.listen.iter().enumerate() {
            let same = run.listen[..at].iter().any(|other| other.address == address.address);
            if same && address.address != ListenAddr::Port(0) {
                return Err(usage(&format!("--listen {} is given twice", address.address)));
            }
        }
        proxy_loop::refuse(&run.listen, &run.upstream)?;
        let cwd = run.cwd.map(directory).transpose()?;
        let environment = environment(&run.env_file, run.env)?;
        let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.into());
        let command = match run.command.as_slice() {
            [] => None,
            words => Some(CommandLine::find(words, Place { cwd: cwd.clone(), path })?),
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
        let delivery::Choice { backend, reason: via_reason, chosen } =
            delivery::choose(run.via, command, run.upstream, &run.listen, inherited, run.no_listen)?;
        if run.node_ipc == NodeIpc::Cluster && !matches!(backend, Backend::Direct(_)) {
            return Err(usage("--node-ipc cluster is for direct delivery; behind a relay use plain"));
        }
        let user = run.user.as_deref().map(user::find).transpose()?;
        let (instances, instances_why) = run.instances.resolve();
        let limits = Limits {
            listen_timeout: run.listen_timeout,
            wait_ready: run.wait_ready,
            max_memory: run.max_memory.map(|limit| limit.per_slot(instances)).transpose()?,
            hang_timeout: run.hang_timeout,
            drain_timeout: run.drain_timeout,
            kill_timeout: run.kill_timeout,
            max_surge: run.max_surge,
            stop_timeout: run.stop_timeout,
            stop_delay: run.stop_delay,
            stall_timeout: run.stall_timeout,
            queue_timeout: run.queue_timeout,
            hash_wait: run.hash_wait,
            connect_timeout: run.connect_timeout,
            idle_timeout: run.idle_timeout,
            stop_signal: run.stop_signal,
            max_restarts: run.max_restarts,
            min_uptime: run.min_uptime,
            backoff: run.backoff,
            on_errored: run.on_errored,
            on_exit: run.on_exit,
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
            instances,
            instances_why,
            backend,
            via_reason,
            chosen,
            user,
            cwd,
            environment,
            files,
            node_ipc: run.node_ipc,
            stop_message: run.stop_message,
            limits,
        })
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

/// A name becomes a file name and a label.
pub fn checked(name: String) -> Result<String, Exit> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(valid) && !name.starts_with('.') {
        Ok(name)
    } else {
        Err(usage(&format!("--name {name:?}: 1 to 64 of a-z, A-Z, 0-9, - _ . (not first)")))
    }
}

fn directory(cwd: PathBuf) -> Result<PathBuf, Exit> {
    let refused = |why: &dyn std::fmt::Display| usage(&format!("--cwd {}: {why}", cwd.display()));
    match std::fs::metadata(&cwd) {
        Ok(meta) if meta.is_dir() => std::path::absolute(&cwd).map_err(|error| refused(&error)),
        Ok(_) => Err(refused(&"it is not a directory")),
        Err(error) => Err(refused(&error)),
    }
}

/// The variables of files, and over them those given one by one.
fn environment(files: &[PathBuf], given: Vec<(String, String)>) -> Result<Vec<(String, String)>, Exit> {
    let mut all = Vec::new();
    for file in files {
        all.extend(variables(file).map_err(|why| usage(&format!("--env-file {}: {why}", file.display())))?);
    }
    all.extend(given);
    Ok(all)
}

fn variables(file: &Path) -> Result<Vec<(String, String)>, String> {
    let lines = dotenvy::from_path_iter(file).map_err(|error| error.to_string())?;
    lines.map(|line| line.map_err(|error| error.to_string())).collect()
}

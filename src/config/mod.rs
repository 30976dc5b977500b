//! What the daemon shall do: one immutable value. A `Config` that exists is valid.

pub mod addr;
pub mod instances;
pub mod memory;
pub mod user;
pub mod via;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::accept::policy::Policy;
use crate::cli::{OnErrored, Run};
use crate::exit::{Exit, USAGE};
use crate::launch::command::CommandLine;
use crate::output::LogFormat;
use crate::output::passing::Format;
use crate::relay::protocol::Upstream;
use crate::sys::process::Credentials;
use addr::{Listen, ListenAddr};

/// Listeners of a service, and upstreams: a worker's setup has to fit into one message with 253 descriptors.
const MOST_ADDRESSES: usize = 100;

/// Everything.
#[derive(Debug, Clone)]
pub struct Config {
    /// The service.
    pub service: ServiceConfig,
    /// `--control`.
    pub control: Option<PathBuf>,
    /// `--output`.
    pub output: Format,
    /// `--log-format`.
    pub log_format: LogFormat,
    /// `--log-level`.
    pub log_level: String,
}

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
    /// What is behind the workers.
    pub behind: Behind,
    /// Why connections reach it as they do.
    pub via_reason: String,
    /// Whether the choice is ours, and may still be revised.
    pub chosen: Chosen,
    /// Who servers and relay workers run as; `None`: as we do.
    pub user: Option<Credentials>,
    /// Times and limits.
    pub limits: Limits,
}

/// What is behind the relay workers.
#[derive(Debug, Clone)]
pub enum Behind {
    /// Addresses that exist, and perhaps a command that is started once to serve them.
    Upstreams(Vec<Upstream>, Option<CommandLine>),
    /// A copy of the command for every slot.
    PerSlot(CommandLine),
    /// The same, and the copies themselves get the accepted sockets.
    Direct(CommandLine),
    /// The same, and they serve no port.
    Portless(CommandLine),
}

impl Behind {
    /// The delivery, as `ls` names it.
    pub fn via(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Upstreams(..) | Self::PerSlot(_) => "relay",
            Self::Portless(_) => "none",
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
}

/// Whether the environment passes listening sockets (LISTEN_FDS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    /// At least one.
    Some,
    /// None.
    None,
}

impl Config {
    /// From the command line.
    ///
    /// # Errors
    /// [`USAGE`], or the codes of [`CommandLine::find`], with what to do about it.
    pub fn from_cli(run: Run, inherited: Inherited) -> Result<Self, Exit> {
        if run.command.is_empty() && run.upstream.is_empty() {
            return Err(usage("nothing to serve: give a command (-- ./server) or an upstream (-u host:port)"));
        }
        if run.listen.len() > MOST_ADDRESSES || run.upstream.len() > MOST_ADDRESSES {
            return Err(usage(&format!("at most {MOST_ADDRESSES} listeners and as many upstreams")));
        }
        for (at, address) in run.listen.iter().enumerate() {
            let same = run.listen[..at].iter().any(|other| other.address == address.address);
            if same && address.address != ListenAddr::Port(0) {
                return Err(usage(&format!("--listen {} is given twice", address.address)));
            }
        }
        let command = match run.command.as_slice() {
            [] => None,
            words => Some(CommandLine::find(words)?),
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
        let via::Choice { behind, reason: via_reason, chosen } =
            via::choose(run.via, command, run.upstream, &run.listen, inherited, run.no_listen)?;
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
            connect_timeout: run.connect_timeout,
            idle_timeout: run.idle_timeout,
            stop_signal: run.stop_signal,
            max_restarts: run.max_restarts,
            min_uptime: run.min_uptime,
            backoff: run.backoff,
            on_errored: run.on_errored,
        };
        let policy = run.policy;
        let service = ServiceConfig {
            name,
            listen: run.listen,
            policy,
            instances,
            instances_why,
            behind,
            via_reason,
            chosen,
            user,
            limits,
        };
        Ok(Self {
            service,
            control: run.control,
            output: run.output.unwrap_or_else(Format::usual),
            log_format: run.log_format,
            log_level: run.log_level,
        })
    }
}

fn usage(message: &str) -> Exit {
    Exit::new(USAGE, message)
}

/// A name becomes a file name and a label.
fn checked(name: String) -> Result<String, Exit> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(valid) && !name.starts_with('.') {
        Ok(name)
    } else {
        Err(usage(&format!("--name {name:?}: 1 to 64 of a-z, A-Z, 0-9, - _ . (not first)")))
    }
}

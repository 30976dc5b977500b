//! The options of a service: flags and environment as people type them. A configuration file's keys are the same names,
//! and are read by the same parsers.
// Doc comments are the help's text: [::1]:80 is an address there, not a link.
#![allow(rustdoc::broken_intra_doc_links)]

mod clients;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

pub use super::choices::{DrainIdle, NodeIpc, OnErrored, OnExit, Via};
use super::instances::Instances;
use super::memory::{MaxMemory, size};
use super::upstream::Word;
use super::values::{age, level, percent, range, rate, signal, time, variable};
pub use super::values::{number, policy};
use crate::accept::policy::Policy;
use crate::access::settings::{AccessFormat, Sample, Target, target};
use crate::addr::{AdminAddr, Listen};
use crate::output::LogFormat;
use crate::output::sinks::Format as OutputFormat;
pub use clients::ClientOptions;

/// The options of a service.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// TOML file; its keys are these options' long names
    ///
    /// One [service.NAME] table per service. Options and variables win over it.
    #[arg(short, long, value_name = "FILE", env = "ROUNDSMAN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to listen on: 8080, 0.0.0.0:80, unix:/path
    ///
    /// Repeatable. Also [::1]:80; 80=3000 for a server that binds port 3000 itself. Default: the addresses that the server binds.
    #[arg(short, long, value_name = "ADDR", env = "ROUNDSMAN_LISTEN", value_delimiter = ',')]
    pub listen: Vec<Listen>,
    /// Balancing: rr (least loaded, in turn), least-conn, ip-hash, hash, none
    ///
    /// Who gets the next connection: in turn, the fewest open, by the client's address, by a key (--hash-on), or the kernel's choice.
    #[arg(short, long, value_name = "POLICY", env = "ROUNDSMAN_POLICY", default_value = "rr", value_parser = policy)]
    pub policy: Policy,
    /// Key of --policy hash: source, cookie:NAME, query:NAME, header:NAME, socket.io [default: source]
    ///
    /// All but source (the client's address) are in the first request: HTTP/1, up to 16 KiB; without one a worker is chosen as by rr. socket.io: sessions reported by setupWorker of @socket.io/sticky.
    #[arg(long, hide_short_help = true, value_name = "KEY", env = "ROUNDSMAN_HASH_ON")]
    pub hash_on: Option<crate::affinity::HashOn>,
    /// Number of workers, max, or -1
    ///
    /// 1 to 1024. -1: all CPUs but one. max (or 0, as in PM2): one per CPU that the container may use, by its affinity and its quota, rounded up.
    #[arg(
        short,
        long,
        value_name = "N",
        env = "ROUNDSMAN_INSTANCES",
        default_value = "max",
        allow_hyphen_values = true
    )]
    pub instances: Instances,
    /// Address to relay to: host:port, unix:/path
    ///
    /// Repeatable. Also [v6]:port. With a command: the address on which that listens. Words after a comma are about the
    /// address before them: weight=0..256 for its share [default: 1], backup to use it only while no other is up.
    #[arg(short, long, value_name = "ADDR", env = "ROUNDSMAN_UPSTREAM", value_delimiter = ',')]
    pub upstream: Vec<Word>,
    /// Delivery: auto, direct, relay
    ///
    /// direct: the server gets the accepted socket; relay: its bytes are carried; auto: direct where possible.
    #[arg(long, value_name = "VIA", env = "ROUNDSMAN_VIA", default_value = "auto", hide_possible_values = true)]
    pub via: Via,
    /// Name of the service
    ///
    /// Default: from the command. With several services: name of the daemon.
    #[arg(short, long, value_name = "NAME", env = "ROUNDSMAN_NAME")]
    pub name: Option<String>,
    /// Run servers as NAME, NAME:GROUP or numbers
    #[arg(long, value_name = "USER", env = "ROUNDSMAN_USER")]
    pub user: Option<String>,
    /// Working directory of servers [default: the daemon's]
    #[arg(long, hide_short_help = true, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable for servers; repeatable
    #[arg(long, hide_short_help = true, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// File of KEY=VALUE lines for servers; repeatable; --env wins over it
    #[arg(long, hide_short_help = true, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Services of the file that must be ready before this one starts
    ///
    /// A job (no-listen, on-exit = "ok") is ready when it is done. They stop in the opposite order.
    #[arg(long, hide_short_help = true, value_name = "NAME", value_delimiter = ',')]
    pub after: Vec<String>,
    /// Time for a server to get ready before reload, restart, start or scale fails
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_LISTEN_TIMEOUT", default_value = "30s", value_parser = time)]
    pub listen_timeout: Duration,
    /// Wait for servers to say that they are ready
    ///
    /// By READY=1 on NOTIFY_SOCKET, as with systemd, or in Node by process.send('ready').
    #[arg(long, hide_short_help = true, env = "ROUNDSMAN_WAIT_READY")]
    pub wait_ready: bool,
    /// Run a command that serves no port, such as a queue worker; online after --min-uptime
    #[arg(long, hide_short_help = true)]
    pub no_listen: bool,
    /// Replace a worker that uses more: 512MiB, or 90% of the container's memory divided by the slots
    #[arg(long, hide_short_help = true, value_name = "SIZE", env = "ROUNDSMAN_MAX_MEMORY")]
    pub max_memory: Option<MaxMemory>,
    /// Replace a worker that receives nothing for this long while connections wait [default: never]
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_HANG_TIMEOUT", value_parser = time)]
    pub hang_timeout: Option<Duration>,
    /// Replace a worker that has been online for this long [default: never]
    ///
    /// As a reload does: after its successor is online, at most --max-surge at a time.
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_MAX_AGE", value_parser = age)]
    pub max_age: Option<Duration>,
    /// Replace a worker that has been given this many connections [default: never]
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_MAX_SERVED", value_parser = |text: &str| number(text, 1..=u32::MAX))]
    pub max_served: Option<u32>,
    /// Spread --max-age and --max-served of the slots over the last part of their time: 0% to 100%
    #[arg(long, hide_short_help = true, value_name = "PERCENT", env = "ROUNDSMAN_RECYCLE_JITTER", default_value = "10%", value_parser = percent)]
    pub recycle_jitter: u8,
    /// Time for a replaced worker to finish its connections
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_DRAIN_TIMEOUT", default_value = "10s", value_parser = time)]
    pub drain_timeout: Duration,
    /// What becomes of an idle HTTP/1.1 connection of a replaced worker: close, or move to another one
    ///
    /// move: its client notices nothing. With direct delivery a server that catches --stop-signal gets it as soon as the last connection was handed to it, and must finish its requests then.
    #[arg(
        long,
        hide_short_help = true,
        value_name = "WHAT",
        env = "ROUNDSMAN_DRAIN_IDLE",
        default_value = "close",
        hide_possible_values = true
    )]
    pub drain_idle: DrainIdle,
    /// Window over which a replaced relay worker ends the connections that are left [default: all at the end]
    ///
    /// Each at a time of its own, at random, so that not all clients come back at once. At most --drain-timeout. An HTTP/1.1 request is answered first.
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_DRAIN_SPREAD", value_parser = age)]
    pub drain_spread: Option<Duration>,
    /// Time for a replaced server to exit after its stop signal
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_KILL_TIMEOUT", default_value = "10s", value_parser = time)]
    pub kill_timeout: Duration,
    /// Number of slots that are replaced at a time
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_MAX_SURGE", default_value = "1", value_parser = |text: &str| number(text, 1..=u32::MAX))]
    pub max_surge: u32,
    /// Total time allowed for a graceful stop
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_STOP_TIMEOUT", default_value = "8s", value_parser = time)]
    pub stop_timeout: Duration,
    /// Time to keep accepting connections after a stop signal
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_STOP_DELAY", default_value = "0s", value_parser = time)]
    pub stop_delay: Duration,
    /// Give a worker's queue to the others when it receives nothing for this long
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_STALL_TIMEOUT", default_value = "10ms", value_parser = time)]
    pub stall_timeout: Duration,
    /// Connections that a worker has at a time, open or on their way; more clients wait in one line
    ///
    /// The first to come is the first to be served, as soon as a worker has closed a connection. An idle keep-alive connection counts, too. Default: as many as come.
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_WORKER_CONNS", value_parser = |text: &str| number(text, 1..=u32::MAX))]
    pub worker_conns: Option<u32>,
    /// Clients that wait while every worker has --worker-conns; more are reset
    ///
    /// Default: as many as the master has descriptors for; more wait in the backlog.
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_MAX_QUEUE", value_parser = |text: &str| number(text, 0..=u32::MAX))]
    pub max_queue: Option<u32>,
    /// Drop a waiting client that has finished sending, too: it may have left
    ///
    /// Without this, a client that sent something and then ended its side is served: it may wait for the answer.
    #[arg(long, hide_short_help = true, env = "ROUNDSMAN_ABORT_ON_CLOSE")]
    pub abort_on_close: bool,
    /// Time for a client to wait while no worker can take it
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_QUEUE_TIMEOUT", default_value = "30s", value_parser = time)]
    pub queue_timeout: Duration,
    /// Time for a client to wait for its own worker with --policy ip-hash or hash
    ///
    /// Then it goes to another one; at once when its worker dies or is replaced. With --hash-on socket.io: time for the report of its session.
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_HASH_WAIT", default_value = "1s", value_parser = time)]
    pub hash_wait: Duration,
    /// Time for the share of a new worker to grow to that of the others
    ///
    /// From a tenth, for --policy rr and least-conn; not when all are new. 0s: a new worker has its whole share at once.
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_SLOW_START", default_value = "0s", value_parser = time)]
    pub slow_start: Duration,
    /// Connections that the service has at a time, open, on their way or waiting; more clients wait in the backlog
    ///
    /// An idle keep-alive connection counts, too. Default: as many as come.
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_MAX_CONNS", value_parser = |text: &str| number(text, 1..=u32::MAX))]
    pub max_conns: Option<u32>,
    /// Connections to accept per second; more wait in the backlog: 1000/s [default: no limit]
    #[arg(long, hide_short_help = true, value_name = "RATE", env = "ROUNDSMAN_ACCEPT_RATE", value_parser = rate)]
    pub accept_rate: Option<u32>,
    #[command(flatten)]
    pub clients: ClientOptions,
    /// Time for an upstream to accept a connection
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_CONNECT_TIMEOUT", default_value = "5s", value_parser = time)]
    pub connect_timeout: Duration,
    /// Close relayed connections that are idle for this long
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_IDLE_TIMEOUT", default_value = "1h", value_parser = time)]
    pub idle_timeout: Duration,
    /// Signal that asks a server to stop
    #[arg(long, hide_short_help = true, value_name = "SIGNAL", env = "ROUNDSMAN_STOP_SIGNAL", default_value = "TERM", value_parser = signal)]
    pub stop_signal: nix::sys::signal::Signal,
    /// Node's IPC: auto, off, plain, cluster
    ///
    /// plain: messages only, for apps that fork workers themselves; cluster: the server is a worker of Node's cluster and
    /// roundsman its primary. auto: for `node FILE` cluster with direct delivery and plain with relay, else off.
    #[arg(
        long,
        hide_short_help = true,
        value_name = "MODE",
        env = "ROUNDSMAN_NODE_IPC",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub node_ipc: NodeIpc,
    /// Message to a server in Node before its stop signal
    ///
    /// For process.on('message'), like PM2's shutdown_with_message. The signal follows if the server does not exit.
    #[arg(long, hide_short_help = true, value_name = "TEXT", env = "ROUNDSMAN_STOP_MESSAGE")]
    pub stop_message: Option<String>,
    /// Crashes in a row before a slot is given up
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_MAX_RESTARTS", default_value = "10", value_parser = |text: &str| number(text, 0..=u32::MAX))]
    pub max_restarts: u32,
    /// Minimum uptime for an exit not to count as one of a row of crashes
    #[arg(long, hide_short_help = true, value_name = "TIME", env = "ROUNDSMAN_MIN_UPTIME", default_value = "1s", value_parser = time)]
    pub min_uptime: Duration,
    /// Pause before a restart, doubled each time from the first to the second value
    #[arg(long, hide_short_help = true, value_name = "TIME..TIME", env = "ROUNDSMAN_BACKOFF", default_value = "100ms..15s", value_parser = range)]
    pub backoff: (Duration, Duration),
    /// When every slot is given up: exit or stay
    #[arg(
        long,
        hide_short_help = true,
        value_name = "WHAT",
        env = "ROUNDSMAN_ON_ERRORED",
        default_value = "exit",
        hide_possible_values = true
    )]
    pub on_errored: OnErrored,
    /// When a server exits with 0: restart, or ok (its work is done)
    ///
    /// ok: it is not started again; when every slot of every service is done, the daemon exits with 0.
    #[arg(
        long,
        hide_short_help = true,
        value_name = "WHAT",
        env = "ROUNDSMAN_ON_EXIT",
        default_value = "restart",
        hide_possible_values = true
    )]
    pub on_exit: OnExit,
    /// File for the servers' stdout; {slot} and {service} are filled in [default: the daemon's]
    #[arg(long, hide_short_help = true, value_name = "FILE", env = "ROUNDSMAN_OUT")]
    pub out: Option<PathBuf>,
    /// File for the servers' stderr; may be the same as --out [default: the daemon's]
    #[arg(long, hide_short_help = true, value_name = "FILE", env = "ROUNDSMAN_ERROR")]
    pub error: Option<PathBuf>,
    /// Rename a file of --out, --error or --access-log to FILE.1 before it grows beyond this
    #[arg(long, hide_short_help = true, value_name = "SIZE", env = "ROUNDSMAN_ROTATE_SIZE", default_value = "10MiB", value_parser = size)]
    pub rotate_size: u64,
    /// Number of renamed files to keep; FILE.1 is the newest
    #[arg(long, hide_short_help = true, value_name = "N", env = "ROUNDSMAN_ROTATE_KEEP", default_value = "5", value_parser = |text: &str| number(text, 0..=1000))]
    pub rotate_keep: u32,
    /// File for one line per connection, - for stdout; {slot} and {service} are filled in
    ///
    /// Written when the connection is over. Renamed and opened again like a file of --out.
    #[arg(long, hide_short_help = true, value_name = "FILE", env = "ROUNDSMAN_ACCESS_LOG", allow_hyphen_values = true, value_parser = target)]
    pub access_log: Option<Target>,
    /// Form of the lines of --access-log: text or json [default: text]
    #[arg(
        long,
        hide_short_help = true,
        value_name = "FORMAT",
        env = "ROUNDSMAN_ACCESS_FORMAT",
        hide_possible_values = true
    )]
    pub access_format: Option<AccessFormat>,
    /// Share of the connections in --access-log, drawn at random: 0.1% to 100% [default: 100%]
    #[arg(long, hide_short_help = true, value_name = "PERCENT", env = "ROUNDSMAN_ACCESS_SAMPLE")]
    pub access_sample: Option<Sample>,
    /// Begin each of the servers' lines with the time
    #[arg(long, hide_short_help = true, env = "ROUNDSMAN_TIMESTAMPS")]
    pub timestamps: bool,
    /// Form of the servers' lines: raw, prefix, json
    ///
    /// Default: prefix on a terminal, else raw.
    #[arg(long, value_name = "FORMAT", env = "ROUNDSMAN_OUTPUT", hide_possible_values = true)]
    pub output: Option<OutputFormat>,
    /// Form of the daemon's own log: text or json
    #[arg(
        long,
        hide_short_help = true,
        value_name = "FORMAT",
        env = "ROUNDSMAN_LOG_FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
    /// Least severe lines of the daemon's own log: error, warn, info, debug
    #[arg(long, hide_short_help = true, value_name = "LEVEL", env = "ROUNDSMAN_LOG_LEVEL", default_value = "info", value_parser = level)]
    pub log_level: String,
    /// Serve a page and metrics over HTTP: 9900, 0.0.0.0:9900
    ///
    /// / is the page; /livez, /readyz, /healthz and /metrics (OpenMetrics). A port alone means 127.0.0.1.
    #[arg(long, value_name = "ADDR", env = "ROUNDSMAN_ADMIN")]
    pub admin: Option<AdminAddr>,
    /// File with the token that allows reload, restart, scale, stop and start over --admin
    ///
    /// 16 to 1024 characters, readable by its owner only. Read again by a reload. Without it --admin changes nothing.
    #[arg(long, hide_short_help = true, value_name = "FILE", env = "ROUNDSMAN_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Path of the control socket
    ///
    /// Default: NAME.sock in the runtime directory.
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
    /// The server to run
    #[arg(last = true, hide_short_help = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

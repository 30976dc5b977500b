//! The command line: verbs and their options.

pub mod check;
pub mod client;
pub mod demo;
pub mod detach;
pub mod drain;
pub mod events;
pub mod import;
pub mod logs;
pub mod manual;
pub mod place;
pub mod quit;
mod render;
mod slips;
mod table;
pub mod top;
pub mod unit;
pub mod upgrade;
pub mod watch;
pub mod weight;
mod which;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::accept::policy::Policy;
use crate::addr::ListenAddr;
use crate::codes::USAGE;
use crate::config::instances::{Change, Instances};
use crate::config::options::{Options, number, policy};
use crate::config::sources::Given;
use crate::exit::Exit;

/// A round-robin TCP load balancer: one port, many processes.
///
/// Runs in the foreground, as a container's entrypoint or a service.
#[derive(Debug, Parser)]
#[command(
    name = "roundsman",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true
)]
#[command(
    override_usage = "roundsman [OPTIONS] -- COMMAND [ARG]...\n       roundsman -l ADDR -u ADDR [-u ADDR]...\n       roundsman -c FILE"
)]
#[command(after_help = "Examples:\n  \
    roundsman -- node app.js           one process per CPU, on the app's port\n  \
    roundsman -l 80 -i 4 -- ./server   four copies of a server behind port 80\n  \
    roundsman -l 80 -u 10.0.0.5:80     a TCP proxy\n  \
    roundsman -c roundsman.toml        several services, one daemon")]
pub struct Cli {
    /// A control command, instead of running a service.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Run in the background; return when online
    ///
    /// When every service is, or with the daemon's error and exit code. Its log is NAME.log in $XDG_STATE_HOME/roundsman, ~/.local/state/roundsman, or
    /// for root /var/log/roundsman.
    #[arg(short, long, alias = "daemon")]
    pub detach: bool,
    /// The options of a service.
    #[command(flatten)]
    pub run: Options,
}

/// Control commands and roles.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a demo: four built-in HTTP servers behind one port
    Demo(Demo),
    /// Validate options; print them with their origins
    Check(Box<Options>),
    /// Show services and slots of the running daemons
    #[command(aliases = ["list", "status", "ps", "describe", "desc", "show", "info"])]
    Ls(Ls),
    /// Show them on a full screen, with keys to act
    ///
    /// Services, slots and upstreams with their rates, waits, CPU and memory, asked once a second. Keys reload, restart,
    /// drain, scale, stop and show logs; ? lists them.
    #[command(alias = "monit")]
    Top(Target),
    /// Show output and events of servers: logs -f web/0
    Logs(Logs),
    /// Show what happened: starts, exits, reloads; -f follows
    ///
    /// The last events of the daemon, and with -f those to come until it ends. With --json one object per line: number, time,
    /// level, event (its kind), service, slot, pid, message, fields.
    Events(Events),
    /// Show messages that servers in Node sent with process.send
    Messages(Lines),
    /// Send a message to servers in Node: send web '{"a":1}'
    #[command(override_usage = "roundsman send [NAME[/SLOT]] JSON")]
    Send(Send),
    /// Exit with 0 if every service has a worker online
    Health(Targets),
    /// Replace all workers without losing a request
    ///
    /// One at a time, each after its replacement is online. The configuration file, if there is one, is read again
    /// and its changes are applied; a mistake in it changes nothing. NAME/SLOT replaces the worker of one slot, with the
    /// configuration in force.
    Reload(Places),
    /// Stop all workers, then start new ones; clients wait
    ///
    /// NAME/SLOT stops and starts the worker of one slot; the others go on.
    Restart(Places),
    /// Keep new connections from a slot or upstream: drain web/2
    ///
    /// Connections that are open go on. A slot stays drained, also when its worker is replaced, until undrain; so does an
    /// upstream (web@10.0.0.5:6379), while the configuration has it.
    Drain(Drain),
    /// Give a slot or upstream new connections again
    Undrain(Places),
    /// Set the share of a slot or upstream: weight web/2 5
    ///
    /// 0 to 256; all begin with 1, or what --upstream says. 0: no new connections. A slot's weight stays when its worker is
    /// replaced, until the daemon ends; an upstream's until the configuration file has another one.
    Weight(Weight),
    /// Stop all workers; the daemon stays
    ///
    /// Clients are refused meanwhile.
    Stop(Targets),
    /// Start services that were stopped
    Start(Targets),
    /// End the daemon and everything that it runs
    ///
    /// Gracefully, as with SIGTERM; returns when it is gone.
    #[command(alias = "kill")]
    Quit(Targets),
    /// Run a new version of roundsman in place of a daemon
    ///
    /// In the same process: pid, servers, connections, counters and weights stay. FILE is tried first; if it cannot go on, nothing changes.
    Upgrade(upgrade::Upgrade),
    /// Print a systemd unit for a daemon that runs, or a file
    Unit(Unit),
    /// Set the number of slots: 4, +1, -1
    #[command(override_usage = "roundsman scale [NAME] N")]
    Scale(Scale),
    /// Convert a PM2 ecosystem file to a configuration file
    Import(Import),
    /// Print completions for a shell: bash, zsh, fish, …
    Completions(Completions),
    /// Print the manual page
    ///
    /// With a directory: write the pages of all commands there.
    Man(Man),
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Address to listen on
    #[arg(short, long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: ListenAddr,
    /// Number of servers, max, or -1
    #[arg(short, long, value_name = "N", default_value = "4", allow_hyphen_values = true)]
    pub instances: Instances,
    /// Balancing: rr, least-conn, ip-hash, hash, none
    #[arg(short, long, value_name = "POLICY", default_value = "rr", value_parser = policy)]
    pub policy: Policy,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Print one JSON object per daemon and line
    #[arg(long)]
    pub json: bool,
    /// Print it again every 2 seconds, or every SECONDS
    ///
    /// A terminal shows the latest; anything else gets one after the other.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "")]
    pub watch: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    pub lines: Lines,
    /// Leave out the daemon's own events (starts, exits, reloads)
    #[arg(long)]
    pub no_events: bool,
}

/// Which lines are shown, and how.
#[derive(Debug, Args)]
pub struct Lines {
    /// Service, or one slot of it [default: all services of the only daemon]
    #[arg(value_name = "NAME[/SLOT]")]
    pub of: Option<String>,
    /// Follow new output
    #[arg(short, long)]
    pub follow: bool,
    /// Show the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "50", value_parser = |text: &str| number(text, 0..=u32::MAX))]
    pub lines: u32,
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Service, or one slot of it [default: all services of the only daemon]
    #[arg(value_name = "NAME[/SLOT]")]
    pub of: Option<String>,
    /// Follow new events until the daemon ends
    #[arg(short, long)]
    pub follow: bool,
    /// Show the last N events; 256 are kept
    #[arg(short = 'n', long, value_name = "N", default_value = "50", value_parser = |text: &str| number(text, 0..=u32::MAX))]
    pub lines: u32,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Send {
    /// Service or one slot of it [default: all], and the message as JSON
    #[arg(value_name = "[NAME[/SLOT]] JSON", num_args = 1..=2, required = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Import {
    /// Ecosystem file: ecosystem.config.js, .cjs, .json, .yaml
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Use the variables of env_NAME, like pm2 start --env NAME
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,
}

#[derive(Debug, Args)]
pub struct Unit {
    /// For systemd --user: yours, without root
    #[arg(long)]
    pub user: bool,
    /// Run this file, instead of what a daemon runs now
    #[arg(short, long, value_name = "FILE", conflicts_with = "name")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
pub struct Completions {
    /// Shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// Directory for the pages of all commands
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// Which daemon a verb speaks to.
#[derive(Debug, Args)]
pub struct Target {
    /// Service [default: all of the only daemon]
    pub name: Option<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

/// Which services a verb speaks to.
#[derive(Debug, Args)]
pub struct Targets {
    /// Services, or all [default: all of the only daemon]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

/// Which services, or slots of them, a verb speaks to.
#[derive(Debug, Args)]
pub struct Places {
    /// Services or slots, or all [default: all of the only daemon]
    #[arg(value_name = "NAME[/SLOT]")]
    pub names: Vec<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Drain {
    /// Slots
    #[arg(value_name = "NAME/SLOT", required = true)]
    pub names: Vec<String>,
    /// Wait until no connection is open there
    #[arg(long)]
    pub wait: bool,
    /// Drain the last slot that takes connections, too
    #[arg(long)]
    pub force: bool,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Weight {
    /// Slot, or upstream by its address
    #[arg(value_name = "NAME/SLOT|NAME@ADDR")]
    pub place: String,
    /// 0 to 256
    #[arg(value_name = "N", allow_hyphen_values = true)]
    pub weight: String,
    /// Set 0 for the last one that takes connections, too
    #[arg(long)]
    pub force: bool,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// Service [default: the only one], and number of slots; +N and -N change it
    #[arg(value_name = "[NAME] N", num_args = 1..=2, required = true, allow_negative_numbers = true)]
    pub words: Vec<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

impl Scale {
    /// The number and the service, given in either order.
    ///
    /// # Errors
    /// [`USAGE`] without a number.
    pub fn meant(self) -> Result<(Change, Target), Exit> {
        let refused = |why: String| Exit::new(USAGE, format!("scale: {why}"));
        let control = self.control;
        let target = |name: Option<String>| Target { name, control };
        let mut words = self.words.into_iter();
        match (words.next(), words.next()) {
            (Some(to), None) => Ok((to.parse().map_err(refused)?, target(None))),
            (Some(to), Some(name)) if to.parse::<Change>().is_ok() => {
                Ok((to.parse().map_err(refused)?, target(Some(name))))
            }
            (Some(name), Some(to)) => Ok((to.parse().map_err(refused)?, target(Some(name)))),
            (None, _) => Err(refused("a number is needed: 4, +1, -1".to_owned())),
        }
    }
}

/// Parses the command line of this process; also returns the values that were given.
///
/// # Errors
/// Help, version, or a usage error with a hint.
pub fn parse() -> Result<(Cli, Given), clap::Error> {
    let short = std::env::args_os().take_while(|word| word != "--").any(|word| word == "-h");
    // The short help fits a screen; --help names the variables and the rarer options.
    let command = if short { brief(Cli::command()) } else { Cli::command() };
    let words = slips::verb_first(std::env::args_os().collect(), &command);
    let matches = command.try_get_matches_from(&words).map_err(|error| slips::explain(error, &words))?;
    let given = Given::from(matches.subcommand_matches("check").unwrap_or(&matches));
    Ok((Cli::from_arg_matches(&matches)?, given))
}

/// Commands that the short help leaves out.
const RARE: [&str; 6] = ["messages", "send", "undrain", "upgrade", "completions", "man"];

fn brief(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| arg.hide_env(true));
    RARE.iter().fold(command, |command, rare| command.mut_subcommand(rare, |rare| rare.hide(true)))
}

/// As [`parse`], for the given words.
///
/// # Errors
/// As [`parse`].
pub fn parse_words(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<(Cli, Given), clap::Error> {
    let matches = Cli::command().try_get_matches_from(words)?;
    let given = Given::from(&matches);
    Ok((Cli::from_arg_matches(&matches)?, given))
}

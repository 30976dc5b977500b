//! `--via`: how connections reach the server, as far as the command's file tells.

use nix::sys::prctl;

use super::error::{ConfigError, Kind};
use super::options::Via;
use super::sources::COMMAND;
use super::upstream::WeightedUpstream;
use super::{Backend, Chosen, Inherited};
use crate::addr::{Listen, ListenAddr};
use crate::program::command::CommandLine;
use crate::program::elf;
use crate::proxy_protocol::sending::Version;

#[derive(Debug)]
pub struct Choice {
    pub backend: Backend,
    pub reason: String,
    pub chosen: Chosen,
    /// Direct: by answering the server's system calls.
    pub seccomp: bool,
}

///
/// # Errors
/// When options exclude each other or the command, with what to do.
pub fn choose(
    via: Via,
    send_proxy: Option<Version>,
    command: Option<CommandLine>,
    upstreams: Vec<WeightedUpstream>,
    listen: &[Listen],
    inherited: Inherited,
    portless: bool,
) -> Result<Choice, ConfigError> {
    if portless {
        let command = command.ok_or_else(|| Kind::NeedsCommand.of("no-listen"))?;
        let reason = "it serves no port".to_owned();
        return Ok(Choice { backend: Backend::NoPort(command), reason, chosen: Chosen::AsAsked, seccomp: false });
    }
    let served = !listen.is_empty() || inherited == Inherited::Some;
    let command = match command {
        Some(command) if upstreams.is_empty() => return for_command(via, send_proxy, command, listen, served),
        other => other,
    };
    if via == Via::Direct {
        return Err(Kind::DirectToUpstream.of("via"));
    }
    let reason = match command {
        Some(_) => "the command listens on the upstream's address",
        None => "an upstream is given",
    };
    can_relay(listen, served, reason)?;
    let (backend, reason) = (Backend::Upstreams(upstreams, command), reason.to_owned());
    Ok(Choice { backend, reason, chosen: Chosen::AsAsked, seccomp: false })
}

fn for_command(
    via: Via,
    send_proxy: Option<Version>,
    command: CommandLine,
    listen: &[Listen],
    served: bool,
) -> Result<Choice, ConfigError> {
    let obstacle = match via {
        Via::Relay => Some(Obstacle::Final("relay was asked for".to_owned())),
        _ if send_proxy.is_some() => Some(Obstacle::Final("--send-proxy".to_owned())),
        Via::Auto | Via::Direct => obstacle(&command, listen)?,
    };
    // What a keeper costs the server is no_new_privs.
    let costs_nothing = || prctl::get_no_new_privs().unwrap_or(false);
    let seccomp =
        matches!(obstacle, Some(Obstacle::RawCalls(_))) && (via == Via::Direct || via == Via::Auto && costs_nothing());
    let (backend, reason, chosen) = match (via, obstacle) {
        (Via::Direct, Some(Obstacle::RawCalls(reason))) => (Backend::Direct(command), reason, Chosen::AsAsked),
        (_, Some(Obstacle::RawCalls(reason))) if seccomp => {
            let reason = format!("{reason}; no_new_privs is set anyway, so these can be answered");
            (Backend::Direct(command), reason, Chosen::ByUs)
        }
        (Via::Direct, Some(Obstacle::Final(obstacle))) => {
            return Err(Kind::DirectImpossible { obstacle }.of("via"));
        }
        (_, Some(Obstacle::RawCalls(reason) | Obstacle::Final(reason))) => {
            can_relay(listen, served, &reason)?;
            (Backend::Relayed(command), reason, Chosen::AsAsked)
        }
        (Via::Direct, None) => (Backend::Direct(command), "direct was asked for".to_owned(), Chosen::AsAsked),
        (_, None) => (Backend::Direct(command), "the command can be preloaded".to_owned(), Chosen::ByUs),
    };
    Ok(Choice { backend, reason, chosen, seccomp })
}

/// Why the preload library is of no use.
enum Obstacle {
    /// The program makes its system calls itself. They can be answered, where the kernel and its rights allow that.
    RawCalls(String),
    Final(String),
}

fn obstacle(command: &CommandLine, listen: &[Listen]) -> Result<Option<Obstacle>, ConfigError> {
    if listen.iter().any(|listen| matches!(listen.address, ListenAddr::Unix(_))) {
        return Ok(Some(Obstacle::Final("a Unix socket's connections are relayed".to_owned())));
    }
    let served: Vec<u16> = listen.iter().filter_map(Listen::served_port).collect();
    if let Some(port) = served.iter().enumerate().find_map(|(at, port)| served[..at].contains(port).then_some(port)) {
        let why = format!("several addresses stand for port {port}, and a server listens there once");
        return Ok(Some(Obstacle::Final(why)));
    }
    let refused = |error| Kind::Command(error).of(COMMAND);
    let program = command.last_program().map_err(refused)?;
    Ok(elf::examine(&program).err().map(|obstacle| match obstacle.is_raw_calls() {
        true => Obstacle::RawCalls(obstacle.to_string()),
        false => Obstacle::Final(obstacle.to_string()),
    }))
}

/// Whether a service can be relayed.
///
/// # Errors
/// Without a listener; with an APP_PORT: a server behind a relay gets a port of its own.
pub fn can_relay(listen: &[Listen], served: bool, reason: &str) -> Result<(), ConfigError> {
    if !served {
        return Err(Kind::ListenRequired { reason: reason.to_owned() }.of("listen"));
    }
    match listen.iter().find(|listen| listen.app_port.is_some()) {
        Some(listen) => Err(Kind::AppPort { listen: listen.clone(), reason: reason.to_owned() }.of("listen")),
        None => Ok(()),
    }
}

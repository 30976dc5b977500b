//! `--via`: how connections reach the server, as far as the command's file tells.

use super::options::ViaArg;
use super::{Backend, Chosen, Inherited, usage};
use crate::addr::{Listen, ListenAddr, Upstream};
use crate::exit::Exit;
use crate::program::command::CommandLine;
use crate::program::elf;

/// A delivery, and why.
#[derive(Debug)]
pub struct Choice {
    pub backend: Backend,
    /// For people.
    pub reason: String,
    /// Who chose.
    pub chosen: Chosen,
}

/// Chooses.
///
/// # Errors
/// What contradicts what, and what to do.
pub fn choose(
    via: ViaArg,
    command: Option<CommandLine>,
    upstreams: Vec<Upstream>,
    listen: &[Listen],
    inherited: Inherited,
    portless: bool,
) -> Result<Choice, Exit> {
    if portless {
        let command = command.ok_or_else(|| usage("--no-listen needs a command"))?;
        let reason = "--no-listen".to_owned();
        return Ok(Choice { backend: Backend::NoPort(command), reason, chosen: Chosen::AsAsked });
    }
    let served = !listen.is_empty() || inherited == Inherited::Some;
    let command = match command {
        Some(command) if upstreams.is_empty() => return for_command(via, command, listen, served),
        other => other,
    };
    if via == ViaArg::Direct {
        return Err(usage("--via direct hands connections to a command: give one, without --upstream"));
    }
    let reason = match command {
        Some(_) => "--upstream names where the command listens",
        None => "--upstream names where connections go",
    };
    can_relay(listen, served, reason)?;
    Ok(Choice { backend: Backend::Upstreams(upstreams, command), reason: reason.to_owned(), chosen: Chosen::AsAsked })
}

fn for_command(via: ViaArg, command: CommandLine, listen: &[Listen], served: bool) -> Result<Choice, Exit> {
    let obstacle = match via {
        ViaArg::Relay => Some("--via relay".to_owned()),
        ViaArg::Auto | ViaArg::Direct => obstacle(&command, listen)?,
    };
    let (backend, reason, chosen) = match (via, obstacle) {
        (ViaArg::Direct, Some(obstacle)) => {
            return Err(usage(&format!("--via direct cannot be: {obstacle}; use --via relay")));
        }
        (_, Some(reason)) => {
            can_relay(listen, served, &reason)?;
            (Backend::Relayed(command), reason, Chosen::AsAsked)
        }
        (ViaArg::Direct, None) => (Backend::Direct(command), "--via direct".to_owned(), Chosen::AsAsked),
        (_, None) => (Backend::Direct(command), "the command can be preloaded".to_owned(), Chosen::ByUs),
    };
    Ok(Choice { backend, reason, chosen })
}

fn obstacle(command: &CommandLine, listen: &[Listen]) -> Result<Option<String>, Exit> {
    if listen.iter().any(|listen| matches!(listen.address, ListenAddr::Unix(_))) {
        return Ok(Some("a Unix socket's connections are relayed".to_owned()));
    }
    let served: Vec<u16> = listen.iter().filter_map(Listen::served_port).collect();
    if let Some(port) = served.iter().enumerate().find_map(|(at, port)| served[..at].contains(port).then_some(port)) {
        return Ok(Some(format!("several addresses stand for port {port}, and a server listens there once")));
    }
    Ok(elf::examine(&command.program()?).err())
}

/// What relaying needs.
///
/// # Errors
/// Without a listener; with an APP_PORT: a server behind a relay gets a port of its own.
pub fn can_relay(listen: &[Listen], served: bool, reason: &str) -> Result<(), Exit> {
    if !served {
        return Err(usage(&format!(
            "delivery by relay ({reason}) needs --listen: where shall clients connect? (for example -l 8080)"
        )));
    }
    if let Some(Listen { address, app_port: Some(app) }) = listen.iter().find(|listen| listen.app_port.is_some()) {
        return Err(usage(&format!(
            "--listen {address}={app} is for direct delivery; behind a relay ({reason}) a server gets its port as PORT"
        )));
    }
    Ok(())
}

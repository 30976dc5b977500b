//! What a service's workers consist of: its configured backend, with all that starting one takes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use thiserror::Error;

use crate::abi::attach::HAS_TRANSLATIONS;
use crate::config::error::{ConfigError, Kind};
use crate::config::{Backend, Chosen, ServiceConfig, delivery};
use crate::direct::attach::{Secret, hex};
use crate::direct::{Preload, Target};
use crate::program::command::{CommandError, CommandLine};
use crate::program::elf;
use crate::sys::reason;

/// Why a service cannot have its workers.
#[derive(Debug, Error)]
pub enum DeliveryError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("cannot open the attach socket: {}", reason(.0))]
    Attach(io::Error),
}

#[derive(Debug, Clone)]
pub enum Delivery {
    Direct(CommandLine, Arc<Library>),
    /// Without a command: to upstreams.
    Relay(Option<CommandLine>),
    NoPort(CommandLine),
}

/// The preload library, and where it finds the master.
#[derive(Debug)]
pub struct Library {
    preload: Preload,
    attach: String,
}

/// A place for the library from which a command loads it, or why there is none.
///
/// # Errors
/// When there is no such command.
pub fn find(command: &CommandLine, config: &ServiceConfig) -> Result<Result<Preload, String>, CommandError> {
    let wrapped = command.wrapped();
    let program = wrapped.as_ref().map_or_else(|| command.program(), |(_, program)| Ok(program.clone()))?;
    Ok(elf::examine(&program).map_err(|obstacle| obstacle.to_string()).and_then(|program| {
        let wrapped = wrapped.map(|(wrapped, _)| wrapped);
        Preload::find(&Target { command, program: &program, wrapped, user: config.user.as_ref() })
    }))
}

impl Library {
    /// A descriptor that servers inherit, to find it.
    pub fn inherited(&self) -> Option<BorrowedFd<'_>> {
        self.preload.inherited()
    }

    /// Where it is, in words.
    pub fn place(&self) -> String {
        self.preload.place()
    }

    /// The value of LD_PRELOAD.
    pub fn value(&self) -> String {
        self.preload.value()
    }

    /// Tells a worker's library whom to ask, as whom, and whether there is a record of translated addresses.
    pub fn variable(&self, secret: &Secret, translates: bool) -> String {
        format!("{}:{}{}", self.attach, hex(secret), if translates { HAS_TRANSLATIONS } else { "" })
    }
}

impl Delivery {
    /// Finds a place for the library of a service whose command seems fit for it. Where there is none and the choice is
    /// ours, the service becomes one by relay. `attach` opens the attach socket, if need be, and returns its name.
    ///
    /// # Errors
    /// When direct delivery was asked for and cannot be, or when relaying cannot be either.
    pub fn prepare(
        config: &mut ServiceConfig,
        inherited: bool,
        attach: impl FnOnce() -> io::Result<String>,
    ) -> Result<Self, DeliveryError> {
        let command = match &config.backend {
            Backend::Direct(command) => command.clone(),
            Backend::Relayed(command) => return Ok(Self::Relay(Some(command.clone()))),
            Backend::Upstreams(..) => return Ok(Self::Relay(None)),
            Backend::NoPort(command) => return Ok(Self::NoPort(command.clone())),
        };
        match (find(&command, config)?, config.chosen) {
            (Ok(preload), _) => Ok(Self::Direct(
                command,
                Arc::new(Library { preload, attach: attach().map_err(DeliveryError::Attach)? }),
            )),
            (Err(obstacle), Chosen::AsAsked) => Err(Kind::DirectImpossible { obstacle }.of("via").into()),
            (Err(reason), Chosen::ByUs) => {
                delivery::can_relay(&config.listen, inherited || !config.listen.is_empty(), &reason)?;
                config.backend = Backend::Relayed(command.clone());
                config.via_reason = reason;
                Ok(Self::Relay(Some(command)))
            }
        }
    }
}

//! What a service's workers consist of: its configured backend, with all that starting one takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::abi::attach::HAS_TRANSLATIONS;
use crate::accept::policy::Policy;
use crate::config::error::{ConfigError, Kind};
use crate::config::options::DrainIdle;
use crate::config::{Backend, Chosen, ServiceConfig, delivery};
use crate::direct::attach::{Secret, hex};
use crate::direct::keeping::Keeping;
use crate::direct::{INHERITED_FD, Preload, PreloadRecord, Target};
use crate::keeper::gives::Gives;
use crate::launch::Launched;
use crate::program::command::{CommandError, CommandLine};
use crate::program::elf;
use crate::program::wrapper::Wrapped;
use crate::record::{Found, Kept};
use crate::sys::{image, mmap, reason};

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

/// What hands servers their connections, and where it finds the master.
#[derive(Debug)]
pub struct Library {
    means: Means,
    attach: String,
}

#[derive(Debug)]
enum Means {
    Preload(Preload),
    /// The server's parent answers its system calls. With our image, where wrappers start it.
    Keeper(Option<OwnedFd>),
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
    fn preload(&self) -> Option<&Preload> {
        match &self.means {
            Means::Preload(preload) => Some(preload),
            Means::Keeper(_) => None,
        }
    }

    /// A descriptor that servers inherit, to find it.
    pub fn inherited(&self) -> Option<BorrowedFd<'_>> {
        match &self.means {
            Means::Preload(preload) => preload.inherited(),
            Means::Keeper(image) => image.as_ref().map(AsFd::as_fd),
        }
    }

    /// Where the preload library is, in words.
    pub fn place(&self) -> Option<String> {
        self.preload().map(Preload::place)
    }

    /// The value of LD_PRELOAD, where that is how it comes into the server.
    ///
    /// # Errors
    /// As [`Preload::value`].
    pub fn value(&self) -> io::Result<Option<String>> {
        self.preload().map(Preload::value).transpose()
    }

    /// Whether the process that is started is, or becomes, a keeper, and the server its child.
    pub fn is_keeper(&self) -> bool {
        matches!(self.means, Means::Keeper(_))
    }

    /// What is started.
    pub fn launched(&self, policy: Policy) -> Launched {
        let gives = if policy == Policy::None { Gives::Listeners } else { Gives::Queues };
        match self.means {
            Means::Preload(_) => Launched::Itself,
            Means::Keeper(None) => Launched::Kept(gives),
            Means::Keeper(Some(_)) => Launched::KeptBehind(gives),
        }
    }

    /// Tells a worker's library or keeper whom to ask, as whom, and whether there is a record of translated addresses.
    pub fn variable(&self, secret: &Secret, translates: bool) -> String {
        format!("{}:{}{}", self.attach, hex(secret), if translates { HAS_TRANSLATIONS } else { "" })
    }
}

/// The same in a daemon's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LibraryRecord {
    /// `None`: a keeper.
    preload: Option<PreloadRecord>,
    /// Wrappers start the keeper.
    #[serde(default)]
    by_wrappers: bool,
    attach: String,
}

impl Library {
    pub fn record(&self, kept: &mut Kept) -> LibraryRecord {
        let Self { means, attach } = self;
        LibraryRecord {
            preload: self.preload().map(|preload| preload.record(kept)),
            by_wrappers: matches!(means, Means::Keeper(Some(_))),
            attach: attach.clone(),
        }
    }

    /// # Errors
    /// When its file is not there.
    pub fn adopt(record: LibraryRecord, found: &mut Found) -> io::Result<Self> {
        let LibraryRecord { preload, by_wrappers, attach } = record;
        let means = match preload {
            Some(preload) => Means::Preload(Preload::adopt(preload, found)?),
            None => Means::Keeper(by_wrappers.then(inherited_image).transpose()?),
        };
        Ok(Self { means, attach })
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
        let attach = || attach().map_err(DeliveryError::Attach);
        if config.seccomp {
            return Self::keep(config, command, inherited, attach);
        }
        match (find(&command, config)?, config.chosen) {
            (Ok(preload), _) => {
                Ok(Self::Direct(command, Arc::new(Library { means: Means::Preload(preload), attach: attach()? })))
            }
            (Err(obstacle), Chosen::AsAsked) => Err(Kind::DirectImpossible { obstacle }.of("via").into()),
            (Err(reason), Chosen::ByUs) => {
                delivery::can_relay(&config.listen, inherited || !config.listen.is_empty(), &reason)?;
                config.backend = Backend::Relayed(command.clone());
                config.via_reason = reason;
                Ok(Self::Relay(Some(command)))
            }
        }
    }

    /// For a command that makes its system calls itself: a keeper answers them, where that is possible and does all that is asked
    /// for; else its connections are relayed.
    fn keep(
        config: &mut ServiceConfig,
        command: CommandLine,
        inherited: bool,
        attach: impl FnOnce() -> Result<String, DeliveryError>,
    ) -> Result<Self, DeliveryError> {
        let program = command.program()?;
        let wrapped = command.wrapped().map(|(wrapped, _)| wrapped);
        let wrappers = wrapped.as_ref().map(|wrapped| (program.as_path(), wrapped));
        let find = || {
            let image = wrappers.map(|_| inherited_image()).transpose().map_err(|error| reason(&error))?;
            let keeping = Keeping::find(config.user.as_ref(), wrappers, image.as_ref().map(AsFd::as_fd))?;
            Ok((keeping, image))
        };
        match not_kept(config, wrapped.as_ref()).map_or_else(find, Err) {
            Ok((keeping, image)) => {
                if keeping == Keeping::WithoutOptions {
                    config.via_reason +=
                        "; options that it sets on its listening sockets are lost (pidfd_getfd is not permitted)";
                }
                let library = Library { means: Means::Keeper(image), attach: attach()? };
                Ok(Self::Direct(command, Arc::new(library)))
            }
            Err(obstacle) => {
                let reason = format!("{}, and cannot be served directly: {obstacle}", config.via_reason);
                delivery::can_relay(&config.listen, inherited || !config.listen.is_empty(), &reason)?;
                if config.chosen == Chosen::AsAsked {
                    warn!(service = %config.name, "--via direct: {reason}; its connections are relayed");
                }
                config.backend = Backend::Relayed(command.clone());
                config.seccomp = false;
                config.via_reason = reason;
                Ok(Self::Relay(Some(command)))
            }
        }
    }
}

/// Our image, at a number where wrappers leave it alone.
fn inherited_image() -> io::Result<OwnedFd> {
    mmap::above(image::own()?, INHERITED_FD)
}

/// What a service asks for that a keeper does not do: it sees no close, and nothing that is read or written.
fn not_kept(config: &ServiceConfig, wrapped: Option<&Wrapped>) -> Option<String> {
    if let Some(stays) = wrapped.and_then(Wrapped::stays) {
        return Some(format!("{stays} stays between the daemon and the server"));
    }
    let asked = [
        (config.access.is_some(), "--access-log"),
        (config.proxy_from.is_some(), "--proxy-from"),
        (config.limits.worker_conns.is_some(), "--worker-conns"),
        (config.limits.max_conns.is_some(), "--max-conns"),
        (config.limits.drain_idle == DrainIdle::Move, "--drain-idle move"),
    ];
    let option = asked.into_iter().find_map(|(asked, option)| asked.then_some(option))?;
    Some(format!("{option} needs what only the preload library or a relay worker sees"))
}

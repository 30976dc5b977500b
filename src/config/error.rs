//! What is wrong with the options of a service, in the words of flags or of a configuration file.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::MAX_ADDRESSES;
use super::sources::COMMAND;
use super::user::UserError;
use crate::addr::{Listen, ListenAddr, Upstream};
use crate::program::command::{Advice, CommandError};

/// A mistake, and the key that it is about: a flag's long name, or [`COMMAND`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .kind.text(.key, Form::Flags))]
pub struct ConfigError {
    pub key: String,
    pub kind: Kind,
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    #[error(transparent)]
    Options(#[from] ConfigError),
    /// A flag, or a variable, says what only one of several services can be.
    #[error("{} is for one service, {} has several: set it in the file", Form::Flags.name(.key), .path.display())]
    ForOneService { key: &'static str, path: PathBuf },
    #[error("{0}")]
    Unreadable(String),
    /// All mistakes of a file, with their places.
    #[error("{} has {count} error{}\n\n{report}", .path.display(), if *.count == 1 { "" } else { "s" })]
    Mistakes { path: PathBuf, count: usize, report: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Neither a command nor an upstream.
    Nothing,
    TooMany,
    Repeated(ListenAddr),
    /// Another service has the address.
    Taken {
        address: ListenAddr,
        service: String,
    },
    /// An upstream that is a listener of the same service.
    Loop {
        upstream: Upstream,
        listener: ListenAddr,
    },
    /// A file or directory that cannot be used.
    Path {
        path: String,
        reason: String,
    },
    User {
        user: String,
        reason: UserError,
    },
    Name(String),
    /// A percentage, where no limit of memory can be found.
    NoMemoryLimit,
    Command(CommandError),
    /// The key excludes this other one.
    Excludes(&'static str),
    /// The key means something only with this other one.
    Needs(&'static str),
    /// An option about connections that the master accepts, where workers accept by themselves.
    WorkersAccept,
    /// An option about clients' addresses, where all listeners are Unix sockets.
    NeedsAddresses,
    /// The key means something only for a command.
    NeedsCommand,
    /// `--via direct` beside an upstream.
    DirectToUpstream,
    DirectImpossible {
        obstacle: String,
    },
    /// Delivery by relay, without a listener.
    ListenRequired {
        reason: String,
    },
    /// Delivery by relay, with an APP_PORT.
    AppPort {
        listen: Listen,
        reason: String,
    },
    /// `--node-ipc cluster`, without direct delivery.
    ClusterByRelay,
    /// `--drain-idle move`, where a connection's worker depends on a request.
    MovesWithoutKey,
    /// `--drain-spread` with direct delivery.
    SpreadsRelay,
    /// More than `--drain-timeout`.
    SpreadTooLong,
    /// The key means something only with this policy.
    NeedsPolicy(&'static str),
    /// `--hash-on socket.io`, where no worker can report sessions: why, and what to do.
    NoSessions(&'static str),
    /// `--slow-start`, with a policy under which shares do not grow: why.
    SlowStart(&'static str),
    /// Recycling, where no slot has a server of its own.
    NoServerInSlot,
    /// A limit of connections, where the master does not hand them out.
    NotCounted,
    /// `after`, without a file.
    NeedsFile,
    /// `after` names a service that is not there.
    NoService {
        name: String,
        known: String,
    },
    /// `after` leads back: the way.
    Circle(String),
    /// What the parser of the options says.
    Unparsed(String),
}

/// Whose words a message is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `--listen 8080`
    Flags,
    /// `listen = 8080`
    File,
}

impl Form {
    /// A key by its name.
    fn name(self, key: &str) -> String {
        match self {
            Self::Flags if key == COMMAND => "a command".to_owned(),
            Self::Flags => format!("--{key}"),
            Self::File => format!("`{key}`"),
        }
    }

    /// A key with its value.
    fn set(self, key: &str, value: &dyn Display) -> String {
        match self {
            Self::Flags => format!("--{key} {value}"),
            Self::File => format!("`{key}` {value}"),
        }
    }

    /// The line that would be right.
    fn example(self, key: &str, value: &str) -> String {
        match self {
            Self::Flags => format!("--{key} {value}"),
            Self::File if value.parse::<u16>().is_ok() => format!("`{key} = {value}`"),
            Self::File => format!("`{key} = \"{value}\"`"),
        }
    }
}

impl ConfigError {
    /// The message in the words of a configuration file.
    pub fn in_file(&self) -> String {
        self.kind.text(&self.key, Form::File)
    }
}

impl Kind {
    pub fn of(self, key: &str) -> ConfigError {
        ConfigError { key: key.to_owned(), kind: self }
    }

    fn text(&self, key: &str, form: Form) -> String {
        let key_name = form.name(key);
        match self {
            Self::Nothing if form == Form::Flags => {
                "nothing to serve: give a command (-- ./server) or an upstream (--upstream HOST:PORT)".to_owned()
            }
            Self::Nothing => "nothing to serve: `command` or `upstream` is missing".to_owned(),
            Self::TooMany => format!("{key_name} is given more than {MAX_ADDRESSES} times"),
            Self::Repeated(address) => format!("{key_name}: {address} is given twice"),
            Self::Taken { address, service } => {
                format!("{key_name}: the service {service} listens on {address}, too")
            }
            Self::Loop { upstream, listener } => format!(
                "{} is this proxy's own listener on {listener}; give the server's address",
                form.set(key, upstream)
            ),
            Self::Path { path, reason } => format!("{}: {reason}", form.set(key, path)),
            Self::User { user, reason } => format!("{}: {reason}", form.set(key, user)),
            Self::Name(name) => {
                format!("invalid name {name:?}: use 1 to 64 letters, digits, '-', '_' and '.'; not starting with a dot")
            }
            Self::NoMemoryLimit => format!(
                "{key_name}: the memory limit is unknown here; give a size, e.g. {}",
                form.example(key, "512MiB")
            ),
            Self::Command(error) => command(error, form),
            Self::Excludes(other) => format!("{key_name} cannot be combined with {}", form.name(other)),
            Self::Needs(other) => format!("{key_name} needs {}", form.name(other)),
            Self::WorkersAccept => format!(
                "{key_name} cannot be kept with {}: workers accept by themselves there; use {}, {} or {}",
                form.example("policy", "none"),
                form.example("policy", "rr"),
                form.example("policy", "least-conn"),
                form.example("policy", "ip-hash")
            ),
            Self::NeedsAddresses => format!(
                "{key_name} needs a TCP address in {}: clients of Unix sockets have no address",
                form.name("listen")
            ),
            Self::NeedsCommand => format!("{key_name} needs {}", form.name(COMMAND)),
            Self::DirectToUpstream => {
                format!("{} delivers to a command, not to {}", form.set(key, &"direct"), form.name("upstream"))
            }
            Self::DirectImpossible { obstacle } => {
                format!("{} is impossible: {obstacle}; use {}", form.set(key, &"direct"), form.example(key, "relay"))
            }
            Self::ListenRequired { reason } => {
                format!("{key_name} is required for relay delivery ({reason}), e.g. {}", form.example(key, "8080"))
            }
            Self::AppPort { listen, reason } => {
                let given = form.set(key, listen);
                format!("{given} needs direct delivery; with relay ({reason}) the server gets its port as PORT")
            }
            Self::ClusterByRelay => {
                format!("{} needs direct delivery; use {}", form.set(key, &"cluster"), form.example(key, "plain"))
            }
            Self::SpreadsRelay => format!(
                "{key_name} needs relayed connections: with direct delivery they are the server's, which ends them itself; use {}",
                form.example("via", "relay")
            ),
            Self::SpreadTooLong => {
                format!("{key_name} is longer than {}, which ends what is left", form.name("drain-timeout"))
            }
            Self::MovesWithoutKey => format!(
                "{} cannot be combined with {}, except {}: an idle connection has no request to look at, so any worker would get it; use {}",
                form.set(key, &"move"),
                form.name("hash-on"),
                form.example("hash-on", "source"),
                form.example(key, "close")
            ),
            Self::NeedsPolicy(policy) => format!("{key_name} needs {}", form.example("policy", policy)),
            Self::NoSessions(why) => {
                format!("{} needs workers that report their sessions by Node's IPC; {why}", form.set(key, &"socket.io"))
            }
            Self::SlowStart(why) => format!(
                "{key_name} needs {} or {}; with the policy given {why}",
                form.set("policy", &"rr"),
                form.set("policy", &"least-conn"),
            ),
            Self::NoServerInSlot => format!(
                "{key_name} replaces a server while its successor serves; with {} no slot has a server of its own",
                form.name("upstream")
            ),
            Self::NotCounted => format!(
                "{key_name} counts connections that roundsman hands out; with {} workers take them themselves: use {}",
                form.set("policy", &"none"),
                form.name("max-age")
            ),
            Self::NeedsFile => format!("{key_name} names other services of a file; use it there, with --config"),
            Self::NoService { name, known } => {
                format!("{key_name}: there is no service {name:?} in the file; here are {known}")
            }
            Self::Circle(way) => format!("{key_name} goes in a circle, so that none could start: {way}"),
            Self::Unparsed(why) => format!("{key_name}: {why}"),
        }
    }
}

fn command(error: &CommandError, form: Form) -> String {
    let (CommandError::NotFound { advice: Some(advice), .. }
    | CommandError::NotExecutable { advice: Some(advice), .. }) = error
    else {
        return error.to_string();
    };
    let line = |words: &[String]| match form {
        Form::Flags => format!("-- {}", words.join(" ")),
        Form::File => format!("`{COMMAND} = {words:?}`"),
    };
    let variable = |pair: &String| match (form, pair.split_once('=')) {
        (Form::File, Some((name, value))) => form.example(&format!("env.{name}"), value),
        _ => format!("--env {pair}"),
    };
    let advice = match advice {
        Advice::Command(words) => format!("did you mean {}", line(words)),
        Advice::Unquoted { variables, words } => {
            let parts: Vec<_> = variables.iter().map(variable).chain([line(words)]).collect();
            match form {
                Form::Flags => format!("remove the quotes: {}", parts.join(" ")),
                Form::File => format!("write each word as a string: {}", parts.join(" and ")),
            }
        }
        Advice::Variable(pair) if form == Form::Flags => {
            format!("variables are given before the command: {} -- …", variable(pair))
        }
        Advice::Variable(pair) => format!("to set a variable: {}", variable(pair)),
        Advice::Chmod(file) => format!("chmod +x {file}"),
    };
    format!("{error}; {advice}")
}

/// A path that cannot be used.
pub fn unusable(path: &Path, reason: &dyn Display) -> Kind {
    Kind::Path { path: path.display().to_string(), reason: reason.to_string() }
}

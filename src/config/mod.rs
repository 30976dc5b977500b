//! The validated configuration.

mod after;
mod choices;
pub mod clients;
pub mod delivery;
pub mod diagnostics;
mod draining;
pub mod error;
pub mod file;
mod hashing;
pub mod instances;
pub mod memory;
pub mod merge;
pub mod options;
pub mod other_programs;
mod proxy_loop;
pub mod service;
pub mod sources;
pub mod upstream;
mod user;
mod values;

use std::path::{Path, PathBuf};

use crate::addr::AdminAddr;
use crate::output::LogFormat;
use crate::output::sinks::Format;
use diagnostics::Problem;
use error::{ConfigError, Kind, LoadError};
use file::{Entry, File, OF_DAEMON, Section};
use merge::Settings;
use options::Options;
pub use service::{Backend, Chosen, Limits, ServiceConfig};
use sources::{COMMAND, Given, Origin, Setting};

/// Listeners of a service, and upstreams: a worker's setup has to fit into one message with 253 descriptors.
const MAX_ADDRESSES: usize = 100;
/// Keys that cannot come from a flag or variable when a file has several services.
const OF_ONE: [&str; 5] = ["listen", "upstream", "no-listen", "after", COMMAND];

#[derive(Debug, Clone)]
pub struct Config {
    /// The daemon's name, and that of its control socket.
    pub name: String,
    pub services: Vec<(ServiceConfig, Settings)>,
    /// The daemon's own settings.
    pub settings: Settings,
    pub admin: Option<AdminAddr>,
    pub admin_token_file: Option<PathBuf>,
    pub control: Option<PathBuf>,
    /// `None`: prefix on a terminal, else raw.
    pub output: Option<Format>,
    pub log_format: LogFormat,
    pub log_level: String,
    /// Flags and variables, kept for reading the file again.
    pub given: Given,
}

/// Whether the environment passes listening sockets (LISTEN_FDS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    Some,
    None,
}

impl Config {
    /// Loads given options, and the file that they name.
    ///
    /// # Errors
    /// The first mistake of flags, all those of a file.
    pub fn load(given: Given, inherited: Inherited) -> Result<Self, LoadError> {
        match given.0.get("config").and_then(|setting| setting.values.first()).map(PathBuf::from) {
            Some(path) => Self::from_file(given, &path, inherited),
            None => {
                let settings = merge::lay(&given, None);
                let run = merge::run(&settings)?;
                fits(&run)?;
                if !run.after.is_empty() {
                    return Err(Kind::NeedsFile.of("after").into());
                }
                let service = ServiceConfig::new(run.clone(), inherited)?;
                Ok(Self::new(given, run, settings.clone(), vec![(service, settings)]))
            }
        }
    }

    fn new(given: Given, run: Options, settings: Settings, services: Vec<(ServiceConfig, Settings)>) -> Self {
        let name = match services.as_slice() {
            [(service, _)] => service.name.clone(),
            _ => run.name.unwrap_or_default(),
        };
        let Options { admin, admin_token_file, control, output, log_format, log_level, .. } = run;
        Self { name, services, settings, admin, admin_token_file, control, output, log_format, log_level, given }
    }

    fn from_file(given: Given, path: &Path, inherited: Inherited) -> Result<Self, LoadError> {
        let text = File::read(path).map_err(LoadError::Unreadable)?;
        let mut problems = Vec::new();
        let file = File::parse(path, text, &mut problems);
        let (daemon, services) = match file.services.as_slice() {
            [] if !problems.is_empty() => (Vec::new(), Vec::new()),
            // A file without services goes with a command or upstream given by flags.
            [] => (file.daemon.clone(), vec![None]),
            several => (file.daemon.clone(), several.iter().map(Some).collect()),
        };
        let inherited = if services.len() > 1 { Inherited::None } else { inherited };
        if services.len() > 1
            && let Some(key) = OF_ONE.iter().find(|key| given.0.contains_key(**key))
        {
            return Err(LoadError::ForOneService { key, path: path.to_owned() });
        }
        merge::try_each(&daemon, &mut problems);
        let mut loaded = Vec::new();
        for section in services {
            let before = problems.len();
            section.iter().for_each(|section| merge::try_each(&section.entries, &mut problems));
            // Values that are right alone may contradict each other.
            if problems.len() == before && section.is_none_or(|section| section.clean) {
                match one(&given, &file, section, inherited) {
                    Ok(service) => loaded.push(service),
                    Err(error) if section.is_none() && given.0.contains_key(COMMAND) => return Err(error.into()),
                    Err(_) if section.is_none() => {
                        let message = "there is no [service.NAME] in it, and no command or --upstream beside it";
                        problems.push(Problem::new(message, 0..file.text.len().min(1)));
                    }
                    Err(error) => problems.extend(section.map(|section| blame(&error, section))),
                }
            }
        }
        twice(&file, &loaded, &mut problems);
        after::check(&file, &loaded, &mut problems);
        let settings = merge::lay(&of_daemon(&given), Some((&file, &daemon)));
        let run = merge::run(&settings);
        if let Err(error) = run.as_ref().map_or(Ok(()), fits) {
            let entry = daemon.iter().find(|entry| entry.key == error.key).ok_or_else(|| error.clone())?;
            problems.push(Problem::new(error.in_file(), entry.span.clone()));
        }
        match run {
            Ok(mut run) if problems.is_empty() => {
                let stem = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                let name = run.name.take().or_else(stem).unwrap_or_default();
                run.name = Some(service::checked(name).unwrap_or_else(|_| "roundsman".to_owned()));
                Ok(Self::new(given, run, settings, loaded))
            }
            _ => {
                let report = diagnostics::report(&path.display().to_string(), &file.text, &mut problems);
                Err(LoadError::Mistakes { path: path.to_owned(), count: problems.len(), report })
            }
        }
    }

    /// The configuration that another program had in force: its settings, without the file.
    ///
    /// # Errors
    /// What this program makes of these settings.
    pub fn in_force(
        given: Given,
        name: String,
        settings: Settings,
        services: Vec<Settings>,
        inherited: Inherited,
    ) -> Result<Self, LoadError> {
        let one = |settings: Settings| Ok((ServiceConfig::new(merge::run(&settings)?, inherited)?, settings));
        let services = services.into_iter().map(one).collect::<Result<Vec<_>, ConfigError>>()?;
        let run = merge::run(&settings)?;
        Ok(Self { name, ..Self::new(given, run, settings, services) })
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn again(&self, inherited: Inherited) -> Result<Self, LoadError> {
        Self::load(self.given.clone(), inherited)
    }

    /// Whether there is a file to be read again.
    pub fn has_file(&self) -> bool {
        self.given.0.contains_key("config")
    }
}

/// Whether the daemon's own options fit together.
fn fits(run: &Options) -> Result<(), ConfigError> {
    match (&run.admin_token_file, &run.admin) {
        (Some(_), None) => Err(Kind::Needs("admin").of("admin-token-file")),
        _ => Ok(()),
    }
}

fn one(
    given: &Given,
    file: &File,
    section: Option<&Section>,
    inherited: Inherited,
) -> Result<(ServiceConfig, Settings), ConfigError> {
    let mut settings = merge::lay(given, section.map(|section| (file, section.entries.as_slice())));
    let alone = file.services.len() < 2;
    if let Some(section) = section.filter(|_| !(alone && given.0.contains_key("name"))) {
        let origin = Origin::File { path: file.path.display().to_string(), line: file.line(&section.span) };
        settings.insert("name".to_owned(), Setting { values: vec![section.name.clone().into()], origin });
    }
    let run = merge::run(&settings)?;
    Ok((ServiceConfig::new(run, inherited)?, settings))
}

/// Only the keys of the daemon.
fn of_daemon(given: &Given) -> Given {
    let own = |key: &String| OF_DAEMON.contains(&key.as_str()) || key == "config";
    Given(given.0.iter().filter(|(key, _)| own(key)).map(|(key, setting)| (key.clone(), setting.clone())).collect())
}

/// Places a mistake at its key, or at the service's heading.
fn blame(error: &ConfigError, section: &Section) -> Problem {
    let entry = section.entries.iter().find(|entry| entry.key == error.key);
    let end = |entry: &Entry| entry.values.last().map_or(entry.span.end, |(_, span)| span.end);
    let span = entry.map_or_else(|| section.span.clone(), |entry| entry.span.start..end(entry));
    Problem::new(error.in_file(), span)
}

/// Reports addresses that several services listen on.
fn twice(file: &File, loaded: &[(ServiceConfig, Settings)], problems: &mut Vec<Problem>) {
    for (at, (service, _)) in loaded.iter().enumerate() {
        for listen in &service.listen {
            let other =
                loaded[..at].iter().find(|(other, _)| other.listen.iter().any(|one| one.address == listen.address));
            let section = file.services.iter().find(|section| section.name == service.name);
            if let (Some((other, _)), Some(section)) = (other, section) {
                let taken = Kind::Taken { address: listen.address.clone(), service: other.name.clone() };
                problems.push(blame(&taken.of("listen"), section));
            }
        }
    }
}

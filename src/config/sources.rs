//! Values given by flags and variables, with their origin, before the configuration file and the defaults are
//! applied.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command};
use serde::{Deserialize, Serialize};

use super::diagnostics::nearest;
use super::options::Options;
use super::other_programs;

/// Key of the command, which is not an option but follows `--`.
pub const COMMAND: &str = "command";

const PREFIX: &str = "ROUNDSMAN_";
/// Set by the daemon for its servers.
const FOR_SERVERS: [&str; 5] =
    ["ROUNDSMAN_RECORD", "ROUNDSMAN_SERVICE", "ROUNDSMAN_SLOT", "ROUNDSMAN_WORKER", "ROUNDSMAN_ATTACH"];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    Flag,
    Environment(String),
    /// The configuration file's line.
    File {
        path: String,
        /// Counted from 1.
        line: usize,
    },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The values of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Empty for a switch that is on.
    pub values: Vec<OsString>,
    /// Where they come from.
    pub origin: Origin,
}

/// Settings by key: a flag's long name, or [`COMMAND`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(pub BTreeMap<String, Setting>);

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    One,
    Several,
    /// None: it is on or off.
    Switch,
}

/// A key: a flag's long name, or [`COMMAND`].
#[derive(Debug, Clone)]
pub struct Key {
    pub name: String,
    pub takes: Takes,
    /// The default, where one is fixed.
    pub default: Option<String>,
}

/// A parser of the options alone, without verbs and environment.
pub fn parser() -> Command {
    Options::augment_args(Command::new("roundsman").no_binary_name(true).disable_help_flag(true))
        .mut_args(|arg| arg.env(clap::builder::Resettable::Reset))
}

/// All keys, in the order of the help.
pub fn keys() -> Vec<Key> {
    let of = |arg: &clap::Arg| Key {
        name: arg.get_long().unwrap_or(COMMAND).to_owned(),
        takes: match arg.get_action() {
            ArgAction::SetTrue => Takes::Switch,
            ArgAction::Append => Takes::Several,
            _ => Takes::One,
        },
        default: arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned()),
    };
    parser().get_arguments().map(of).collect()
}

/// A warning for each variable with our prefix that is not an option.
pub fn unknown_variables() -> Vec<String> {
    let command = Options::augment_args(Command::new("roundsman"));
    let known: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let ours = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let wrong = ours.filter(|(name, value)| {
        let link = ["SERVICE", "PORT"].iter().any(|part| name.starts_with(&format!("{PREFIX}{part}_")))
            || value.to_string_lossy().contains("://");
        // Kubernetes sets such variables for a service named roundsman; another daemon may have started this one.
        name.starts_with(PREFIX) && !known.contains(&name.as_str()) && !link && !FOR_SERVERS.contains(&name.as_str())
    });
    wrong.map(|(name, _)| unknown_variable(&name, &known)).collect()
}

fn unknown_variable(name: &str, known: &[&str]) -> String {
    let key = &name[PREFIX.len()..];
    let variable = |key: &str| format!("{PREFIX}{}", key.to_ascii_uppercase().replace('-', "_"));
    if let Some(why) = other_programs::missing(key) {
        return format!("unknown variable {name}: {why}");
    }
    let near = other_programs::key(key).map(variable).filter(|near| known.contains(&near.as_str()));
    // The common prefix would make all of them similar.
    let keys: Vec<String> =
        known.iter().map(|name| name[PREFIX.len()..].to_ascii_lowercase().replace('_', "-")).collect();
    let near = near.or_else(|| nearest(key, keys.iter().map(String::as_str)).map(variable));
    match near {
        Some(near) => format!("unknown variable {name}; did you mean {near}?"),
        None => format!("unknown variable {name}; roundsman --help names them all"),
    }
}

impl From<&ArgMatches> for Given {
    fn from(matches: &ArgMatches) -> Self {
        let mut given = BTreeMap::new();
        for arg in Options::augment_args(Command::new("roundsman")).get_arguments() {
            let id = arg.get_id().as_str();
            let origin = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => {
                    let name = arg.get_env().unwrap_or_default().to_string_lossy();
                    Origin::Environment(name.into_owned())
                }
                _ => continue,
            };
            let switch = matches!(arg.get_action(), ArgAction::SetTrue);
            if switch && !matches.get_flag(id) {
                continue;
            }
            let values = match switch {
                true => Vec::new(),
                false => matches.get_raw(id).into_iter().flatten().map(OsString::from).collect(),
            };
            given.insert(arg.get_long().unwrap_or(COMMAND).to_owned(), Setting { values, origin });
        }
        Self(given)
    }
}

//! Merges flags, variables, file and defaults, in this order of precedence, keeping the origin of each value.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::FromArgMatches;
use clap::error::{ContextKind, ContextValue};

use super::diagnostics::Problem;
use super::error::{ConfigError, Kind};
use super::file::{Entry, File};
use super::options::Options;
use super::sources::{COMMAND, Given, Key, Origin, Setting, Takes, keys, parser};
use super::upstream::is_attribute;

/// Keys whose values are paths; in a file they are relative to its directory.
const PATHS: [&str; 6] = ["cwd", "env-file", "out", "error", "control", "admin-token-file"];

/// Values by key; keys without a value have their default.
pub type Settings = BTreeMap<String, Setting>;

/// Merges given values over those of a file.
pub fn lay(given: &Given, file: Option<(&File, &[Entry])>) -> Settings {
    let mut settings = Settings::new();
    if let Some((file, entries)) = file {
        let path = file.path.display().to_string();
        let directory = file.path.parent().unwrap_or(Path::new(""));
        let directory = std::path::absolute(if directory.as_os_str().is_empty() { Path::new(".") } else { directory });
        let directory = directory.unwrap_or_default();
        for entry in entries {
            let origin = Origin::File { path: path.clone(), line: file.line(&entry.span) };
            // Without the `.` of `./log`.
            let absolute = |path: &OsStr| directory.join(path).components().collect::<PathBuf>().into_os_string();
            let value = |(value, _): &(OsString, Range<usize>)| match (entry.key.as_str(), value.to_str()) {
                (key, _) if PATHS.contains(&key) => absolute(value),
                ("allow" | "deny", Some(word)) if word.len() > 1 && word.starts_with('@') => {
                    [OsStr::new("@"), &absolute(OsStr::new(&word[1..]))].into_iter().collect()
                }
                _ => value.clone(),
            };
            settings.insert(entry.key.clone(), Setting { values: entry.values.iter().map(value).collect(), origin });
        }
    }
    settings.extend(given.0.clone());
    settings
}

/// Parses each value of a file alone, so that every mistake is reported at its place.
pub fn try_each(entries: &[Entry], problems: &mut Vec<Problem>) {
    let (keys, mut parser) = (keys(), parser());
    for entry in entries.iter().filter(|entry| entry.key != COMMAND) {
        let Some(key) = keys.iter().find(|key| key.name == entry.key) else { continue };
        for (value, span) in entry.values.iter().filter(|_| key.takes != Takes::Switch) {
            if let Err(why) = fits(&mut parser, key, value) {
                problems.push(Problem::new(format!("`{}`: {why}", entry.key), span.clone()));
            }
        }
    }
}

/// Whether a key takes a value.
///
/// # Errors
/// When the value does not parse.
pub fn fits(parser: &mut clap::Command, key: &Key, value: &OsString) -> Result<(), String> {
    let word = if key.takes == Takes::Switch { format!("--{}", key.name).into() } else { flag(key, value) };
    parser.try_get_matches_from_mut([word]).map(drop).map_err(|error| reason(&error))
}

/// Parses settings to options.
///
/// # Errors
/// A value that its option does not take.
pub fn run(settings: &Settings) -> Result<Options, ConfigError> {
    let mut words = Vec::new();
    for key in keys().iter().filter(|key| key.name != COMMAND) {
        match settings.get(&key.name) {
            Some(_) if key.takes == Takes::Switch => words.push(format!("--{}", key.name).into()),
            Some(setting) => words.extend(setting.values.iter().map(|value| flag(key, value))),
            None => {}
        }
    }
    if let Some(command) = settings.get(COMMAND) {
        words.push("--".into());
        words.extend(command.values.iter().cloned());
    }
    let refused = |error: clap::Error| {
        let key = match error.get(ContextKind::InvalidArg) {
            // `--listen <ADDR>`
            Some(ContextValue::String(arg)) => {
                arg.trim_start_matches('-').split(' ').next().unwrap_or_default().to_owned()
            }
            _ => COMMAND.to_owned(),
        };
        Kind::Unparsed(reason(&error)).of(&key)
    };
    let matches = parser().try_get_matches_from(words).map_err(refused)?;
    Options::from_arg_matches(&matches).map_err(refused)
}

fn flag(key: &Key, value: &OsString) -> OsString {
    let mut word = OsString::from(format!("--{}=", key.name));
    word.push(value);
    word
}

/// The reason of a parse error, without the words about the command line.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue)
        && !valid.is_empty()
    {
        return format!("one of {}", valid.join(", "));
    }
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Differences of two settings, as text: `instances max → 4`.
pub fn changes(old: &Settings, new: &Settings, of: impl Fn(&str) -> bool) -> Vec<String> {
    let words = |settings: &Settings, key: &str| match settings.get(key) {
        None => "default".to_owned(),
        Some(setting) if setting.values.is_empty() => "true".to_owned(),
        // Variables may be secrets.
        Some(_) if key == "env" => "…".to_owned(),
        Some(setting) => {
            let mut words = String::new();
            for value in &setting.values {
                let value = value.to_string_lossy();
                let belongs = key == "upstream" && is_attribute(&value);
                words.push_str(if words.is_empty() {
                    ""
                } else if belongs {
                    ","
                } else {
                    " "
                });
                words.push_str(&value);
            }
            words
        }
    };
    let values = |settings: &Settings, key: &str| settings.get(key).map(|setting| setting.values.clone());
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = keys.into_iter().filter(|key| of(key) && values(old, key) != values(new, key));
    changed.map(|key| format!("{key} {} → {}", words(old, key), words(new, key))).collect()
}

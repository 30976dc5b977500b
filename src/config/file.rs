//! The configuration file: TOML parsed into keys and values with their spans. The values are parsed by the options of the
//! same names.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Problem, nearest};
use super::other_programs;
use super::sources::{Key, Takes, keys};

use crate::sys::reason;

/// Size limit of a configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Syntax errors shown: a file that is not TOML has one in nearly every line.
const MAX_SYNTAX_ERRORS: usize = 10;
/// Keys of the daemon; all others are a service's.
pub const OF_DAEMON: [&str; 7] = ["name", "admin", "admin-token-file", "control", "output", "log-format", "log-level"];
/// Options that are not keys.
const NOT_IN_FILES: [&str; 1] = ["config"];
/// A key with its values.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub span: Range<usize>,
    /// As the option would take them, with their spans. Empty for a switch that is on.
    pub values: Vec<(OsString, Range<usize>)>,
}

#[derive(Debug, Clone)]
pub struct Section {
    pub name: String,
    pub span: Range<usize>,
    pub entries: Vec<Entry>,
    /// Whether it had no mistakes.
    pub clean: bool,
}

#[derive(Debug, Clone)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
    /// Keys above the first service.
    pub daemon: Vec<Entry>,
    pub services: Vec<Section>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(path: &Path) -> Result<String, String> {
        let fail = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
        let meta = std::fs::metadata(path).map_err(|error| fail(&reason(&error)))?;
        if let Some(advice) = other_programs::ecosystem(&path.to_string_lossy()) {
            return Err(format!("{} {advice}", path.display()));
        }
        if meta.is_dir() {
            return Err(fail(&"it is a directory"));
        }
        if meta.len() > MAX_BYTES {
            return Err(fail(&"it is larger than 1 MiB"));
        }
        let bytes = std::fs::read(path).map_err(|error| fail(&reason(&error)))?;
        String::from_utf8(bytes)
            .map_err(|error| fail(&format!("byte {} is not UTF-8", error.utf8_error().valid_up_to())))
    }

    /// Parses a text as far as possible; mistakes go to `problems`.
    pub fn parse(path: &Path, text: String, problems: &mut Vec<Problem>) -> Self {
        let (table, errors) = DeTable::parse_recoverable(&text);
        let whole = 0..text.len().min(1);
        problems.extend(errors.iter().take(MAX_SYNTAX_ERRORS).map(|error| {
            let message = error.message().lines().next().unwrap_or_default();
            Problem::new(message, error.span().unwrap_or_else(|| whole.clone()))
        }));
        if let Some(next) = errors.get(MAX_SYNTAX_ERRORS) {
            let more = errors.len() - MAX_SYNTAX_ERRORS;
            let message = format!("{more} more mistakes from here on; is this a file in TOML?");
            problems.push(Problem::new(message, next.span().unwrap_or(whole)));
        }
        let (mut daemon, mut services) = (Vec::new(), Vec::new());
        // After a syntax error the rest may mean anything.
        if errors.is_empty() {
            let keys: Vec<Key> = keys().into_iter().filter(|key| !NOT_IN_FILES.contains(&key.name.as_str())).collect();
            for (name, value) in table.get_ref() {
                match (name.get_ref().as_ref(), value.get_ref()) {
                    ("service", DeValue::Table(sections)) => {
                        for (name, value) in sections {
                            services.extend(section(name, value, &keys, problems));
                        }
                    }
                    ("service", _) => problems
                        .push(Problem::new("services are tables: [service.NAME] with its keys below", value.span())),
                    (key, _) => daemon.extend(entry(key, name.span(), value, &keys, Level::Daemon, problems)),
                }
            }
        }
        services.sort_by_key(|section| section.span.start);
        Self { path: path.to_owned(), text, daemon, services }
    }

    /// The line of a span, counted from 1.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.text.as_bytes().iter().take(span.start).filter(|&&byte| byte == b'\n').count() + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Daemon,
    Service,
}

type Name<'a> = Spanned<std::borrow::Cow<'a, str>>;

fn section(
    name: &Name<'_>,
    value: &Spanned<DeValue<'_>>,
    keys: &[Key],
    problems: &mut Vec<Problem>,
) -> Option<Section> {
    let DeValue::Table(table) = value.get_ref() else {
        let message = format!("a service is a table: [service.{}] with its keys below", name.get_ref());
        problems.push(Problem::new(message, value.span()));
        return None;
    };
    let before = problems.len();
    let entries = table
        .iter()
        .filter_map(|(key, value)| entry(key.get_ref(), key.span(), value, keys, Level::Service, problems))
        .collect();
    let clean = problems.len() == before;
    Some(Section { name: name.get_ref().clone().into_owned(), span: name.span(), entries, clean })
}

fn entry(
    name: &str,
    span: Range<usize>,
    value: &Spanned<DeValue<'_>>,
    keys: &[Key],
    level: Level,
    problems: &mut Vec<Problem>,
) -> Option<Entry> {
    let fits = |key: &str| OF_DAEMON.contains(&key) == (level == Level::Daemon);
    let Some(key) = keys.iter().find(|key| key.name == name) else {
        problems.push(Problem::new(unknown(name, keys, level), span));
        return None;
    };
    if !fits(name) {
        let message = match level {
            Level::Service if name == "name" => "a service's name is in its heading: [service.NAME]".to_owned(),
            Level::Service => format!("`{name}` is for the whole daemon: put it above the first [service.…]"),
            Level::Daemon => format!("`{name}` belongs to a service: put it below a [service.NAME]"),
        };
        problems.push(Problem::new(message, span));
        return None;
    }
    let values = match (key.takes, value.get_ref()) {
        (Takes::Switch, DeValue::Boolean(true)) => Vec::new(),
        (Takes::Switch, DeValue::Boolean(false)) => return None,
        (Takes::Switch, _) => {
            problems.push(Problem::new(format!("`{name}` is true or false"), value.span()));
            return None;
        }
        (Takes::Several, DeValue::Table(table)) if name == "env" => {
            let pair = |(key, value): (&Name<'_>, &Spanned<DeValue<'_>>)| match text(value.get_ref(), Loose::Yes) {
                Some(text) => Some((format!("{}={text}", key.get_ref()).into(), value.span())),
                None => {
                    problems.push(Problem::new("a variable is a string", value.span()));
                    None
                }
            };
            table.iter().filter_map(pair).collect()
        }
        (Takes::Several, DeValue::Table(table)) if name == "upstream" => {
            super::upstream::words_of(table, value.span(), problems)
        }
        (Takes::Several, DeValue::Array(array)) if name == "upstream" => {
            let each = |value: &Spanned<DeValue<'_>>| match (value.get_ref(), text(value.get_ref(), Loose::No)) {
                (DeValue::Table(table), _) => super::upstream::words_of(table, value.span(), problems),
                (_, Some(text)) => vec![(text.into(), value.span())],
                (other, None) => {
                    let message = format!("an upstream is a string or a table, not of type {}", other.type_str());
                    problems.push(Problem::new(message, value.span()));
                    Vec::new()
                }
            };
            array.iter().flat_map(each).collect()
        }
        (Takes::Several, DeValue::Array(array)) => {
            let each = |value: &Spanned<DeValue<'_>>| match text(value.get_ref(), Loose::No) {
                Some(text) => Some((text.into(), value.span())),
                None => {
                    let message = format!("`{name}` is a list of strings, not of {}", value.get_ref().type_str());
                    problems.push(Problem::new(message, value.span()));
                    None
                }
            };
            array.iter().filter_map(each).collect()
        }
        (Takes::Several, DeValue::String(_)) if name == crate::config::sources::COMMAND => {
            let message = "`command` is a list, a string for each word: [\"node\", \"app.js\"]";
            problems.push(Problem::new(message, value.span()));
            return None;
        }
        (_, other) => match text(other, Loose::No) {
            Some(text) => vec![(text.into(), value.span())],
            None => {
                let wanted = if key.takes == Takes::Several { "a string or a list of them" } else { "a string" };
                let message = format!("`{name}` is {wanted}, not of type {}", other.type_str());
                problems.push(Problem::new(message, value.span()));
                return None;
            }
        },
    };
    Some(Entry { key: name.to_owned(), span, values })
}

/// Whether a boolean counts as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loose {
    Yes,
    No,
}

/// A value as a flag would have it.
pub(super) fn text(value: &DeValue<'_>, loose: Loose) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) if loose == Loose::Yes => Some(value.to_string()),
        _ => None,
    }
}

fn unknown(name: &str, keys: &[Key], level: Level) -> String {
    let valid =
        keys.iter().map(|key| key.name.as_str()).filter(|key| OF_DAEMON.contains(key) == (level == Level::Daemon));
    if level == Level::Daemon && nearest(name, ["service"]).is_some() {
        return format!("unknown key `{name}`; did you mean [service.NAME]?");
    }
    if let Some(why) = other_programs::missing(name) {
        return format!("unknown key `{name}`: {why}");
    }
    let near = other_programs::key(name)
        .or_else(|| nearest(name, valid))
        .or_else(|| nearest(name, keys.iter().map(|key| key.name.as_str())));
    match (near, level) {
        (Some(near), _) => format!("unknown key `{name}`; did you mean `{near}`?"),
        (None, Level::Daemon) => {
            format!("unknown key `{name}`; here are {} and [service.NAME]", OF_DAEMON.join(", "))
        }
        (None, Level::Service) => format!("unknown key `{name}`; the keys are the flags of roundsman --help"),
    }
}

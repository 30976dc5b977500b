//! `roundsman check`: prints the effective configuration as a file, with the origin of each value.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use crate::config::file::OF_DAEMON;
use crate::config::merge::Settings;
use crate::config::service::ServiceConfig;
use crate::config::sources::{COMMAND, Given, Key, Origin, Takes, keys};
use crate::config::upstream;
use crate::config::{Config, Inherited};
use crate::exit::Exit;
use crate::program::command::CommandLine;
use crate::program::elf;
use crate::worker::Delivery;
use crate::worker::delivery::DeliveryError;

const SHELLS: [&str; 7] = ["sh", "dash", "bash", "ash", "busybox", "ksh", "zsh"];
/// Programs that start others, with another root or by a shell.
const STARTERS: [&str; 8] = ["chroot", "bwrap", "unshare", "nsenter", "npm", "npx", "yarn", "pnpm"];

///
/// # Errors
/// As [`Config::load`].
pub fn check(given: Given) -> Result<(), Exit> {
    let mut config = Config::load(given, Inherited::None)?;
    let places = config.services.iter_mut().map(|(service, _)| place(service)).collect::<Result<Vec<_>, _>>()?;
    for warning in crate::config::sources::unknown_variables() {
        crate::exit::tell(format_args!("warning: {warning}"));
    }
    let mut out = std::io::stdout().lock();
    // A closed pipe (`check | head`) is no error.
    let _ = std::io::Write::write_all(&mut out, text(&config, &places).as_bytes());
    Ok(())
}

/// How the daemon would deliver, now that it would start: where its servers find the library, if they need it, and what is not
/// known yet. The program's loader is run for a moment, behind the wrappers that stand before the program; the program is not.
///
/// # Errors
/// What a start would fail with.
fn place(service: &mut ServiceConfig) -> Result<String, DeliveryError> {
    let delivery = Delivery::prepare(service, false, || Ok(String::new()))?;
    let mut text = String::new();
    let command = match &delivery {
        Delivery::Direct(command, library) => {
            if let Some(place) = library.place() {
                let _ = write!(text, "; the library is {place}");
            }
            let started = if is_shell(command) { Some("the shell") } else { starter(command) };
            if let Some(by) = started {
                let _ = write!(text, "; what {by} starts shows only when it runs");
            }
            Some(command)
        }
        Delivery::Relay(command) => command.as_ref(),
        Delivery::NoPort(command) => Some(command),
    };
    if let Some((by, program)) = command.and_then(CommandLine::not_found_behind) {
        let _ = write!(text, "; {program}, which {by} is to start, is not found from here");
    }
    Ok(text)
}

fn starter(command: &CommandLine) -> Option<&'static str> {
    let name = Path::new(command.arg0()).file_name()?;
    STARTERS.into_iter().find(|starter| name == *starter)
}

/// Whether a shell runs in the end, which may start anything.
fn is_shell(command: &CommandLine) -> bool {
    let program = command.last_program().ok().and_then(|program| elf::examine(&program).ok());
    let name = program.and_then(|program| program.program.file_name().map(std::ffi::OsStr::to_owned));
    name.is_some_and(|name| SHELLS.iter().any(|shell| name == *shell))
}

fn text(config: &Config, places: &[String]) -> String {
    let keys = keys();
    let of_daemon = |key: &&Key| OF_DAEMON.contains(&key.name.as_str());
    let mut text = String::new();
    for key in keys.iter().filter(of_daemon).filter(|key| key.name != "name") {
        line(&mut text, key, &config.settings, None);
    }
    for ((service, settings), place) in config.services.iter().zip(places) {
        let _ = write!(text, "\n[service.{}]", quoted_key(&service.name));
        let origin = match settings.get("name").map(|setting| &setting.origin) {
            Some(origin) => origin.to_string(),
            None => "from the command".to_owned(),
        };
        let _ = writeln!(text, "  # {origin}");
        let (command, others): (Vec<_>, Vec<_>) = keys.iter().partition(|key| key.name == COMMAND);
        for key in command.into_iter().chain(others).filter(|key| !of_daemon(key) && key.name != "config") {
            line(&mut text, key, settings, note(&key.name, service, place).as_deref());
        }
    }
    text
}

/// The effective value, where it depends on the machine.
fn note(key: &str, service: &ServiceConfig, place: &str) -> Option<String> {
    match key {
        "instances" => service.instances_why.as_ref().map(|why| format!("{} here: {why}", service.instances)),
        "via" => Some(format!("{} here: {}{place}", service.via(), service.via_reason)),
        "max-memory" => service.limits.max_memory.map(|bytes| format!("{} MiB for each worker", bytes >> 20)),
        _ => None,
    }
}

fn line(text: &mut String, key: &Key, settings: &Settings, note: Option<&str>) {
    let setting = settings.get(&key.name);
    let origin = setting.map_or(&Origin::Default, |setting| &setting.origin);
    let value = match (setting, key.takes) {
        (Some(_), Takes::Switch) => "true".to_owned(),
        (None, Takes::Switch) => "false".to_owned(),
        (Some(setting), Takes::Several) if key.name == "env" => table(&setting.values),
        (Some(setting), Takes::Several) if key.name == "upstream" => upstream::list(&setting.values, quoted),
        (Some(setting), Takes::Several) => {
            let values: Vec<_> = setting.values.iter().map(quoted).collect();
            format!("[{}]", values.join(", "))
        }
        (Some(setting), Takes::One) => setting.values.first().map(quoted).unwrap_or_default(),
        (None, _) => match &key.default {
            Some(default) => quoted(&default.into()),
            None => return,
        },
    };
    let note = note.map(|note| format!("; {note}")).unwrap_or_default();
    let _ = writeln!(text, "{} = {value}  # {origin}{note}", key.name);
}

/// A table of variables.
fn table(pairs: &[OsString]) -> String {
    let pair = |pair: &OsString| {
        let pair = pair.to_string_lossy().into_owned();
        let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
        format!("{} = {}", quoted_key(key), quoted(&value.into()))
    };
    let pairs: Vec<_> = pairs.iter().map(pair).collect();
    format!("{{ {} }}", pairs.join(", "))
}

/// A TOML number or string.
pub fn quoted(value: &OsString) -> String {
    let text = value.to_string_lossy();
    match text.parse::<u32>() {
        Ok(number) if number.to_string() == text => text.into_owned(),
        _ => toml::Value::String(text.into_owned()).to_string(),
    }
}

/// A TOML key, quoted if necessary.
pub fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    // A key is on one line: JSON's escapes are TOML's, except for DEL.
    if bare { key.to_owned() } else { serde_json::Value::from(key).to_string().replace('\u{7f}', "\\u007f") }
}

/// The words of a command as a TOML list.
pub fn command(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| toml::Value::String(word.clone()).to_string()).collect();
    format!("{COMMAND} = [{}]", words.join(", "))
}

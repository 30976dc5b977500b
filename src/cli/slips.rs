//! Hints for common mistakes on the command line.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, CommandFactory};

use super::Cli;
use crate::config::diagnostics::nearest;
use crate::config::other_programs;

/// Moves options before a verb behind it: `--control PATH ls`.
pub fn verb_first(words: Vec<OsString>, command: &Command) -> Vec<OsString> {
    let mut at = 1;
    while let Some(word) = words.get(at).and_then(|word| word.to_str()).filter(|word| word.starts_with('-')) {
        let Some(takes) = takes_value(word, command) else { return words };
        at += if takes { 2 } else { 1 };
    }
    let is_verb = |word: &OsString| {
        command.get_subcommands().any(|verb| verb.get_all_aliases().any(|name| word == name) || word == verb.get_name())
    };
    if at == 1 || !words.get(at).is_some_and(is_verb) {
        return words;
    }
    let mut sorted = words;
    sorted[1..=at].rotate_right(1);
    sorted
}

/// Whether the next word is an option's value; `None` for an unknown option.
fn takes_value(word: &str, command: &Command) -> Option<bool> {
    let sets = |arg: &clap::Arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    match word.strip_prefix("--") {
        Some("") => None,
        Some(long) => {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
            Some(sets(arg) && value.is_none())
        }
        None => {
            let mut letters = word.chars().skip(1);
            let letter = letters.next()?;
            let arg = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
            Some(sets(arg) && letters.next().is_none())
        }
    }
}

/// Adds a hint: a command without `--`, a word of another program.
pub fn explain(error: clap::Error, words: &[OsString]) -> clap::Error {
    let word = match (error.get(ContextKind::InvalidSubcommand), error.get(ContextKind::InvalidArg)) {
        (Some(ContextValue::String(word)), _) => word.clone(),
        (_, Some(ContextValue::String(word))) if error.kind() == ErrorKind::UnknownArgument => word.clone(),
        _ => return error,
    };
    let refused = |message: String| Cli::command().error(ErrorKind::InvalidSubcommand, message);
    let verb = words.get(1).and_then(|first| first.to_str()).unwrap_or_default();
    let at = words.iter().position(|given| *given == *word || is_flag(given, &word)).unwrap_or(words.len());
    if word.starts_with('-') {
        let joined = words.get(at).and_then(|given| given.to_str()?.split_once('=')).map(|(_, value)| value);
        let next = words.get(at + 1).and_then(|value| value.to_str()).filter(|value| !value.starts_with('-'));
        let value = joined.or(next);
        if is_detach(&word) && is_verb(verb) {
            let text = format!(
                "{word} starts services in the background: roundsman -d -- node app.js; {verb} takes no {word}"
            );
            return Cli::command().error(ErrorKind::UnknownArgument, text);
        }
        return match flag(&word, value, verb) {
            Some(hint) => Cli::command().error(ErrorKind::UnknownArgument, format!("there is no {word}: {hint}")),
            None if verb == "start" => start_of_server(words).map_or(error, refused),
            None => error,
        };
    }
    // After a verb it is a surplus argument.
    if is_verb(verb) {
        return error;
    }
    if let Some(answer) = other_programs::verb(&word) {
        return refused(format!("'{word}' is not a roundsman command: {answer}"));
    }
    // `relaod` is a misspelt verb.
    if error.get(ContextKind::SuggestedSubcommand).is_some() {
        return error;
    }
    let verbs: Vec<String> = Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    if let Some(near) = nearest(&word, verbs.iter().map(String::as_str)) {
        return refused(format!("'{word}' is not a roundsman command; did you mean: roundsman {near}"));
    }
    if word.ends_with(".toml") {
        return refused(format!("'{word}' is not a roundsman command; to run what it describes: roundsman -c {word}"));
    }
    if let Some(advice) = other_programs::ecosystem(&word) {
        return refused(format!("'{word}' is not a roundsman command, and it {advice}"));
    }
    let runner = crate::program::command::runner(&word).map(|runner| format!("{runner} ")).unwrap_or_default();
    // Options may come after a script, as in PM2.
    if !runner.is_empty()
        && let Some(line) = in_order(words.iter().skip(1))
    {
        return refused(format!("'{word}' is not a roundsman command; to run it as the server: {line}"));
    }
    let options: String = words.iter().take(at).skip(1).map(|word| shown(word) + " ").collect();
    let rest: Vec<_> = words.iter().skip(at).map(|word| shown(word)).collect();
    refused(format!(
        "'{word}' is not a roundsman command; to run it as the server: roundsman {options}-- {runner}{}",
        rest.join(" ")
    ))
}

fn is_verb(word: &str) -> bool {
    Cli::command()
        .get_subcommands()
        .any(|verb| verb.get_name() == word || verb.get_all_aliases().any(|name| name == word))
}

fn is_detach(word: &str) -> bool {
    ["-d", "--detach", "--daemon"].contains(&word)
}

/// `start app.js -i max`, as in PM2.
fn start_of_server(words: &[OsString]) -> Option<String> {
    let line = in_order(words.iter().skip(2))?;
    Some(format!("start is for services that were stopped; to run a server: {line}"))
}

/// The command line for a script with options before and after it; `None` for an option that is not ours.
fn in_order<'a>(mut rest: impl Iterator<Item = &'a OsString>) -> Option<String> {
    let command = Cli::command();
    let (mut options, mut server) = (String::new(), Vec::new());
    while let Some(word) = rest.next() {
        match word.to_str().filter(|word| word.starts_with('-')) {
            Some("--") => server.extend(rest.by_ref()),
            Some(flag) => {
                options += &(shown(word) + " ");
                if takes_value(flag, &command)? {
                    options += &(shown(rest.next()?) + " ");
                }
            }
            None => server.push(word),
        }
    }
    let runner = crate::program::command::runner(&server.first()?.to_string_lossy());
    let runner = runner.map(|runner| format!("{runner} ")).unwrap_or_default();
    let server: Vec<_> = server.into_iter().map(|word| shown(word)).collect();
    let server = server.join(" ");
    Some(format!("roundsman {options}-- {runner}{server}"))
}

/// Whether a word is a flag with its value.
fn is_flag(given: &OsStr, flag: &str) -> bool {
    given.to_str().and_then(|given| given.strip_prefix(flag)).is_some_and(|rest| rest.starts_with('='))
}

fn flag(word: &str, value: Option<&str>, verb: &str) -> Option<String> {
    if ["-w", "--watch"].contains(&word) && ["ls", "list", "status", "ps"].contains(&verb) {
        return Some("use: roundsman ls --watch, or roundsman top".to_owned());
    }
    // Of a verb's own options none has another name elsewhere.
    if is_verb(verb) && verb != "start" && verb != "check" {
        return None;
    }
    let name = word.trim_start_matches('-');
    if let Some(answer) = other_programs::flag(word).or_else(|| other_programs::missing(name)) {
        return Some(answer.to_owned());
    }
    let ours = other_programs::key(name)?;
    let value = value.map(|value| format!(" {value}")).unwrap_or_default();
    Some(match ours {
        "listen" => format!("did you mean -l{value} (--listen)?"),
        "command" => "the command is behind --: roundsman -- node app.js".to_owned(),
        _ => format!("did you mean --{ours}{value}?"),
    })
}

/// A word, quoted for a shell if necessary.
fn shown(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

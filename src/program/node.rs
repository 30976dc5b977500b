//! Which commands are Node itself with a script, and so take its IPC.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::command::CommandLine;

/// Programs in Node that start the server below themselves: the channel would be theirs.
const WRAPPERS: [&str; 18] = [
    "npm",
    "npx",
    "npm-cli",
    "npx-cli",
    "yarn",
    "yarnpkg",
    "pnpm",
    "pnpx",
    "tsx",
    "ts-node-dev",
    "nodemon",
    "pm2",
    "pm2-runtime",
    "corepack",
    "concurrently",
    "cross-env",
    "dotenv",
    "forever",
];

/// Node's flags that take the next word as their value.
const WITH_VALUE: [&str; 12] = [
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--env-file-if-exists",
    "--title",
    "--icu-data-dir",
    "--openssl-config",
];

/// Node's flags that mean that there is no script.
const WITHOUT_SCRIPT: [&str; 13] = [
    "-e",
    "--eval",
    "-p",
    "--print",
    "-pe",
    "-c",
    "--check",
    "-i",
    "--interactive",
    "-v",
    "--version",
    "--test",
    "--run",
];

/// Whether a command is `node FILE`, also by way of `#!` or env, and no program that starts others.
pub fn is_node_script(command: &CommandLine) -> bool {
    script(command).is_some()
}

/// The script of such a command, as it is written there.
pub fn script(command: &CommandLine) -> Option<PathBuf> {
    let words = command.words();
    match base(words.first()?) {
        "node" | "nodejs" => script_of(&words[1..]),
        "env" => {
            let rest = &words[1..];
            let at = rest
                .iter()
                .position(|word| !word.to_string_lossy().starts_with('-') && !word.to_string_lossy().contains('='));
            let at = at.filter(|&at| matches!(base(&rest[at]), "node" | "nodejs"))?;
            script_of(&rest[at + 1..])
        }
        name if WRAPPERS.contains(&stem(name)) => None,
        _ => command.program().ok().filter(|program| is_node_file(program)),
    }
}

fn base(word: &OsString) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The script that Node's arguments name, if it is no wrapper.
fn script_of(arguments: &[OsString]) -> Option<PathBuf> {
    let no_wrapper = |word: &&OsString| is_no_wrapper(&word.to_string_lossy());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.to_string_lossy().as_ref() {
            "--" => return words.next().filter(no_wrapper).map(PathBuf::from),
            // Standard input.
            "-" => return None,
            flag if WITHOUT_SCRIPT.contains(&flag) || flag.starts_with("--eval=") || flag.starts_with("--print=") => {
                return None;
            }
            flag if WITH_VALUE.contains(&flag) => drop(words.next()),
            flag if flag.starts_with('-') => {}
            _ => return Some(word).filter(no_wrapper).map(PathBuf::from),
        }
    }
    None
}

fn is_no_wrapper(script: &str) -> bool {
    let name = Path::new(script).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    !WRAPPERS.contains(&stem(name)) && !script.contains("/tsx/") && !script.contains("/npm/bin/")
}

/// Whether a file is a script for Node by its first line.
fn is_node_file(file: &Path) -> bool {
    // A link in node_modules/.bin has another name than what it leads to.
    let target = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let Ok(open) = File::open(&target) else { return false };
    let mut line = String::new();
    // A program is no text: then there is no line.
    let read = BufReader::new(open.take(256)).read_line(&mut line);
    let Some(rest) = read.ok().and_then(|_| line.strip_prefix("#!")) else { return false };
    let mut words = rest
        .split_whitespace()
        .map(|word| Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or_default());
    let node = match words.next() {
        Some("env") => words.find(|word| !word.starts_with('-')).is_some_and(|name| matches!(name, "node" | "nodejs")),
        first => matches!(first, Some("node" | "nodejs")),
    };
    node && is_no_wrapper(&target.to_string_lossy())
}

/// The port that a word asks for where it is `--inspect` or one of its kind, and what stands before it.
fn inspect(word: &OsString) -> Option<(String, u16)> {
    let word = word.to_str()?;
    let rest = word.strip_prefix("--inspect")?;
    let rest = rest.strip_prefix("-brk").or_else(|| rest.strip_prefix("-wait")).unwrap_or(rest);
    let flag = &word[..word.len() - rest.len()];
    match rest.strip_prefix('=') {
        Some(value) => {
            let (host, port) = value.rsplit_once(':').map_or((None, value), |(host, port)| (Some(host), port));
            match (port.parse().ok(), host) {
                (Some(port), Some(host)) => Some((format!("{flag}={host}:"), port)),
                (Some(port), None) => Some((format!("{flag}="), port)),
                // A host alone.
                (None, _) => Some((format!("{flag}={value}:"), INSPECTOR)),
            }
        }
        None => rest.is_empty().then(|| (format!("{flag}="), INSPECTOR)),
    }
}

const INSPECTOR: u16 = 9229;

/// The port of the inspector that a command asks for.
pub fn inspect_port(words: &[OsString]) -> Option<u16> {
    words.iter().find_map(inspect).map(|(_, port)| port)
}

/// A word of a command with another port for the inspector, where it is about one: each worker needs one of its own.
pub fn with_inspect_port(word: OsString, port: u16) -> OsString {
    inspect(&word).map_or(word, |(flag, _)| format!("{flag}{port}").into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::program::command::Lookup;

    fn is(words: &[&str]) -> bool {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        is_node_script(&CommandLine::find(&words, Lookup::default()).unwrap())
    }

    #[test]
    fn node_with_a_file_takes_it_and_nothing_else() {
        use std::os::unix::fs::PermissionsExt;
        for yes in [
            &["node", "app.js"][..],
            &["node", "--max-old-space-size=100", "-r", "dotenv/config", "dir/app", "start"],
            &["node", "--", "app.js"],
            &["env", "A=b", "node", "app.js"],
        ] {
            assert!(is(yes), "{yes:?}");
        }
        for no in [
            &["node"][..],
            &["node", "-e", "x"],
            &["node", "-r", "x.js"],
            &["node", "-"],
            &["node", "--test"],
            &["node", "/usr/lib/node_modules/npm/bin/npm-cli.js", "start"],
            &["npm", "start"],
            &["npx", "x"],
            &["python3", "app.js"],
            &["sh", "-c", "node app.js"],
            &["env", "python3", "app.js"],
        ] {
            assert!(!is(no), "{no:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, line, wanted) in [
            ("server", "#!/usr/bin/env node\n", true),
            ("own.js", "#!/usr/bin/node --no-warnings\n", true),
            ("flagged", "#!/usr/bin/env -S node --no-warnings\n", true),
            ("npm", "#!/usr/bin/env node\n", false),
            ("script", "#!/bin/sh\n", false),
        ] {
            let file = dir.path().join(name);
            std::fs::write(&file, line).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(is(&[file.to_str().unwrap()]), wanted, "{name}");
        }
    }

    #[test]
    fn the_inspector_has_a_port() {
        let port = |words: &[&str]| inspect_port(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(port(&["node", "--inspect", "app.js"]), Some(9229));
        assert_eq!(port(&["node", "--inspect=0.0.0.0:9300", "app.js"]), Some(9300));
        assert_eq!(port(&["node", "--inspect-brk=9400", "app.js"]), Some(9400));
        assert_eq!(port(&["node", "--inspect-publish-uid=http", "app.js"]), None);
        assert_eq!(port(&["node", "app.js"]), None);
        for (word, wanted) in [
            ("--inspect", "--inspect=7"),
            ("--inspect=9300", "--inspect=7"),
            ("--inspect-brk=0.0.0.0:1", "--inspect-brk=0.0.0.0:7"),
            ("--inspect=localhost", "--inspect=localhost:7"),
            ("--inspect-publish-uid=http", "--inspect-publish-uid=http"),
            ("app.js", "app.js"),
        ] {
            assert_eq!(with_inspect_port(word.into(), 7), OsString::from(wanted), "{word}");
        }
    }
}

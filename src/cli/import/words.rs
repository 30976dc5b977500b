//! The command of an app: interpreter, its options, script, arguments.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::ImportError;
use super::options::{Options, plain};
use crate::program::command::runner;

/// What an app runs.
pub struct Words {
    pub command: Vec<String>,
    /// The script in it.
    pub script: String,
    /// Where the script is in the command.
    pub at: usize,
    /// Its interpreter is Node.
    pub node: bool,
    /// What could not be taken over as it was.
    pub note: Option<String>,
}

/// Of an app that runs in a directory.
///
/// # Errors
/// Without a script.
pub fn of(options: &mut Options<'_>, directory: &Path) -> Result<Words, ImportError> {
    let script = options.text("script").ok_or(ImportError::NoScript)?;
    let flags = options.take("node_args").map(list).unwrap_or_default();
    let arguments = options.take("args").map(list).unwrap_or_default();
    let (mut command, mut note) = (Vec::new(), None);
    match options.text("exec_interpreter").as_deref() {
        Some("none") => {}
        Some(interpreter) => match interpreter.strip_prefix("node@") {
            Some(version) => {
                note = Some(format!("interpreter node@{version}: PM2 gets it from nvm; put that node first on PATH"));
                command.push("node".to_owned());
            }
            None => command.push(interpreter.to_owned()),
        },
        None => command.extend(interpreter(&script, directory).iter().map(|word| (*word).to_owned())),
    }
    let node = command.first().is_some_and(|word| is_node(word));
    if !command.is_empty() {
        command.extend(flags);
    }
    let at = command.len();
    if command.is_empty() && script.contains(char::is_whitespace) && !directory.join(&script).is_file() {
        // PM2 takes a whole line here.
        command.extend(split(&script));
    } else if command.is_empty() && !script.contains('/') && directory.join(&script).is_file() {
        command.push(format!("./{script}"));
    } else {
        command.push(script.clone());
    }
    command.extend(arguments);
    if command.first().is_none_or(String::is_empty) {
        return Err(ImportError::NoScript);
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(ImportError::NulByte(script));
    }
    let command = command.iter().map(|word| literal(word)).collect();
    Ok(Words { command, script, at, node, note })
}

fn is_node(word: &str) -> bool {
    Path::new(word).file_name().is_some_and(|name| name == "node" || name == "nodejs")
}

/// What runs a script when the app does not say.
fn interpreter(script: &str, directory: &Path) -> &'static [&'static str] {
    match Path::new(script).extension().and_then(|end| end.to_str()) {
        Some("sh") => return &["bash"],
        Some("pl") => return &["perl"],
        Some("jar") => return &["java", "-jar"],
        _ => {}
    }
    match runner(script) {
        Some("node") => &["node"],
        Some("tsx") => &["tsx"],
        Some("python3") => &["python3"],
        Some("ruby") => &["ruby"],
        Some("php") => &["php"],
        _ if is_module(&directory.join(script)) => &["node"],
        _ => &[],
    }
}

/// A text that the system cannot run: PM2 gives it to node (`bin/www`).
fn is_module(path: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(path) else { return false };
    let mut start = [0; 512];
    // A pipe would keep us waiting.
    let read =
        if meta.is_file() { std::fs::File::open(path).and_then(|mut file| file.read(&mut start)) } else { Ok(0) };
    let start = &start[..read.unwrap_or(0)];
    let runs = start.starts_with(b"#!") && meta.permissions().mode() & 0o111 != 0;
    !start.is_empty() && !start.contains(&0) && !runs
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(words) => words.iter().filter(|word| !word.is_null()).map(plain).collect(),
        Value::String(line) => split(line),
        Value::Null | Value::Bool(_) | Value::Object(_) => Vec::new(),
        Value::Number(number) => vec![number.to_string()],
    }
}

/// A word that stays as it is: `{port}` and its like would be filled in.
fn literal(word: &str) -> String {
    let places = ["{port}", "{host}", "{slot}"];
    places.iter().fold(word.to_owned(), |word, place| word.replace(place, &format!("{{{place}}}")))
}

/// A line's words, with quotes as a shell has them.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (None, '"' | '\'') => (quote, begun) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (_, c) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

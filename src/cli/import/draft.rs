//! A service as it is being written: each key at most once, and only with a value that its flag's parser accepts.

use clap::Command;

use crate::cli::check::quoted;
use crate::config::merge::fits;
use crate::config::sources::{Key, Takes, keys, parser};

/// Characters of a comment; what is longer is cut.
const WIDTH: usize = 160;

/// Lines of one service.
pub struct Draft {
    keys: Vec<Key>,
    parser: Command,
    lines: Vec<(String, String)>,
    comments: String,
}

impl Draft {
    pub fn new() -> Self {
        Self { keys: keys(), parser: parser(), lines: Vec::new(), comments: String::new() }
    }

    /// Whether a key is written.
    pub fn has(&self, key: &str) -> bool {
        self.lines.iter().any(|(other, _)| other == key)
    }

    /// Writes a key, or why its value cannot be taken from PM2's option `from`.
    pub fn set(&mut self, key: &str, value: &str, from: &str) {
        self.set_with(key, value, from, "");
    }

    /// The same, with a remark behind it.
    pub fn set_with(&mut self, key: &str, value: &str, from: &str, remark: &str) {
        if self.has(key) {
            self.comment(&format!("{from} {value}: not used, {key} is set above"));
        } else if let Err(why) = self.accepts(key, value) {
            self.comment(&format!("{from} {value}: {why}"));
        } else {
            let switch = self.keys.iter().any(|known| known.name == key && known.takes == Takes::Switch);
            let value = if switch { "true".to_owned() } else { quoted(&value.into()) };
            let remark = if remark.is_empty() { String::new() } else { format!("  {}", comment(remark).trim_end()) };
            self.lines.push((key.to_owned(), format!("{key} = {value}{remark}\n")));
        }
    }

    /// Whether a key exists and takes a value.
    ///
    /// # Errors
    /// Why not.
    fn accepts(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.contains('\0') {
            return Err("it contains a NUL byte".to_owned());
        }
        let known = self.keys.iter().find(|known| known.name == key).ok_or("not supported")?;
        fits(&mut self.parser, known, &value.into())
    }

    /// Writes a comment, behind all keys.
    pub fn comment(&mut self, text: &str) {
        self.comments.push_str(&comment(text));
    }

    pub fn text(self) -> String {
        let lines: String = self.lines.into_iter().map(|(_, line)| line).collect();
        lines + &self.comments
    }
}

/// A line of TOML that says nothing to a parser: control characters are not allowed even there.
pub fn comment(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(WIDTH).map(clean).collect();
    if text.chars().nth(WIDTH).is_some() {
        line.push('…');
    }
    format!("# {line}\n")
}

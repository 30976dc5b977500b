//! The options of one app, under all the names that PM2 knows for them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// PM2's aliases, the one that wins first. The same words joined as in camelCase are an alias, too.
const ALIASES: [(&str, &[&str]); 10] = [
    ("script", &["exec"]),
    ("exec_interpreter", &["interpreter"]),
    ("node_args", &["interpreter_args", "interpreterArgs"]),
    ("out_file", &["out_log", "output", "out"]),
    ("error_file", &["err_log", "err_file", "err", "error"]),
    ("log_file", &["log"]),
    ("pid_file", &["pid"]),
    ("cron_restart", &["cron"]),
    ("merge_logs", &["combine_logs"]),
    ("uid", &["user"]),
];

/// What an app says, and which of it was looked at.
pub struct Options<'a> {
    app: &'a Map<String, Value>,
    taken: BTreeSet<String>,
    /// Options that lost to another of the same meaning, and to which.
    pub twice: Vec<(String, String)>,
}

impl<'a> Options<'a> {
    pub fn of(app: &'a Map<String, Value>) -> Self {
        Self { app, taken: BTreeSet::new(), twice: Vec::new() }
    }

    /// An option with a value that says something, and the name under which it was found.
    pub fn named(&mut self, option: &str) -> Option<(String, &'a Value)> {
        let aliases = ALIASES.iter().find(|(name, _)| *name == option).map_or(&[][..], |(_, aliases)| *aliases);
        let mut names: Vec<String> =
            std::iter::once(option).chain(aliases.iter().copied()).map(str::to_owned).collect();
        let camel = camel_case(option);
        if camel != option {
            names.push(camel);
        }
        let mut found = None;
        for name in names {
            let Some(value) = self.app.get(&name) else { continue };
            self.taken.insert(name.clone());
            match &found {
                _ if value.is_null() || value.as_str() == Some("") => {}
                None => found = Some((name, value)),
                Some((winner, _)) => self.twice.push((name, winner.clone())),
            }
        }
        found
    }

    /// An option with a value that says something.
    pub fn take(&mut self, option: &str) -> Option<&'a Value> {
        self.named(option).map(|(_, value)| value)
    }

    /// The same as text.
    pub fn text(&mut self, option: &str) -> Option<String> {
        self.take(option).map(plain)
    }

    /// Whether a switch is on: `None` where nothing is said.
    pub fn switch(&mut self, option: &str) -> Option<bool> {
        self.take(option).map(|value| !matches!(value, Value::Bool(false)) && value.as_f64() != Some(0.0))
    }

    /// Options of that name begin with `env_`.
    pub fn environments(&mut self) -> Vec<(&'a str, &'a Value)> {
        let all = self.app.iter().filter_map(|(key, value)| Some((key.strip_prefix("env_")?, value)));
        let all: Vec<_> = all.filter(|(name, _)| !name.is_empty()).collect();
        self.taken.extend(all.iter().map(|(name, _)| format!("env_{name}")));
        all
    }

    /// Options that nobody looked at, and that say something.
    pub fn left(&self) -> Vec<&'a str> {
        let says = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        let left = self.app.iter().filter(|(key, value)| !self.taken.contains(*key) && says(value));
        left.map(|(key, _)| key.as_str()).collect()
    }
}

/// Whether an object is an app.
pub fn is_app(object: &Map<String, Value>) -> bool {
    Options::of(object).take("script").is_some()
}

/// A value as text: a string without its quotes.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut all = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        all.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        all.push_str(letters.as_str());
    }
    all
}

//! One app of an ecosystem file.

use std::path::Path;

use serde_json::{Map, Value};

use super::ImportError;
use super::draft::Draft;
use super::options::{Options, plain};
use super::port::{self, Port};
use super::rules;
use super::words::{self, Words};
use crate::cli::check::{command, quoted_key};

/// PM2's options that have no effect here and need none.
const NOT_NEEDED: [&str; 12] = [
    "pmx",
    "vizion",
    "automation",
    "treekill",
    "force",
    "username",
    "windowsHide",
    "write",
    "version",
    "autostart",
    "source_map_support",
    "disable_source_map_support",
];

/// The service that an app becomes. `directory` is the ecosystem file's.
///
/// # Errors
/// Without a script.
pub fn service(
    app: &Map<String, Value>,
    directory: &Path,
    env: Option<&str>,
    names: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<String, ImportError> {
    let mut options = Options::of(app);
    let mut draft = Draft::new();
    let cwd = options.text("cwd");
    let at = cwd.as_ref().map_or_else(|| directory.to_owned(), |cwd| directory.join(cwd));
    let words = words::of(&mut options, &at)?;
    let name = name(&mut options, &words.script, names);
    match &cwd {
        Some(cwd) => draft.set("cwd", cwd, "cwd"),
        None => draft.set_with("cwd", ".", "cwd", "the directory of this file, as with PM2"),
    }
    let variables = variables(&mut options, env, &name, &mut draft, warnings);
    let mode = instances(&mut options, &words, &mut draft);
    if !gets_port(&words, &variables) {
        no_listen(&words, &at, &name, mode, &mut draft);
    }
    rules::starts_and_stops(&mut options, &mut draft);
    rules::output(&mut options, &mut draft);
    rules::jobs(&mut options, &words, &name, &mut draft);
    if let Some(note) = &words.note {
        draft.comment(note);
    }
    for (loser, winner) in &options.twice {
        draft.comment(&format!("{loser}: not used, {winner} is the same option"));
    }
    let left: Vec<_> = options.left().into_iter().filter(|key| !NOT_NEEDED.contains(key)).collect();
    if !left.is_empty() {
        draft.comment(&format!("not supported: {}", left.join(", ")));
    }
    let mut text = format!("[service.{}]\n{}\n{}", quoted_key(&name), command(&words.command), draft.text());
    if !variables.is_empty() {
        text.push_str(&format!("\n[service.{}.env]\n", quoted_key(&name)));
        for (key, value) in &variables {
            text.push_str(&format!("{} = {}\n", quoted_key(key), toml::Value::String(value.clone())));
        }
    }
    Ok(text)
}

/// A name that a service can have, used once.
fn name(options: &mut Options<'_>, script: &str, names: &mut Vec<String>) -> String {
    let stem = || Path::new(script).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let wanted = options.text("name").or_else(stem).unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let safe: String = wanted.chars().map(fits).take(58).collect();
    let safe = safe.trim_start_matches('.');
    let safe = if safe.is_empty() { "app" } else { safe };
    let mut unique = safe.to_owned();
    let mut n = 2;
    while names.contains(&unique) {
        unique = format!("{safe}-{n}");
        n += 1;
    }
    names.push(unique.clone());
    unique
}

/// `env`, over it `env_NAME`, over both `port`.
fn variables(
    options: &mut Options<'_>,
    env: Option<&str>,
    service: &str,
    draft: &mut Draft,
    warnings: &mut Vec<String>,
) -> Vec<(String, String)> {
    let mut all = Map::new();
    match options.take("env") {
        Some(Value::Object(variables)) => all.extend(variables.clone()),
        Some(_) => draft.comment("env: not an object"),
        None => {}
    }
    let environments = options.environments();
    let names: Vec<_> = environments.iter().map(|(name, _)| *name).collect();
    match env.map(|wanted| (wanted, environments.iter().find(|(name, _)| *name == wanted))) {
        Some((_, Some((_, Value::Object(more))))) => all.extend(more.clone()),
        Some((wanted, Some(_))) => warnings.push(format!("{service}: env_{wanted} is not an object")),
        Some((wanted, None)) => {
            let there = if names.is_empty() { "no other".to_owned() } else { format!("only {}", names.join(", ")) };
            warnings.push(format!("{service}: there is no env_{wanted} ({there}); its `env` alone is used"));
            draft.comment(&format!("there is no env_{wanted}"));
        }
        None => {}
    }
    for other in names.iter().filter(|name| Some(**name) != env) {
        draft.comment(&format!("env_{other}: roundsman import --env {other}"));
    }
    all.extend(options.take("port").map(|port| ("PORT".to_owned(), port.clone())));
    let mut variables = Vec::new();
    for (key, value) in &all {
        let text = plain(value);
        if value.is_null() {
            draft.comment(&format!("env {key}: null, left out"));
        } else if key.is_empty() || key.contains(['=', '\0']) || text.contains('\0') {
            draft.comment(&format!("env {key}: no process can have such a variable"));
        } else {
            variables.push((key.clone(), text));
        }
    }
    variables
}

/// Whether PM2 runs an app in cluster mode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `exec_mode` says fork; whether there is one instance.
    Fork {
        one: bool,
    },
    /// PM2's choice.
    Default {
        one: bool,
    },
    Cluster,
}

fn instances(options: &mut Options<'_>, words: &Words, draft: &mut Draft) -> Mode {
    let instances = options.text("instances");
    match instances.as_deref() {
        None => {}
        Some("0") => draft.set("instances", "max", "instances"),
        Some(number) => draft.set("instances", number.strip_suffix(".0").unwrap_or(number), "instances"),
    }
    if !draft.has("instances") {
        draft.set("instances", "1", "instances");
    }
    let one = instances.as_deref().is_none_or(|number| number == "1");
    match options.text("exec_mode") {
        Some(mode) if mode.starts_with("cluster") => Mode::Cluster,
        Some(mode) if mode.starts_with("fork") => Mode::Fork { one },
        // As PM2 chooses.
        _ if instances.is_some() && words.node => Mode::Cluster,
        _ => Mode::Default { one },
    }
}

/// Whether an app is told the port that it serves.
fn gets_port(words: &Words, variables: &[(String, String)]) -> bool {
    variables.iter().any(|(key, _)| port::is_variable(key)) || words.command.iter().any(|word| word.contains("--port"))
}

/// PM2 does not care whether an app serves a port. Here one that serves none is online as soon as it runs.
fn no_listen(words: &Words, directory: &Path, name: &str, mode: Mode, draft: &mut Draft) {
    let worker = port::is_worker(name) || port::is_worker(&words.script);
    match (mode, port::of(&directory.join(&words.script))) {
        (_, Port::Serves) | (Mode::Cluster, Port::Unknown) => {}
        (Mode::Fork { one: true } | Mode::Default { one: true }, Port::None) => {
            draft.set_with("no-listen", "true", "", "its source opens no port; remove this line if it does");
        }
        (Mode::Fork { .. }, _) | (Mode::Default { .. } | Mode::Cluster, Port::None) if worker => {
            draft.set_with("no-listen", "true", "", "a worker by its name; remove this line if it serves a port");
        }
        _ => draft.comment("no-listen = true  # if it serves no port"),
    }
}

//! `roundsman import`: a PM2 ecosystem file becomes a configuration file. What has no counterpart is named in a comment.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::check::{command, quoted, quoted_key};
use crate::exit::{Exit, USAGE};
use crate::launch::command::runner;

/// What to do where an option of PM2 has no counterpart.
const ELSEWHERE: [(&str, &str); 11] = [
    ("watch", "reload by hand or by your build: roundsman reload"),
    ("ignore_watch", "see watch"),
    ("autorestart", "servers are always restarted; a job that ends is not one for a supervisor"),
    ("cron_restart", "let cron run: roundsman reload"),
    ("merge_logs", "all slots write to one file, unless its name has {slot} in it"),
    ("combine_logs", "all slots write to one file, unless its name has {slot} in it"),
    ("instance_var", "ROUNDSMAN_SLOT and NODE_APP_INSTANCE are always set"),
    ("source_map_support", "write command = [\"node\", \"--enable-source-maps\", …]"),
    ("time", "timestamps = true"),
    ("pid_file", "roundsman ls --json has the pids"),
    ("deploy", "deploying is up to other programs; roundsman reload comes last"),
];

/// Prints what a file says as a configuration file.
///
/// # Errors
/// [`USAGE`] when it cannot be read, or is no ecosystem file.
pub fn import(file: &Path, env: Option<&str>) -> Result<(), Exit> {
    let refused = |why: String| Exit::new(USAGE, format!("cannot import {}: {why}", file.display()));
    let text = convert(&read(file).map_err(refused)?, file, env).map_err(refused)?;
    let mut out = std::io::stdout().lock();
    let _ = std::io::Write::write_all(&mut out, text.as_bytes());
    Ok(())
}

fn read(file: &Path) -> Result<Value, String> {
    let extension = file.extension().and_then(|end| end.to_str()).unwrap_or_default();
    if ["js", "cjs", "mjs"].contains(&extension) {
        return evaluate(file);
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    match extension {
        "json" => serde_json::from_str(&text).map_err(|error| error.to_string()),
        "yaml" | "yml" => serde_saphyr::from_str(&text).map_err(|error| error.to_string()),
        _ => Err("its name should end with .js, .cjs, .mjs, .json or .yaml".to_owned()),
    }
}

/// What a module exports, as node says.
fn evaluate(file: &Path) -> Result<Value, String> {
    const PROGRAM: &str = "import(require('url').pathToFileURL(process.argv[1])).then(m => {
        const v = m.default ?? m;
        require('fs').writeSync(3, JSON.stringify(typeof v === 'function' ? v() : v));
    }).catch(e => { console.error(e && e.message || e); process.exit(1) })";
    let path = std::path::absolute(file).map_err(|error| error.to_string())?;
    if !path.is_file() {
        return Err("there is no such file".to_owned());
    }
    // What the module prints goes to stderr; what it exports comes by a descriptor of its own.
    let program = format!("process.stdout.write = process.stderr.write.bind(process.stderr); {PROGRAM}");
    let output = Command::new("sh")
        .args(["-c", "exec node -e \"$0\" \"$1\" 3>&1 >&2", &program])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run node: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(format!("node cannot evaluate it: {last}"));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("it exports no apps: {error}"))
}

fn convert(ecosystem: &Value, file: &Path, env: Option<&str>) -> Result<String, String> {
    let apps = match ecosystem {
        Value::Array(apps) => apps.as_slice(),
        Value::Object(all) => match all.get("apps") {
            Some(Value::Array(apps)) => apps.as_slice(),
            Some(app @ Value::Object(_)) => std::slice::from_ref(app),
            // One app by itself, as PM2 takes it from JSON.
            None if all.contains_key("script") => std::slice::from_ref(ecosystem),
            _ => return Err("it has no `apps`".to_owned()),
        },
        _ => return Err("it has no `apps`".to_owned()),
    };
    let mut text =
        format!("# From {}. See it all: roundsman check -c THIS; run it: roundsman -c THIS\n", file.display());
    if let Some(Value::Object(_)) = ecosystem.get("deploy") {
        let _ = writeln!(text, "# deploy: {}", ELSEWHERE[10].1);
    }
    let mut names: Vec<String> = Vec::new();
    for app in apps {
        let Value::Object(app) = app else { return Err("an app is an object".to_owned()) };
        text.push('\n');
        text.push_str(&service(app, env, &mut names)?);
    }
    Ok(text)
}

/// One app.
fn service(app: &Map<String, Value>, env: Option<&str>, names: &mut Vec<String>) -> Result<String, String> {
    let words = words(app)?;
    let name = name(app, &words, names);
    let mut text = format!("[service.{}]\n", quoted_key(&name));
    let _ = writeln!(text, "{}", command(&words));
    if env.is_some_and(|env| !app.contains_key(&format!("env_{env}"))) {
        let _ = writeln!(text, "# there is no env_{}", env.unwrap_or_default());
    }
    let mut variables = Map::new();
    for (key, value) in app {
        let line = match key.as_str() {
            "name" | "script" | "args" | "interpreter" | "exec_interpreter" | "node_args" | "interpreter_args" => {
                continue;
            }
            "env" => {
                variables.extend(value.as_object().cloned().unwrap_or_default());
                continue;
            }
            other if other.starts_with("env_") => {
                match env.filter(|env| other == format!("env_{env}")) {
                    // Behind `env`, whatever the order in the file.
                    Some(_) => {}
                    None => _ = writeln!(text, "# {other}: roundsman import --env {}", &other[4..]),
                }
                continue;
            }
            _ => option(key, value),
        };
        let _ = writeln!(text, "{line}");
    }
    if !app.contains_key("cwd") {
        text.push_str("cwd = \".\"  # where this file lies, as with PM2\n");
    }
    if !app.contains_key("instances") {
        text.push_str("instances = 1\n");
    }
    if let Some(more) = env.and_then(|env| app.get(&format!("env_{env}"))?.as_object()) {
        variables.extend(more.clone());
    }
    if !variables.is_empty() {
        let _ = writeln!(text, "\n[service.{}.env]", quoted_key(&name));
        for (key, value) in &variables {
            let value = toml::Value::String(plain(value)).to_string();
            let _ = writeln!(text, "{} = {value}", quoted_key(key));
        }
    }
    Ok(text)
}

fn option(key: &str, value: &Value) -> String {
    let text = plain(value);
    let string = || quoted(&text.clone().into());
    match key {
        "instances" if text == "0" => "instances = \"max\"".to_owned(),
        "instances" => format!("instances = {}", string()),
        "exec_mode" if text.starts_with("cluster") => {
            "# exec_mode cluster: one port for all instances, as ever here".to_owned()
        }
        "exec_mode" => {
            "# exec_mode fork: instances share one port here, too; if it listens nowhere: no-listen = true".to_owned()
        }
        "cwd" => format!("cwd = {}", string()),
        "max_memory_restart" => format!("max-memory = {}", string()),
        "wait_ready" if value == &Value::Bool(true) => {
            "wait-ready = true  # process.send('ready'), or READY=1 on NOTIFY_SOCKET".to_owned()
        }
        "shutdown_with_message" if value == &Value::Bool(true) => "stop-message = \"shutdown\"".to_owned(),
        "wait_ready" => "# wait_ready false: as ever".to_owned(),
        "listen_timeout" => time("listen-timeout", value),
        "kill_timeout" => time("kill-timeout", value),
        "min_uptime" => time("min-uptime", value),
        "max_restarts" => format!("max-restarts = {}", string()),
        "exp_backoff_restart_delay" => format!("backoff = \"{text}ms..15s\""),
        "restart_delay" => format!("backoff = \"{text}ms..{text}ms\""),
        "out_file" | "out" | "output" => format!("out = {}", string()),
        "error_file" | "error" | "err_file" => format!("error = {}", string()),
        "log" | "log_file" => format!("out = {0}\nerror = {0}", string()),
        "log_date_format" => format!("timestamps = true  # in RFC 3339, not {}", string()),
        "time" if value == &Value::Bool(true) => "timestamps = true".to_owned(),
        "log_type" if text == "json" => "# log_type json: output = \"json\" above the first [service]".to_owned(),
        "user" | "uid" => format!("user = {}", string()),
        "kill_signal" => format!("stop-signal = {}", string()),
        other => {
            let hint =
                ELSEWHERE.iter().find(|(known, _)| *known == other).map_or("it has no counterpart", |(_, hint)| *hint);
            format!("# {other} {}: {hint}", text.lines().next().unwrap_or_default())
        }
    }
}

/// PM2 writes milliseconds, or a text with a unit.
fn time(key: &str, value: &Value) -> String {
    match value.as_u64().or_else(|| value.as_str()?.parse().ok()) {
        Some(millis) if millis % 1000 == 0 => format!("{key} = \"{}s\"", millis / 1000),
        Some(millis) => format!("{key} = \"{millis}ms\""),
        None => format!("{key} = {}", quoted(&plain(value).into())),
    }
}

fn words(app: &Map<String, Value>) -> Result<Vec<String>, String> {
    let text = |key: &str| app.get(key).map(plain).filter(|text| !text.is_empty());
    let script = text("script").ok_or("an app has no `script`")?;
    let list = |key: &str| match app.get(key) {
        Some(Value::Array(words)) => words.iter().map(plain).collect(),
        Some(Value::String(line)) => split(line),
        _ => Vec::new(),
    };
    let interpreter = text("interpreter").or_else(|| text("exec_interpreter"));
    let mut words = match interpreter.as_deref() {
        Some("none") => Vec::new(),
        Some(interpreter) => vec![interpreter.to_owned()],
        None => runner(&script).map(|runner| runner.split(' ').map(str::to_owned).collect()).unwrap_or_default(),
    };
    if !words.is_empty() {
        words.extend(list("node_args").into_iter().chain(list("interpreter_args")));
        words.push(script);
    } else if script.contains(' ') {
        // PM2 takes a whole line here.
        words.extend(split(&script));
    } else {
        words.push(script);
    }
    words.extend(list("args"));
    Ok(words)
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

/// A name that a service can have, used once.
fn name(app: &Map<String, Value>, words: &[String], names: &mut Vec<String>) -> String {
    let stem = |word: &String| Path::new(word).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let script = app.get("script").map(plain);
    let wanted =
        app.get("name").map(plain).or_else(|| script.as_ref().or(words.first()).and_then(stem)).unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let safe: String = wanted.chars().map(fits).take(60).collect();
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

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

//! Options of PM2 and the keys that they become.

use serde_json::Value;

use super::draft::Draft;
use super::options::{Options, plain};
use super::words::Words;
use crate::cli::check::command;

pub fn starts_and_stops(options: &mut Options<'_>, draft: &mut Draft) {
    match (options.text("uid"), options.text("gid")) {
        (Some(user), Some(group)) => draft.set("user", &format!("{user}:{group}"), "uid"),
        (Some(user), None) => draft.set("user", &user, "uid"),
        (None, Some(group)) => draft.comment(&format!("gid {group}: user = \"NAME:{group}\"")),
        (None, None) => {}
    }
    if let Some(size) = options.take("max_memory_restart") {
        // PM2 counts bytes where there is no unit.
        let text = plain(size);
        let bytes = text.parse::<f64>().ok().filter(|bytes| *bytes >= 0.0);
        draft.set("max-memory", &bytes.map_or(text, |bytes| format!("{}B", bytes as u64)), "max_memory_restart");
    }
    if options.switch("wait_ready") == Some(true) {
        draft.set_with("wait-ready", "true", "wait_ready", "process.send('ready'), or READY=1 on NOTIFY_SOCKET");
    }
    for (option, key) in
        [("listen_timeout", "listen-timeout"), ("kill_timeout", "kill-timeout"), ("min_uptime", "min-uptime")]
    {
        if let Some(value) = options.take(option) {
            draft.set(key, &time(value), option);
        }
    }
    if let Some(signal) = options.text("kill_signal") {
        draft.set("stop-signal", &signal, "kill_signal");
    }
    if !draft.has("stop-signal") {
        draft.set_with("stop-signal", "INT", "", "as PM2; the default here is TERM");
    }
    if options.switch("shutdown_with_message") == Some(true) {
        draft.set("stop-message", "shutdown", "shutdown_with_message");
    }
    if let Some(count) = options.take("max_restarts") {
        let whole = count.as_f64().filter(|count| count.fract() == 0.0).map(|count| format!("{count}"));
        draft.set("max-restarts", &whole.unwrap_or_else(|| plain(count)), "max_restarts");
    }
    let delays = [("exp_backoff_restart_delay", 15_000), ("restart_delay", 0)];
    for (option, most) in delays {
        let Some(value) = options.take(option) else { continue };
        match millis(value) {
            Some(0) => {}
            Some(first) => draft.set("backoff", &format!("{}..{}", short(first), short(first.max(most))), option),
            None => draft.comment(&format!("{option} {}: not a number of milliseconds", plain(value))),
        }
    }
}

pub fn output(options: &mut Options<'_>, draft: &mut Draft) {
    let file = |value: &Value| match plain(value) {
        null if ["NULL", "null"].contains(&null.as_str()) => "/dev/null".to_owned(),
        path => path,
    };
    if options.switch("disable_logs") == Some(true) {
        draft.set("out", "/dev/null", "disable_logs");
        draft.set("error", "/dev/null", "disable_logs");
    }
    for (option, key) in [("out_file", "out"), ("error_file", "error")] {
        if let Some((name, value)) = options.named(option) {
            draft.set(key, &file(value), &name);
        }
    }
    // PM2 writes both there, besides the other files.
    match options.named("log_file") {
        Some((_, Value::Bool(_))) | None => {}
        Some((name, value)) if draft.has("out") && draft.has("error") => {
            draft.comment(&format!("{name} {}: not used, out and error are set above", plain(value)));
        }
        Some((name, value)) => {
            for key in ["out", "error"].into_iter().filter(|key| !draft.has(key)).collect::<Vec<_>>() {
                draft.set(key, &file(value), &name);
            }
        }
    }
    let format = options.text("log_date_format");
    let time = options.switch("time") == Some(true);
    match format {
        Some(format) => {
            draft.set_with("timestamps", "true", "log_date_format", &format!("in RFC 3339, not {format:?}"));
        }
        None if time => draft.set("timestamps", "true", "time"),
        None => {}
    }
    if options.text("log_type").as_deref() == Some("json") {
        draft.comment("log_type json: write output = \"json\" above the first [service]");
    }
    if options.switch("merge_logs") == Some(true) {
        draft.comment("merge_logs: all slots write to one file, unless its name has {slot} in it");
    }
    if options.text("pid_file").is_some() {
        draft.comment("pid_file: roundsman ls --json shows the pids");
    }
    if let Some(name) = options.text("instance_var").filter(|name| name != "NODE_APP_INSTANCE") {
        draft.comment(&format!("instance_var {name}: ROUNDSMAN_SLOT and NODE_APP_INSTANCE have the number"));
    }
}

/// Restarts that are not due to a crash: jobs, cron, watch.
pub fn jobs(options: &mut Options<'_>, words: &Words, name: &str, draft: &mut Draft) {
    if options.switch("autorestart") == Some(false) {
        draft.comment("autorestart false: an exit with code 0 is not restarted");
        draft.set("on-exit", "ok", "autorestart");
    }
    if let Some(pattern) = options.take("cron_restart").and_then(Value::as_str).filter(|pattern| *pattern != "0") {
        let fields: Vec<_> = pattern.split_whitespace().collect();
        // PM2 takes seconds, too; a crontab does not.
        let fields = if fields.len() == 6 { &fields[1..] } else { &fields[..] };
        // cron does not know where the session's control sockets are.
        let runtime = std::env::var("XDG_RUNTIME_DIR").ok().filter(|path| !path.is_empty());
        let place = runtime.map(|path| format!("XDG_RUNTIME_DIR={path} ")).unwrap_or_default();
        draft.comment(&format!("cron_restart: add to crontab: {} {place}roundsman restart {name}", fields.join(" ")));
    }
    if options.switch("watch") == Some(true) {
        let mut watching = words.command.clone();
        watching.insert(words.at.min(watching.len()), "--watch".to_owned());
        let how = if words.node { command(&watching) } else { format!("after a change: roundsman reload {name}") };
        draft.comment(&format!("watch: {how}"));
        for option in ["ignore_watch", "watch_delay", "watch_options"] {
            options.take(option);
        }
    }
}

/// A time: PM2 writes milliseconds, or a text with a unit.
fn time(value: &Value) -> String {
    millis(value).map_or_else(|| plain(value), short)
}

fn short(millis: u64) -> String {
    if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") }
}

fn millis(value: &Value) -> Option<u64> {
    let millis = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (millis >= 0.0 && millis.is_finite()).then_some(millis as u64)
}

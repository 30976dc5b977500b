//! From PM2, option by option: what import writes means the same, and `check` accepts it.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use crate::support::{Daemon, free_port, get, install_dir, roundsman, write_file};

/// The file that import makes of apps, and what it says beside it; `check` accepts the file.
#[track_caller]
fn import(dir: &Path, ecosystem: &str, words: &[&str]) -> (String, String) {
    write_file(dir, "ecosystem.config.js", &format!("module.exports = {{ apps: {ecosystem} }}"));
    let output = roundsman()
        .args(["import", "ecosystem.config.js"])
        .args(words)
        .current_dir(dir)
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let toml = String::from_utf8(output.stdout).unwrap();
    write_file(dir, "roundsman.toml", &toml);
    let check = roundsman().args(["check", "-c", "roundsman.toml"]).current_dir(dir).output().unwrap();
    assert!(check.status.success(), "{}\n{toml}", String::from_utf8_lossy(&check.stderr));
    (toml, said)
}

#[track_caller]
fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|one| one == *line), "{line:?} is no line of\n{text}");
    }
}

#[test]
fn an_app_instead_of_an_ecosystem_file_is_refused_and_not_run_for_ever() {
    let dir = install_dir();
    write_file(dir.path(), "app.js", "require('http').createServer().listen(0); setInterval(() => {}, 1000)");
    let import = ["20", env!("CARGO_BIN_EXE_roundsman"), "import", "app.js"];
    let output = std::process::Command::new("timeout").args(import).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("it has no `apps`"), "{said}");
}

#[test]
fn options_that_mean_the_same_are_written_once() {
    let dir = install_dir();
    let of = |options: &str| import(dir.path(), &format!("[{{ script: 'app.js', name: 'a', {options} }}]"), &[]).0;
    write_file(dir.path(), "app.js", "");
    let text = of("time: true, log_date_format: 'HH:mm'");
    has(&text, &["timestamps = true  # in RFC 3339, not \"HH:mm\""]);
    let text = of("log_file: 'all.log', output: 'o.log'");
    has(&text, &["out = \"o.log\"", "error = \"all.log\""]);
    let text = of("log_file: 'all.log', error_file: 'e.log', out_file: 'o.log', out: 'x.log'");
    has(&text, &["out = \"o.log\"", "error = \"e.log\""]);
    has(&text, &["# log_file all.log: not used, out and error are set above"]);
    has(&text, &["# out: not used, out_file is the same option"]);
    let text = of("restart_delay: 500, exp_backoff_restart_delay: 100, killTimeout: 3000, kill_timeout: 2500");
    has(&text, &["backoff = \"100ms..15s\"", "kill-timeout = \"2500ms\""]);
}

#[test]
fn values_that_cannot_be_are_comments_with_the_reason() {
    let dir = install_dir();
    write_file(dir.path(), "app.js", "");
    let options = "instances: 5000, max_memory_restart: 'lots', kill_timeout: -1, min_uptime: 1e300, max_restarts: 1.5,
        kill_signal: 'SIGNOTHING', env: { B: null, C: 'line\\nbreak', \"a'\\\"\": true, '': 1 }, namespace: 'shop\\u0007\\nx',
        uid: '', log_file: true, args: '{port} \"a b\"', 'odd key\\n': 1";
    let (text, said) = import(dir.path(), &format!("[{{ script: 'app.js', {options} }}]"), &[]);
    assert_eq!(said, "");
    has(
        &text,
        &["command = [\"node\", \"app.js\", \"{{port}}\", \"a b\"]", "instances = 1", "# env B: null, left out"],
    );
    has(&text, &["# env : no process can have such a variable", "\"a'\\\"\" = \"true\""]);
    has(&text, &["# not supported: namespace, odd key "]);
    for words in [
        "# instances 5000: 1 to 1024",
        "# max_memory_restart lots: 'lots' is not a size",
        "# kill_timeout -1: ",
        "# min_uptime 18446744073709551615ms: ",
        "# max_restarts 1.5: ",
        "# kill_signal SIGNOTHING: 'SIGNOTHING' is not a signal",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn an_environment_that_does_not_exist_is_a_warning_that_names_the_others() {
    let dir = install_dir();
    write_file(dir.path(), "app.js", "");
    let apps = "[{ script: 'app.js', env: { A: 1 }, env_production: { A: 2 }, env_staging: {} }, { script: 'app.js' }]";
    let (text, said) = import(dir.path(), apps, &["--env", "prod"]);
    assert!(said.contains("app: there is no env_prod (only production, staging); its `env` alone is used"), "{said}");
    assert!(said.contains("app-2: there is no env_prod (no other)"), "{said}");
    has(&text, &["A = \"1\"", "# env_production: roundsman import --env production"]);
    let (text, said) = import(dir.path(), "[{ script: 'app.js', env_production: { A: 2 } }]", &["--env", "production"]);
    assert_eq!(said, "");
    has(&text, &["A = \"2\""]);
}

#[test]
fn jobs_cron_and_watch_say_what_to_do_instead() {
    let dir = install_dir();
    write_file(dir.path(), "app.js", "");
    let options =
        "autorestart: false, cron_restart: '0 3 * * *', watch: ['src'], ignore_watch: ['x'], node_args: '-r ./x'";
    let (text, _) = import(dir.path(), &format!("[{{ script: 'app.js', name: 'job', {options} }}]"), &[]);
    has(&text, &["# cron_restart: add to crontab: 0 3 * * * roundsman restart job"]);
    has(&text, &["# watch: command = [\"node\", \"-r\", \"./x\", \"--watch\", \"app.js\"]"]);
    assert!(text.contains("on-exit = \"ok\"") && !text.contains("ignore_watch"), "{text}");
    let (text, _) =
        import(dir.path(), "[{ script: 'app.js', watch: false, autorestart: true, cron: '1 0 3 * * 1' }]", &[]);
    assert!(!text.contains("watch") && !text.contains("autorestart"), "{text}");
    has(&text, &["# cron_restart: add to crontab: 0 3 * * 1 roundsman restart app"]);
    // cron has no session: where its daemons are is said in the line.
    let mut command = roundsman();
    command.args(["import", "ecosystem.config.js"]).current_dir(dir.path()).env("XDG_RUNTIME_DIR", "/run/user/7");
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    has(&text, &["# cron_restart: add to crontab: 0 3 * * 1 XDG_RUNTIME_DIR=/run/user/7 roundsman restart app"]);
}

#[test]
fn an_app_that_serves_no_port_gets_no_listen_where_that_is_certain() {
    let dir = install_dir();
    let file = |name: &str, text: &str| _ = write_file(dir.path(), name, text);
    file("tick.js", "const q = require('./lib/queue')\nsetInterval(q.next, 1000)");
    std::fs::create_dir(dir.path().join("lib")).unwrap();
    file("lib/queue.js", "exports.next = () => console.log('tick')");
    file("web.js", "require('./lib/web')");
    file("lib/web.js", "require('http').createServer().listen(process.env.P)");
    file("odd.js", "require(process.env.MODULE)");
    file("tick.py", "import time, lib2\nlib2.go()");
    file("lib2.py", "import time\ndef go(): time.sleep(1000)");
    file("web.py", "import serving");
    file("serving.py", "import http.server");
    let of = |app: &str| import(dir.path(), &format!("[{{ {app} }}]"), &[]).0;
    let written = |text: &str| text.lines().any(|line| line.starts_with("no-listen = true"));
    let offered = |text: &str| text.contains("# no-listen = true  # if it serves no port");
    for app in ["script: 'tick.js'", "script: 'tick.py'", "script: 'tick.js', instances: 1, exec_mode: 'fork'"] {
        assert!(written(&of(app)), "{app}: {}", of(app));
    }
    assert!(written(&of("script: 'odd.js', name: 'mail-worker', exec_mode: 'fork'")));
    file("queue.js", "setInterval(() => {}, 1000)");
    assert!(written(&of("script: 'queue.js', instances: 2")), "a worker by its source and its name");
    for app in
        ["script: 'odd.js'", "script: 'tick.js', instances: 4", "script: 'npm', args: 'start', interpreter: 'none'"]
    {
        let text = if app.contains("npm") { of(&app.replace("npm", "/bin/true")) } else { of(app) };
        assert!(offered(&text) && !written(&text), "{app}: {text}");
    }
    for app in [
        "script: 'web.js'",
        "script: 'web.py'",
        "script: 'web.js', name: 'worker', exec_mode: 'fork'",
        "script: 'tick.js', env: { PORT: 1 }",
        "script: 'tick.js', port: 3000",
        "script: 'odd.js', exec_mode: 'cluster', instances: 2",
    ] {
        assert!(!of(app).contains("no-listen"), "{app}: {}", of(app));
    }
}

/// PM2 sends SIGINT, and apps of PM2 handle that.
#[test]
fn an_imported_app_gets_pm2s_signal_and_an_imported_worker_is_online() {
    let dir = install_dir();
    let port = free_port();
    // The timer keeps it alive until the signal, whatever the channel says before.
    let app = "process.on('SIGINT', () => { console.log('got INT'); process.exit(0) }); setInterval(() => {}, 1000)
        require('http').createServer((_, r) => r.end('ok')).listen(process.env.PORT)";
    write_file(dir.path(), "app.js", app);
    write_file(dir.path(), "worker.js", "setInterval(() => {}, 1000)");
    let apps = format!(
        "[{{ script: 'app.js', port: {port}, exec_mode: 'cluster', out_file: 'out.log' }}, {{ script: 'worker.js' }}]"
    );
    let (text, _) = import(dir.path(), &apps, &[]);
    has(&text, &["stop-signal = \"INT\"  # as PM2; the default here is TERM"]);
    assert!(!text.contains("stop-message"), "{text}");
    let mut daemon = Daemon::launch(roundsman(), &["-c", dir.path().join("roundsman.toml").to_str().unwrap()], port);
    daemon.wait_for_count("worker online", 2);
    assert_eq!(get(port).unwrap(), "ok");
    assert_eq!(daemon.stop().code(), 0);
    assert!(std::fs::read_to_string(dir.path().join("out.log")).unwrap().contains("got INT"));
    let (text, _) =
        import(dir.path(), "[{ script: 'app.js', shutdown_with_message: true, kill_signal: 'SIGTERM' }]", &[]);
    has(&text, &["stop-message = \"shutdown\"", "stop-signal = \"SIGTERM\""]);
}

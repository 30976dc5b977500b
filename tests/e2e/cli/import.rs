//! From PM2: an ecosystem file becomes a configuration file, and runs.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, eventually, free_port, get, install_dir, roundsman, seconds, write_file};

const ECOSYSTEM: &str = "
console.log('a word to stdout')
const common = { kill_timeout: 1500, max_restarts: 5, min_uptime: '2s', exp_backoff_restart_delay: 100 }
module.exports = { apps: [
  { name: 'web api', script: './app.js', args: 'one \"two three\"', node_args: '--no-warnings', instances: 2,
    exec_mode: 'cluster', max_memory_restart: '300M', listen_timeout: 3000, wait_ready: true, watch: ['src'],
    env: { PORT: 'PORT_A', GREETING: 'hello' }, env_production: { GREETING: 'good day', N: 1 },
    out_file: './log/out.log', error_file: './log/err.log', log_date_format: 'YYYY', merge_logs: true, ...common },
  { script: 'worker.py', interpreter: 'python3', cwd: './jobs', autorestart: false, cron_restart: '0 0 * * *',
    env: { PORT: PORT_B }, something_new: { a: 1 } },
], deploy: { production: {} } }
";

fn import(dir: &Path, words: &[&str]) -> String {
    let output = roundsman().arg("import").args(words).current_dir(dir).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn two_apps_of_an_ecosystem_file_move_over_and_run() {
    let dir = install_dir();
    let (a, b) = (free_port(), free_port());
    let text = ECOSYSTEM.replace("'PORT_A'", &a.to_string()).replace("PORT_B", &b.to_string());
    write_file(dir.path(), "ecosystem.config.js", &text);
    let app =
        "require('http').createServer((_, r) => r.end([process.env.GREETING, ...process.argv.slice(2)].join('|')))
        .listen(process.env.PORT, '127.0.0.1', () => { console.log('listening'); process.send('ready') })";
    write_file(dir.path(), "app.js", app);
    std::fs::create_dir(dir.path().join("jobs")).unwrap();
    let worker = "
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.getcwd().encode())
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";
    write_file(&dir.path().join("jobs"), "worker.py", worker);
    let toml = import(dir.path(), &["ecosystem.config.js", "--env", "production"]);
    insta::assert_snapshot!("ecosystem", toml.replace(&a.to_string(), "PORT_A").replace(&b.to_string(), "PORT_B"));

    write_file(dir.path(), "roundsman.toml", &toml);
    let file = dir.path().join("roundsman.toml");
    let mut daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], a);
    daemon.wait_for_count("worker online", 3);
    assert_eq!(get(a).unwrap(), "good day|one|two three");
    assert_eq!(get(b).unwrap(), dir.path().join("jobs").canonicalize().unwrap().to_str().unwrap());
    let state = daemon.ls();
    let names: Vec<_> = state["services"].as_array().unwrap().iter().map(|service| service["name"].clone()).collect();
    assert_eq!(names, ["web-api", "worker"]);
    eventually("its log", seconds(5), || {
        let text = std::fs::read_to_string(dir.path().join("log/out.log")).ok()?;
        (text.lines().filter(|line| line.ends_with("Z listening")).count() == 2).then_some(())
    });
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn json_yaml_and_modules_mean_the_same() {
    let dir = install_dir();
    let json = r#"{"apps": [{"name": "web", "script": "app.js", "instances": "max", "env": {"A": "1"}}]}"#;
    write_file(dir.path(), "a.json", json);
    write_file(dir.path(), "a.config.cjs", &format!("module.exports = {json}"));
    write_file(dir.path(), "a.config.mjs", &format!("export default {json}"));
    write_file(
        dir.path(),
        "a.yaml",
        "apps:\n  - name: web\n    script: app.js\n    instances: max\n    env:\n      A: '1'\n",
    );
    let body = |file: &str| import(dir.path(), &[file]).split_once('\n').unwrap().1.to_owned();
    let wanted = body("a.json");
    assert!(wanted.contains("[service.web]\ncommand = [\"node\", \"app.js\"]\n"), "{wanted}");
    for file in ["a.config.cjs", "a.config.mjs", "a.yaml"] {
        assert_eq!(body(file), wanted, "{file}");
    }
    // A list of apps, and one by itself.
    write_file(dir.path(), "b.json", r#"[{"name": "web", "script": "app.js", "instances": "max", "env": {"A": "1"}}]"#);
    write_file(dir.path(), "c.json", r#"{"name": "web", "script": "app.js", "instances": "max", "env": {"A": "1"}}"#);
    assert_eq!((body("b.json"), body("c.json")), (wanted.clone(), wanted));
}

#[test]
fn what_is_no_ecosystem_file_is_named() {
    let dir = install_dir();
    for (name, text, words) in [
        ("a.js", "module.exports = {", "node cannot evaluate it"),
        ("a.js", "throw new Error('no such thing')", "no such thing"),
        ("a.js", "module.exports = 3", "it has no `apps`"),
        ("a.json", "{", "EOF"),
        ("a.json", r#"{"apps": [{"name": "x"}]}"#, "an app has no `script`"),
        ("a.json", r#"{"apps": [3]}"#, "an app is an object"),
        ("a.yaml", "apps: [", "line 1"),
    ] {
        write_file(dir.path(), name, text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_roundsman")).args(["import", name]).current_dir(dir.path()).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(words), "{words} in {text}");
    }
}

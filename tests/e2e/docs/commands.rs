//! Mostly waits: commands and examples of the documents, run as a new user would.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use super::{ROOT, blocks, blocks_of};
use crate::support::{Daemon, eventually, install_dir, seconds, servers, write_file};

/// Commands whose servers are only there for the long run (tests/install --all).
const LONG: [&str; 4] = ["-- puma ", "-- java ", "-- php ", "-- uvicorn "];

/// Commands of others, for the ones that follow.
const PREPARES: [&str; 1] = ["(umask 077 && openssl rand -hex 32 > admin-token)"];

/// What asks a running daemon, and a word of its answer.
const ASKS: [(&str, &str); 11] = [
    ("ls", "web"),
    ("reload", "reloaded 2 slots"),
    ("restart", "restarted"),
    ("scale", "3 slots"),
    ("stop", "stopped"),
    ("start", "started"),
    ("logs", " a word"),
    ("events", "worker-online"),
    ("messages", "another word"),
    ("send", "sent to"),
    ("health", "online"),
];

/// Commands that need a registry, a cluster, systemd or a terminal: the test that does the same, and words of it.
const ELSEWHERE: [(&str, &str, &str); 10] = [
    ("roundsman top", "tests/e2e/top/shows.rs", "&[\"top\"]"),
    ("docker build -t roundsman .", "tests/container/podman.rs", "\"localhost/roundsman\", ROOT"),
    ("docker run --rm -p 8080:8080 roundsman", "tests/container/image.rs", "&[\"localhost/roundsman\"]"),
    ("kubectl apply -k config/kubernetes", "tests/container/orchestrators.rs", "config/kubernetes"),
    ("systemctl enable --now roundsman", "tests/e2e/lifecycle/systemd.rs", "config/roundsman.service"),
    (
        "promtool check rules config/prometheus/alerts.yaml",
        "tests/e2e/admin/prometheus.rs",
        "\"config/prometheus/alerts.yaml\"",
    ),
    (
        "curl -sH 'Accept: text/plain' http://127.0.0.1:9900/metrics | promtool check metrics",
        "tests/e2e/admin/prometheus.rs",
        "[\"check\", \"metrics\"]",
    ),
    ("sudo dpkg -i roundsman_*_amd64.deb", "tests/container/package.rs", "dpkg -i /dist/*.deb"),
    ("tar xzf roundsman-*-x86_64-linux.tar.gz", "tests/e2e/docs/release.rs", "tar xzf *.tar.gz"),
    ("systemctl reload roundsman", "tests/e2e/lifecycle/systemd.rs", "RELOADING=1"),
];

/// The lines of the shell blocks, each once.
fn commands() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let blocks: Vec<_> = blocks_of("sh").iter().map(|block| block.replace("\\\n", "")).collect();
    for line in blocks.iter().flat_map(|block| block.lines()) {
        // Stopped and started again more than once, in the order of the documents.
        if !all.iter().any(|known| known == line) || line.ends_with("start") || line.ends_with("stop") {
            all.push(line.to_owned());
        }
    }
    assert!(all.len() >= 30, "{all:?}");
    all
}

fn builds(line: &str) -> bool {
    line.starts_with("cargo ") || line == "./tests/run"
}

fn is_long(line: &str) -> bool {
    LONG.iter().any(|server| line.contains(server))
}

/// A directory as a new user would have it: the program on the path, an app in several languages, a server.
fn prepare(dir: &Path) {
    symlink(env!("CARGO_BIN_EXE_roundsman"), dir.join("roundsman")).unwrap();
    let app = "console.log('a word')
        if (process.send) process.send('another word')
        require('http').createServer((_, r) => r.end('from node'))
        .listen(process.env.PORT || 8080, process.env.HOST || '127.0.0.1')";
    write_file(dir, "app.js", app);
    write_file(
        dir,
        "roundsman.toml",
        "[service.web]\nlisten = 8080\ncommand = [\"node\", \"app.js\"]\ninstances = 2\n",
    );
    let ecosystem = "module.exports = { apps: [{ name: 'web', script: 'app.js', env_production: { PORT: 8080 } }] }";
    write_file(dir, "ecosystem.config.js", ecosystem);
    let cluster = blocks_of("js").into_iter().find(|block| block.contains("cluster.isPrimary")).unwrap();
    write_file(dir, "cluster.js", &cluster);
    let wsgi = std::fs::read_to_string(format!("{ROOT}/tests/servers/wsgi.py")).unwrap();
    write_file(dir, "app.py", &format!("{wsgi}\n\nwsgi = app\n"));
    write_file(dir, "config.ru", "run ->(env) { [200, {}, ['from rack']] }");
    write_file(dir, "index.php", "from php");
    let java = "import com.sun.net.httpserver.*; import java.net.*;
class App { public static void main(String[] args) throws Exception {
  HttpServer server = HttpServer.create(new InetSocketAddress(\"127.0.0.1\", 8080), 512);
  server.createContext(\"/\", e -> { e.sendResponseHeaders(200, 2); e.getResponseBody().write(\"ok\".getBytes()); e.close(); });
  server.start(); } }";
    write_file(dir, "App.java", java);
    let server = "#!/usr/bin/env python3
import http.server, os, sys
port = int(sys.argv[sys.argv.index('--port') + 1] if '--port' in sys.argv else os.environ['PORT'])
http.server.ThreadingHTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()
";
    let server = write_file(dir, "server", server);
    std::fs::set_permissions(server, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The directory and the servers that tests/install has put in place, in front of the path.
fn path(dir: &Path) -> String {
    format!("{}:{}:{}", dir.display(), servers().join("venv/bin").display(), std::env::var("PATH").unwrap())
}

/// Runs a shell line in that directory, in a network of its own: its ports are free. Upstreams are not there: an address of
/// this machine with the port that is listened on would be the proxy itself.
fn type_in(dir: &Path, line: &str) -> Daemon {
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", &format!("ip link set lo up && {line}")]).current_dir(dir);
    command.env("PATH", path(dir)).env("CARGO_NET_OFFLINE", "true").env_remove("PORT");
    Daemon::launch(command, &[], 0)
}

/// Runs a shell line beside a daemon, in its network.
fn ask(daemon: &Daemon, dir: &Path, line: &str) -> Output {
    let target = format!("--target={}", daemon.pid());
    let mut command = Command::new("nsenter");
    command.args([&target, "--net", "sh", "-c", line]).current_dir(dir);
    command.env("PATH", path(dir)).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// GET in the daemon's network.
fn curl(daemon: &Daemon, dir: &Path) -> Option<String> {
    let output = ask(daemon, dir, "curl -sS http://127.0.0.1:8080/");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line that runs a daemon: its workers come online, it answers, and it stops with 0.
fn runs(dir: &Path, line: &str) {
    // Variables may come first.
    let mut daemon = type_in(dir, &line.replacen("roundsman ", "exec roundsman ", 1));
    if line.contains("--on-exit ok") {
        let end = daemon.finish(seconds(20));
        assert_eq!(end.code(), 0, "{line}: {}", end.log);
        return;
    }
    daemon.wait_for("worker online");
    if (line.contains(" -- ") || line.contains(" -c ")) && !line.contains("--no-listen") {
        let body = eventually(&format!("an answer: {line}"), seconds(20), || curl(&daemon, dir));
        assert!(!body.is_empty(), "{line}");
    }
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{line}: {}", end.log);
}

/// A line that asks for an operation over HTTP.
fn asks_the_admin_address(dir: &Path, line: &str) {
    let serve = "exec roundsman -n web -l 8080 -i 1 --admin 9900 --admin-token-file admin-token -- node app.js";
    let mut daemon = type_in(dir, serve);
    daemon.wait_for("worker online");
    let answer = text(&ask(&daemon, dir, line));
    assert!(answer.contains("\"done\"") || answer.contains("\"step\""), "{line}: {answer}");
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn the_commands_of_the_documents_work() {
    let dir = install_dir();
    prepare(dir.path());
    let mut web = type_in(dir.path(), "exec roundsman -n web -l 8080 -i 2 --min-uptime 100ms -- node app.js");
    web.wait_for_count("worker online", 2);
    for line in commands().iter().filter(|line| !builds(line) && !is_long(line)) {
        if PREPARES.contains(&line.as_str()) {
            let status = Command::new("sh").args(["-c", line]).current_dir(&dir).status();
            assert!(status.unwrap().success(), "{line}");
            continue;
        }
        if line.starts_with("curl ") {
            asks_the_admin_address(dir.path(), line);
            continue;
        }
        let (before, words) = line.split_once("roundsman ").unwrap_or_default();
        assert!(!words.is_empty() && before.split_whitespace().all(|word| word.starts_with("ROUNDSMAN_")), "{line}");
        let verb = words.split(' ').next().unwrap();
        if let Some((_, word)) = ASKS.iter().find(|(known, _)| *known == verb) {
            let output = ask(&web, dir.path(), line);
            let text = text(&output);
            assert!(output.status.success() && text.contains(word), "{line}: {text}");
            // The other lines are about two slots.
            if verb == "scale" {
                assert!(ask(&web, dir.path(), "roundsman scale 2").status.success());
            }
        } else if ["check", "import"].contains(&verb) {
            let output = Command::new("sh").args(["-c", line]).current_dir(&dir).env("PATH", path(dir.path())).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{line}: {}", text(&output));
            let file = std::fs::read_to_string(dir.path().join("roundsman.toml")).unwrap();
            assert!(file.contains("[service.web]"), "{file}");
        } else {
            runs(dir.path(), line);
        }
    }
    assert_eq!(web.stop().code(), 0);
}

#[test]
#[ignore = "long: tests/run --all"]
fn the_commands_with_servers_of_the_long_run_work() {
    let dir = install_dir();
    prepare(dir.path());
    let long: Vec<_> = commands().into_iter().filter(|line| is_long(line)).collect();
    assert_eq!(long.len(), LONG.len(), "{long:?}");
    long.iter().for_each(|line| runs(dir.path(), line));
}

/// They build with optimisation, which takes minutes.
#[test]
fn every_command_that_builds_works() {
    let built = Command::new(env!("CARGO")).args(["build", "--release", "--quiet"]).current_dir(ROOT).status();
    assert!(built.unwrap().success());
    let dir = install_dir();
    for line in commands().iter().filter(|line| builds(line)) {
        match line.as_str() {
            // It is what runs this.
            "./tests/run" => {
                assert!(Path::new(ROOT).join("tests/run").metadata().unwrap().permissions().mode() & 1 == 1)
            }
            "cargo run --release -- demo" => {
                let mut daemon = type_in(Path::new(ROOT), &format!("exec {line}"));
                daemon.wait_for_count("worker online", 4);
                assert!(curl(&daemon, dir.path()).unwrap().contains("hello from slot"));
                assert_eq!(daemon.stop().code(), 0);
            }
            "cargo install --locked --path ." => {
                let line = format!("{line} --offline --root {}", dir.path().display());
                let output = Command::new("sh").args(["-c", &line]).current_dir(ROOT).output().unwrap();
                assert!(output.status.success(), "{}", text(&output));
                let output = Command::new(dir.path().join("bin/roundsman")).arg("--version").output().unwrap();
                assert!(text(&output).starts_with("roundsman "), "{}", text(&output));
            }
            _ => panic!("a command that this test does not know: {line}"),
        }
    }
}

/// Numbers differ from run to run, and with them the widths of columns.
fn without_numbers(text: &str) -> String {
    let word = |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { "N" } else { word }.to_owned();
    let line = |line: &str| {
        // How long it took has one word or two.
        let line = line.split(" in ").next().unwrap_or_default();
        line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    text.trim().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_typed_into_the_demo_prints_what_the_readme_shows() {
    let dir = install_dir();
    prepare(dir.path());
    let mut demo = type_in(dir.path(), "exec roundsman demo");
    demo.wait_for_count("worker online", 4);
    let shown = blocks_of("console").into_iter().find(|block| block.contains("hello from slot")).unwrap();
    let steps: Vec<_> = shown.split("$ ").skip(1).map(|step| step.split_once('\n').unwrap()).collect();
    assert!(steps.len() >= 2, "{steps:?}");
    for (line, printed) in steps {
        // The clients of the slots take turns, whichever is the first.
        let output = ask(&demo, dir.path(), line);
        assert_eq!(without_numbers(&text(&output)), without_numbers(printed), "{line}");
    }
    assert_eq!(demo.stop().code(), 0);
}

#[test]
fn commands_that_need_more_than_this_machine_are_tested_elsewhere() {
    let shown = blocks_of("console").into_iter().filter(|block| !block.contains("hello from slot"));
    let lines: Vec<String> = shown.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    assert_eq!(lines.len(), ELSEWHERE.len(), "{lines:?}");
    for line in lines {
        let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("{line}"));
        let (_, file, words) =
            ELSEWHERE.iter().find(|(known, ..)| *known == command).unwrap_or_else(|| panic!("{line}"));
        let source = std::fs::read_to_string(format!("{ROOT}/{file}")).unwrap();
        assert!(source.contains(words), "{file} has no {words}");
    }
}

#[test]
fn configurations_of_the_documents_are_accepted_and_images_are_those_of_config() {
    let dir = install_dir();
    prepare(dir.path());
    for block in blocks_of("toml") {
        write_file(dir.path(), "shown.toml", &block);
        let mut check = Command::new(dir.path().join("roundsman"));
        let output = check.args(["check", "-c", "shown.toml"]).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    let ours = ["go", "java", "node", "node-alpine", "python"];
    let ours = ours.map(|name| std::fs::read_to_string(format!("{ROOT}/config/docker/{name}.Dockerfile")).unwrap());
    for block in blocks_of("dockerfile") {
        assert!(ours.contains(&block), "{block}");
    }
    // Each kind of block has its test, except what is only looked at.
    let tested = ["sh", "console", "toml", "dockerfile", "js", "json", "text"];
    assert!(blocks().iter().all(|(language, _)| tested.contains(&language.as_str())));
}

#[test]
fn the_environment_file_in_config_runs() {
    let dir = install_dir();
    prepare(dir.path());
    let mut daemon = type_in(dir.path(), &format!("set -a && . {ROOT}/config/tcp-proxy.env && exec roundsman"));
    daemon.wait_for("worker online");
    let state = daemon.ls();
    let service = &state["services"][0];
    assert_eq!((service["name"].as_str(), service["policy"].as_str()), (Some("redis"), Some("least-conn")));
    assert_eq!(service["listen"][0]["addr"], "127.0.0.1:6379");
    assert_eq!(daemon.stop().code(), 0);
}

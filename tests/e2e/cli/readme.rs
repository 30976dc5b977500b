//! What the README and config/ say, typed as it stands there.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, eventually, install_dir, seconds, write_file};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The lines of the README's shell blocks.
fn commands() -> Vec<String> {
    let text = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

/// A directory as a new user would have it: the program on the path, an app for Node, a server.
fn prepare(dir: &Path) {
    symlink(env!("CARGO_BIN_EXE_roundsman"), dir.join("roundsman")).unwrap();
    let app = "require('http').createServer((_, r) => r.end('from node'))
        .listen(process.env.PORT || 8080, process.env.HOST || '127.0.0.1')";
    write_file(dir, "app.js", app);
    write_file(
        dir,
        "roundsman.toml",
        "[service.web]\nlisten = 8080\ncommand = [\"node\", \"app.js\"]\ninstances = 2\n",
    );
    let cluster = "const cluster = require('cluster')
        if (cluster.isPrimary) { cluster.fork(); cluster.on('exit', () => cluster.fork()) } else require('./app')";
    write_file(dir, "cluster.js", cluster);
    let ecosystem = "module.exports = { apps: [{ name: 'web', script: 'app.js', env_production: { PORT: 8080 } }] }";
    write_file(dir, "ecosystem.config.js", ecosystem);
    let server = "#!/usr/bin/env python3
import http.server, os, sys
port = int(sys.argv[sys.argv.index('--port') + 1] if '--port' in sys.argv else os.environ['PORT'])
http.server.ThreadingHTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()
";
    let server = write_file(dir, "server", server);
    std::fs::set_permissions(server, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a shell line in that directory, in a network of its own: its ports are free. Upstreams are not there: an address of
/// this machine with the port that is listened on would be the proxy itself.
fn type_in(dir: &Path, line: &str) -> Daemon {
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", &format!("ip link set lo up && {line}")]).current_dir(dir);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", dir.display())).env("CARGO_NET_OFFLINE", "true");
    Daemon::launch(command, &[], 0)
}

/// GET in the daemon's network.
fn curl(daemon: &Daemon, port: &str) -> Option<String> {
    let target = format!("--target={}", daemon.pid());
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("nsenter").args([&target, "--net", "curl", "-sS", &url]).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_command_of_the_readme_works() {
    let dir = install_dir();
    prepare(dir.path());
    let commands = commands();
    assert!(commands.len() >= 9, "{commands:?}");
    for line in &commands {
        match line.as_str() {
            // It is what runs this.
            "./tests/run" => {
                assert!(Path::new(ROOT).join("tests/run").metadata().unwrap().permissions().mode() & 1 == 1)
            }
            "cargo run --release -- demo" => {
                // The build takes its time; what is waited for is the demo.
                let built =
                    Command::new(env!("CARGO")).args(["build", "--release", "--quiet"]).current_dir(ROOT).status();
                assert!(built.unwrap().success());
                let mut daemon = type_in(Path::new(ROOT), &format!("exec {line}"));
                daemon.wait_for_count("worker online", 4);
                assert!(curl(&daemon, "8080").unwrap().contains("hello from slot"));
                assert_eq!(daemon.stop().code(), 0);
            }
            "roundsman reload" => {
                let daemon = type_in(dir.path(), "exec roundsman -i 1 -- node app.js");
                daemon.wait_for("worker online");
                let mut command = Command::new(dir.path().join("roundsman"));
                let output = command.arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            _ if line.starts_with("roundsman check") || line.starts_with("roundsman import") => {
                let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
                let mut shell = Command::new("sh");
                let output = shell.args(["-c", line]).current_dir(dir.path()).env("PATH", path).output().unwrap();
                assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
                let text = std::fs::read_to_string(dir.path().join("roundsman.toml")).unwrap();
                assert!(text.contains("[service.web]"), "{text}");
            }
            "roundsman health" | "roundsman logs -n 20" => {
                let daemon = type_in(dir.path(), "exec roundsman -i 1 -- sh -c 'echo a word; exec node app.js'");
                daemon.wait_for("worker online");
                let mut command = Command::new(dir.path().join("roundsman"));
                command.args(line.split(' ').skip(1)).env("ROUNDSMAN_CONTROL", daemon.control());
                let output = command.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("1 of 1 online") || text.contains("/0 | a word"), "{text}");
            }
            _ if line.starts_with("roundsman ls") => {
                let daemon = type_in(dir.path(), "exec roundsman -l 8080 -i 1 -u 10.0.0.5:80");
                daemon.wait_for("worker online");
                let mut words = line.split(' ');
                let output = Command::new(dir.path().join(words.next().unwrap()))
                    .args(words)
                    .env("ROUNDSMAN_CONTROL", daemon.control())
                    .output()
                    .unwrap();
                assert!(output.status.success());
                assert!(String::from_utf8_lossy(&output.stdout).contains("proxy-8080"));
            }
            _ if line.contains("--on-exit ok") => {
                let end = type_in(dir.path(), &format!("exec {line}")).finish(seconds(20));
                assert_eq!(end.code(), 0, "{line}: {}", end.log);
            }
            _ => {
                assert!(line.starts_with("roundsman -"), "a command that this test does not know: {line}");
                let mut daemon = type_in(dir.path(), &format!("exec {line}"));
                daemon.wait_for("worker online");
                if (line.contains(" -- ") || line.contains(" -c ")) && !line.contains("--no-listen") {
                    let body = eventually("an answer", seconds(10), || curl(&daemon, "8080"));
                    assert!(!body.is_empty(), "{line}");
                }
                let end = daemon.stop();
                assert_eq!(end.code(), 0, "{line}: {}", end.log);
            }
        }
    }
}

#[test]
fn the_options_of_the_readme_exist_with_these_defaults() {
    let help = Command::new(env!("CARGO_BIN_EXE_roundsman")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let text = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let table = text.split("| option | default | what it is |").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut seen = 0;
    for row in table.lines().skip(2) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let defaults: Vec<_> = cells[2].split(", ").collect();
        for (option, default) in cells[1].split(", ").map(|option| option.trim_matches('`')).zip(defaults) {
            let places = [format!("{option} <"), format!("{option}\n")];
            let at = places.iter().find_map(|place| help.find(place.as_str()));
            let at = at.unwrap_or_else(|| panic!("{option} is not in --help"));
            let about = help[at..].split("\n  -").next().unwrap().split("\n      -").next().unwrap();
            if about.contains("[default: ")
                && default.chars().next().unwrap().is_ascii_alphanumeric()
                && !default.contains(' ')
            {
                assert!(about.contains(&format!("[default: {default}]")), "{option}: {default} in {about}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 14, "{seen}");
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

#[test]
fn the_readme_shows_an_image_as_it_is_tested() {
    let text = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let shown = text.split("```dockerfile\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, std::fs::read_to_string(format!("{ROOT}/config/docker/node.Dockerfile")).unwrap());
    // What it links to is there.
    for link in text.split("](config").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(Path::new(&format!("{ROOT}/config{link}")).exists(), "config{link}");
    }
}

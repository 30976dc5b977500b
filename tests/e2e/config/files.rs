//! The files in config/, and what `check` says of files.

use std::path::{Path, PathBuf};

use super::in_force::APP;
use crate::support::{Daemon, answers, free_port, get, install_dir, roundsman, write_file};

/// A file of config/, with ports that are free.
fn example(dir: &Path, name: &str, ports: &[(&str, u16)]) -> PathBuf {
    let mut text = std::fs::read_to_string(format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (old, new) in ports {
        assert!(text.contains(old), "{old} in {name}");
        text = text.replace(old, &new.to_string());
    }
    write_file(dir, name, &text)
}

#[test]
fn every_example_of_config_runs() {
    use std::os::unix::fs::PermissionsExt;
    let dir = install_dir();
    let (a, b) = (free_port(), free_port());
    write_file(dir.path(), "app.js", APP);
    let server = "#!/usr/bin/env python3
import http.server, sys
port = int(sys.argv[sys.argv.index('--port') + 1])
http.server.ThreadingHTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()
";
    let server = write_file(dir.path(), "server", server);
    std::fs::set_permissions(server, std::fs::Permissions::from_mode(0o755)).unwrap();
    let upstream = crate::support::Upstream::echo();
    type Ports<'a> = &'a [(&'a str, u16)];
    let examples: [(&str, Ports<'_>, usize); 5] = [
        ("full.toml", &[("8080", a), ("6379", b), ("6380", upstream.address.port())], 3),
        ("node.toml", &[], std::thread::available_parallelism().unwrap().get()),
        ("python.toml", &[("8000", a)], 4),
        ("go.toml", &[("8080", a)], 2),
        ("tcp-proxy.toml", &[("6379", b), ("6380", upstream.address.port())], 1),
    ];
    for (name, ports, online) in examples {
        let file = example(dir.path(), name, ports);
        let mut command = roundsman();
        command.current_dir(dir.path()).env("APP_PORT", a.to_string());
        let mut daemon = Daemon::launch(command, &["-c", file.to_str().unwrap()], a);
        daemon.wait_for_count("worker online", online);
        if name != "tcp-proxy.toml" {
            assert!(!get(a).unwrap().is_empty(), "{name}");
        }
        if ["full.toml", "tcp-proxy.toml"].contains(&name) {
            let mut client = std::net::TcpStream::connect(("127.0.0.1", b)).unwrap();
            std::io::Write::write_all(&mut client, b"ping").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(crate::support::read_all(&mut client).unwrap(), b"ping", "{name}");
        }
        assert_eq!(daemon.stop().code(), 0, "{name}");
    }
    let text = std::fs::read_to_string(dir.path().join("full.toml")).unwrap();
    for key in roundsman::config::sources::keys().iter().filter(|key| key.name != "config") {
        let said = text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{} = ", key.name)));
        assert!(said, "full.toml says nothing of {}", key.name);
    }
}

#[test]
fn flags_win_over_variables_over_the_file_over_the_defaults_and_check_says_which() {
    let dir = install_dir();
    let file = write_file(
        dir.path(),
        "a.toml",
        "[service.web]\ncommand = [\"true\"]\npolicy = \"least-conn\"\ninstances = 7\nbackoff = \"1s..2s\"\n",
    );
    let check = |words: &[&str], env: &[(&str, &str)]| {
        let mut command = roundsman();
        let output = command.arg("check").args(words).envs(env.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let path = file.to_str().unwrap();
    let text = check(&["-c", path, "-p", "ip-hash"], &[("ROUNDSMAN_POLICY", "rr"), ("ROUNDSMAN_INSTANCES", "2")]);
    for line in [
        "policy = \"ip-hash\"  # flag".to_owned(),
        "instances = 2  # ROUNDSMAN_INSTANCES".to_owned(),
        format!("backoff = \"1s..2s\"  # {path}:5"),
        "drain-timeout = \"10s\"  # default".to_owned(),
        "command = [\"true\"]  # ".to_owned() + path + ":2",
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
    // What it prints can be read again, and means the same.
    let values = |text: &str| {
        let value = |line: &str| line.split("  # ").next().unwrap_or_default().to_owned();
        text.lines().map(value).collect::<Vec<_>>()
    };
    let full = check(&["-c", &format!("{}/config/full.toml", env!("CARGO_MANIFEST_DIR"))], &[]);
    let again = write_file(dir.path(), "again.toml", &full);
    assert_eq!(values(&check(&["-c", again.to_str().unwrap()], &[])), values(&full));
    // Without a file, too.
    let text = check(&["-l", "8080", "--", "sh", "-c", "a \"b\"\n"], &[]);
    assert!(text.contains(r#"[service.sh]"#) && text.contains("listen = [8080]  # flag"), "{text}");
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn the_example_for_go_runs_a_go_program() {
    let (dir, port) = (install_dir(), free_port());
    let source = "package main
import (\"flag\"; \"fmt\"; \"net/http\"; \"os\")
func main() {
	port := flag.String(\"port\", \"\", \"\"); flag.Parse()
	http.HandleFunc(\"/\", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, \"go \", os.Getenv(\"ROUNDSMAN_SLOT\")) })
	http.ListenAndServe(\"127.0.0.1:\" + *port, nil)
}
";
    write_file(dir.path(), "server.go", source);
    let mut go = std::process::Command::new("go");
    go.args(["build", "-o", "server", "server.go"]).current_dir(dir.path());
    go.env("CGO_ENABLED", "0").env("GOCACHE", dir.path().join("cache")).env("GOFLAGS", "-mod=mod");
    let built = go.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let file = example(dir.path(), "go.toml", &[("8080", port)]);
    let mut command = roundsman();
    command.current_dir(dir.path());
    let mut daemon = Daemon::launch(command, &["-c", file.to_str().unwrap()], port);
    daemon.wait_for_count("worker online", 2);
    answers(&["go 0", "go 1"].map(str::to_owned).into(), || get(port).unwrap());
    assert_eq!(daemon.stop().code(), 0);
}

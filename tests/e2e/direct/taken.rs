//! A server that picks its own port and cannot have it: the log names the holder, as it does for `--listen`.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpListener;

use crate::support::{Daemon, install_dir, roundsman, unprivileged_copy, write_file};

const NODE: &str = "require('http').createServer((_, r) => r.end()).listen(Number(process.env.WANTED), '127.0.0.1')";
const PYTHON: &str = "import http.server, os
http.server.HTTPServer(('127.0.0.1', int(os.environ['WANTED'])), http.server.SimpleHTTPRequestHandler).serve_forever()";

#[test]
fn the_holder_of_a_port_that_the_server_chose_is_named_once() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let wanted = format!(
        "cannot listen on 127.0.0.1:{port}: address already in use by {} (pid {})",
        name.trim(),
        std::process::id()
    );
    let dir = install_dir();
    write_file(dir.path(), "app.js", NODE);
    write_file(dir.path(), "app.py", PYTHON);
    for (command, ipc) in [(["node", "app.js"], "auto"), (["node", "app.js"], "off"), (["python3", "app.py"], "auto")] {
        let mut start = roundsman();
        start.current_dir(dir.path()).env("WANTED", port.to_string());
        let options = ["-i", "2", "--node-ipc", ipc, "--backoff", "10ms..20ms", "--max-restarts", "2", "--"];
        let mut daemon = Daemon::launch(start, &[&options[..], &command].concat(), port);
        daemon.wait_for(&wanted);
        let log = daemon.finish(crate::support::seconds(20)).log;
        assert_eq!(log.matches(&wanted).count(), 1, "{log}");
        let reason = format!("reason=\"cannot listen on 127.0.0.1:{port}: address already in use\"");
        assert!(log.matches(&reason).count() > 1, "each end names the reason: {log}");
    }
}

#[test]
fn a_privileged_port_that_the_server_chose_is_explained() {
    let dir = install_dir();
    let copy = unprivileged_copy(dir.path());
    write_file(dir.path(), "app.js", NODE);
    write_file(dir.path(), "app.py", PYTHON);
    for command in [["node", "app.js"], ["python3", "app.py"]] {
        let mut start = std::process::Command::new("setpriv");
        start.args(["--reuid=65534", "--regid=65534", "--clear-groups", copy.to_str().unwrap()]);
        start.current_dir(dir.path()).env("WANTED", "97").env("XDG_RUNTIME_DIR", dir.path());
        let options = ["-i", "1", "--backoff", "10ms..20ms", "--max-restarts", "2", "--"];
        let daemon = Daemon::launch(start, &[&options[..], &command].concat(), 97);
        daemon.wait_for("cannot listen on 127.0.0.1:97: permission denied; ports below 1024 need root");
        daemon.wait_for("ip_unprivileged_port_start=97");
        daemon.wait_for("reason=\"cannot listen on 127.0.0.1:97: permission denied\"");
    }
}

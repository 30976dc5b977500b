//! `--drain-idle move`: idle connections of a worker that is replaced go on with another one.

mod clients;
mod hostile;
mod hung;
mod kept;
mod matrix;
mod refused;
mod relayed;
mod reloads;
mod scaled;
mod smuggling;
mod spread;
mod wrong_moves;

use std::path::Path;
use std::process::Output;

use crate::support::{Daemon, free_port, roundsman};

/// With `--drain-idle move` and these options.
pub fn launch(slots: usize, options: &[&str], command: &[&str]) -> Daemon {
    let port = free_port();
    let (listen, instances) = (format!("127.0.0.1:{port}"), slots.to_string());
    let mut all = vec!["-n", "web", "-l", &listen, "-i", &instances, "--min-uptime", "100ms"];
    all.extend(["--drain-idle", "move", "--listen-timeout", "60s"]);
    if !options.contains(&"--drain-timeout") {
        all.extend(["--drain-timeout", "5s"]);
    }
    all.extend(options);
    all.push("--");
    all.extend(command);
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(slots);
    daemon
}

pub fn reload(daemon: &Daemon) {
    let Output { status, stderr, .. } =
        roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(status.success(), "{}\n{}", String::from_utf8_lossy(&stderr), daemon.log());
}

/// A server that does what each path says.
pub fn keeps() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/keeps.py").to_str().unwrap().to_owned()
}

//! A server under direct delivery, and a request to it.

use super::table::Client;
use super::{Daemon, roundsman, servers};

pub fn start(port: u16, instances: &str, command: &[String]) -> Daemon {
    start_with(port, instances, &["--via", "direct"], command)
}

pub fn start_with(port: u16, instances: &str, more: &[&str], command: &[String]) -> Daemon {
    let mut arguments = vec!["-i", instances];
    arguments.extend(more);
    arguments.push("--");
    arguments.extend(command.iter().map(String::as_str));
    let mut program = roundsman();
    program.env("SERVERS", servers());
    let daemon = Daemon::launch(program, &arguments, port);
    daemon.wait_online(instances.parse().unwrap());
    daemon
}

/// A request from a port of ours: (who answered, whether the server knew the port).
pub fn ask(port: u16) -> (String, bool) {
    Client::Http.ask(port)
}

/// The process that a server is a child of: behind a keeper, that.
pub fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

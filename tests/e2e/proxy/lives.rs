//! The client's address goes with the connection from one life of a worker to the next, whatever the server is.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::servers::{Server, all};
use super::{connect_to, v1, v2};
use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, freeze, install_dir, seconds};

/// A process and all below it.
fn tree(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().flat_map(|child| tree(child.parse().unwrap()));
    [pid].into_iter().chain(below).collect()
}

/// The client's address in each family.
fn client(family: &str, n: u8) -> (String, &'static str) {
    match family {
        "0.0.0.0" => (format!("192.0.2.{n}"), "203.0.113.1"),
        _ => (format!("2001:db8::{n:x}"), "2001:db8:1::1"),
    }
}

/// Sends a question behind a header.
fn send(server: &Server, family: &str, port: u16, n: u8) -> TcpStream {
    let (client, destination) = client(family, n);
    let header = if n.is_multiple_of(2) { v1(&client, destination) } else { v2(&client, destination, &[]) };
    let mut stream = connect_to(if family == "::" { "::1" } else { "127.0.0.1" }, port);
    stream.write_all(&[&header[..], server.question()].concat()).unwrap();
    stream
}

#[track_caller]
fn answers(server: &Server, family: &str, streams: Vec<TcpStream>, daemon: &Daemon) {
    for (n, mut stream) in (1..).zip(streams) {
        let (client, destination) = client(family, n);
        let address = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let said = server.names(&mut stream, address(&client, 56_324), address(destination, 443));
        said.unwrap_or_else(|error| panic!("{family}: {error}\n{}", daemon.log()));
    }
}

#[test]
#[ignore = "long"]
fn a_stall_a_crash_and_a_reload_of_all_servers() {
    for family in ["0.0.0.0", "::"] {
        let dir = install_dir();
        let port = free_port();
        for server in all(dir.path(), family, port) {
            let daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1,::1"], &server.command);
            for end in [Signal::SIGCONT, Signal::SIGKILL] {
                let victims = tree(daemon.workers()[0]);
                let before = daemon.total("rescued");
                victims.iter().for_each(|pid| freeze(*pid));
                let streams = (1..=20).map(|n| send(&server, family, port, n)).collect();
                eventually("a rescue", seconds(20), || (daemon.total("rescued") > before).then_some(()));
                victims.iter().for_each(|pid| kill(Pid::from_raw(*pid), end).unwrap_or(()));
                answers(&server, family, streams, &daemon);
                daemon.wait_online(2);
            }
            let before = daemon.workers();
            daemon.signal(Signal::SIGHUP);
            // Some are under way while workers change.
            while !daemon.log().contains("reloaded") {
                answers(&server, family, (1..=4).map(|n| send(&server, family, port, n)).collect(), &daemon);
            }
            assert!(daemon.workers().iter().all(|pid| !before.contains(pid)), "{}", server.name);
            answers(&server, family, (1..=20).map(|n| send(&server, family, port, n)).collect(), &daemon);
        }
    }
}

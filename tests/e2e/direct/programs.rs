//! Programs in Go, C and Rust that make their system calls themselves, under direct delivery: each through reloads and kills.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::clients::Clients;
use crate::support::direct::{ask, start_with};
use crate::support::go::{cgo_program, go_program, static_rust, static_tokio};
use crate::support::{Daemon, answers, free_port, roundsman, static_pie_server, unsaid};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The keeper answers for it, and its slots take turns and know their clients.
fn serves(command: &[String], port: u16) -> Daemon {
    let daemon = start_with(port, "2", &["--via", "direct", "-l", &port.to_string()], command);
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()), "{command:?}");
    assert!((0..40).all(|_| ask(port).1), "{command:?}: the client's address");
    answers(&["slot 0", "slot 1"].map(str::to_owned).into(), || ask(port).0);
    daemon
}

fn lives(command: &[String], port: u16, reloads: usize, kills: usize) {
    let end = serves(command, port).stop();
    assert_eq!(end.code(), 0, "{command:?}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
    let clients = Clients::of_http(command, port);
    clients.through_reloads(reloads);
    clients.through_kills(kills);
}

#[test]
fn a_static_pie() {
    let port = free_port();
    lives(&words(&[static_pie_server(), "threads", &port.to_string()]), port, 2, 4);
}

#[test]
fn a_static_server_in_rust() {
    let port = free_port();
    lives(&words(&[&static_rust(), &port.to_string()]), port, 2, 4);
}

#[test]
#[ignore = "builds tokio: tests/run --all"]
fn a_static_server_in_rust_with_tokio() {
    let port = free_port();
    lives(&words(&[&static_tokio(), &port.to_string()]), port, 10, 20);
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_knows_its_clients_through_reloads_and_kills() {
    let port = free_port();
    lives(&words(&[&go_program("server"), &port.to_string()]), port, 100, 200);
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_with_two_ports() {
    let ports = [free_port(), free_port()];
    let command = words(&[&go_program("server"), &ports[0].to_string(), &ports[1].to_string()]);
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let more = ["--via", "direct", "--min-uptime", "10ms", "-l", &listen[0], "-l", &listen[1]];
    let mut daemon = start_with(ports[0], "2", &more, &command);
    let serve = |when: &str| {
        for port in ports {
            assert!((0..40).all(|_| ask(port).1), "{when}: the client's address");
            answers(&["slot 0", "slot 1"].map(str::to_owned).into(), || ask(port).0);
        }
    };
    serve("at first");
    let done = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serve("after a reload");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(2);
    serve("after a kill");
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_that_ends_gracefully_and_shares_its_port() {
    let port = free_port();
    let command = words(&[&go_program("graceful"), &port.to_string()]);
    let end = serves(&command, port).stop();
    assert_eq!(end.log.matches("all requests are finished").count(), 2, "{}", end.log);
    lives(&command, port, 10, 20);
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn go_programs_that_use_libc() {
    for (name, output, options) in [("cgo", "cgo", &[][..]), ("server", "race", &["-race"])] {
        let port = free_port();
        lives(&words(&[&cgo_program(name, output, options), &port.to_string()]), port, 3, 6);
    }
}

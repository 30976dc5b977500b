//! Direct delivery to programs that make their system calls themselves, by seccomp user notification.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::clients::Clients;
use crate::support::direct::{ask, parent, start};
use crate::support::{eventually, free_port, seconds, static_server, static_servers, unsaid};

/// The static C server in one of its modes: every request is served in turn and knows its client.
fn serves(program: &str, mode: &str, requests: usize) {
    let port = free_port();
    let mut daemon = start(port, "2", &[program.to_owned(), mode.to_owned(), port.to_string()]);
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()), "{mode}");
    let answers: Vec<_> = (0..requests).map(|_| ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{mode}: the client's address");
    if mode == "modes" {
        // Each mode takes a client, and may not have had one yet.
        eventually("every mode was tried", seconds(20), || {
            assert!(ask(port).1, "{mode}: the client's address");
            (daemon.log().matches("every mode was tried").count() == 2).then_some(())
        });
    }
    let out = answers.windows(2).filter(|pair| pair[0].0 == pair[1].0).count() as u64;
    let rescued = daemon.total("rescued");
    assert!(out <= rescued.min(1) * requests as u64 / 2, "{mode}: {out} out of turn, {rescued} rescued");
    assert!(daemon.slots().iter().all(|slot| slot["open_is_estimate"] == true));
    eventually(&format!("{mode}: open is back to 0"), seconds(10), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.total("restarts"), 0, "{mode}: {}", daemon.log());
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{mode}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn static_servers_that_wait_in_accept_or_in_epoll() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(glibc, "threads"), (musl, "level"), (glibc, "dual"), (musl, "modes")] {
        serves(program, mode, 40);
    }
}

#[test]
fn static_servers_of_several_processes_and_images() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(glibc, "prefork"), (musl, "fork"), (glibc, "exec"), (musl, "message")] {
        serves(program, mode, 40);
    }
}

#[test]
fn a_listener_closed_and_opened_again_and_one_that_is_shut_down() {
    let port = free_port();
    let daemon = start(port, "2", &[static_server().to_owned(), "reopen".to_owned(), port.to_string()]);
    assert!((0..300).all(|_| ask(port).1));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
    let port = free_port();
    let daemon = start(port, "1", &[static_server().to_owned(), "shut".to_owned(), port.to_string()]);
    assert!(ask(port).1 && ask(port).1);
    daemon.wait_for("accept woke up");
    assert!((0..20).all(|_| ask(port).1));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

pub(super) fn threads(port: u16) -> [String; 3] {
    [static_server().to_owned(), "threads".to_owned(), port.to_string()]
}

#[test]
fn a_few_reloads_under_clients() {
    let port = free_port();
    Clients::of_http(&threads(port), port).through_reloads(3);
}

#[test]
fn a_few_kills_under_clients() {
    let port = free_port();
    Clients::of_http(&threads(port), port).through_kills(6);
}

#[test]
fn closes_are_counted_while_connections_come() {
    let port = free_port();
    let daemon = start(port, "1", &threads(port));
    eventually("most of what came is closed", seconds(10), || {
        assert!((0..20).all(|_| ask(port).1));
        (daemon.total("connections") > 100 && daemon.total("open") < 60).then_some(())
    });
}

#[test]
fn the_end_of_a_server_is_its_own() {
    let port = free_port();
    let daemon = start(port, "1", &threads(port));
    let server = daemon.workers()[0];
    let program = std::fs::read_link(format!("/proc/{server}/exe")).unwrap();
    assert_eq!(program, std::path::Path::new(static_server()), "ls names the server");
    let keeper = parent(server);
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(1);
    assert!(ask(port).1);
    // A keeper that dies takes its server along: nobody would answer for it.
    let (server, before) = (daemon.workers()[0], keeper);
    let keeper = parent(server);
    assert_ne!(keeper, before);
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    daemon.wait_for_count("server exited", 2);
    eventually("its server ends", seconds(10), || kill(Pid::from_raw(server), None).is_err().then_some(()));
    daemon.wait_online(1);
    assert!(ask(port).1);
}

//! Policy none for programs that make their system calls themselves: each worker's keeper accepts from the listening socket that
//! all workers share, and the kernel chooses.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::seccomp::threads;
use crate::support::clients::Clients;
use crate::support::direct::{ask, start_with};
use crate::support::go::go_program;
use crate::support::{Daemon, eventually, free_port, roundsman, seconds, static_servers, unsaid};

const NONE: [&str; 4] = ["--via", "direct", "-p", "none"];

/// Asks from eight threads until both workers have served, and knows the clients.
fn both_serve(port: u16, when: &str) {
    let mut served = BTreeSet::new();
    eventually(&format!("{when}: both workers serve"), seconds(20), || {
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| [(); 10].map(|()| ask(port)))).collect();
            for (answer, known) in asking.into_iter().flat_map(|thread| thread.join().unwrap()) {
                assert!(known, "{when}: the client's address");
                served.insert(answer);
            }
        });
        (served == ["slot 0", "slot 1"].map(str::to_owned).into()).then_some(())
    });
}

fn clients(command: &[String], port: u16) -> Clients<'_> {
    Clients { options: &NONE[2..], ..Clients::of_http(command, port) }
}

fn command(program: &str, mode: &str, port: u16) -> [String; 3] {
    [program.to_owned(), mode.to_owned(), port.to_string()]
}

fn verb(daemon: &Daemon, words: &[&str]) {
    let done = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn ends_well(mut daemon: Daemon, name: &str) {
    eventually(&format!("{name}: open is back to 0"), seconds(10), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.total("restarts"), 0, "{name}: {}", daemon.log());
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{name}: {}", end.log);
    unsaid(&end.log, &["did not end", "relayed", "lost"]);
}

/// The static C server in one of its modes.
fn serves(program: &str, mode: &str) {
    let port = free_port();
    let daemon = start_with(port, "2", &NONE, &command(program, mode, port));
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()), "{mode}");
    both_serve(port, mode);
    if mode == "shared-modes" {
        // Each mode takes a client, and may not have had one yet.
        eventually("every mode was tried", seconds(20), || {
            assert!(ask(port).1, "{mode}: the client's address");
            (daemon.log().matches("every mode was tried").count() == 2).then_some(())
        });
    }
    assert!(daemon.slots().iter().all(|slot| slot["open_is_estimate"] == true));
    let before = daemon.total("connections");
    assert!((0..10).all(|_| ask(port).1));
    assert_eq!(daemon.total("connections"), before + 10, "{mode}: each is counted");
    verb(&daemon, &["reload"]);
    both_serve(port, &format!("{mode}, after a reload"));
    ends_well(daemon, mode);
}

#[test]
fn static_servers_share_the_listening_socket() {
    let [glibc, musl] = static_servers();
    std::thread::scope(|scope| {
        for (program, mode) in [(glibc, "threads"), (musl, "level"), (glibc, "dual"), (musl, "shared-modes")] {
            scope.spawn(move || serves(program, mode));
        }
    });
}

#[test]
fn static_servers_of_several_processes_and_images_share_it() {
    let [glibc, musl] = static_servers();
    std::thread::scope(|scope| {
        for (program, mode) in [(glibc, "prefork"), (musl, "fork"), (glibc, "exec"), (musl, "message")] {
            scope.spawn(move || serves(program, mode));
        }
    });
}

#[test]
fn a_shared_listener_closed_and_opened_again_and_one_that_is_shut_down() {
    let [server, _] = static_servers();
    let port = free_port();
    let daemon = start_with(port, "2", &NONE, &command(server, "reopen", port));
    assert!((0..300).all(|_| ask(port).1));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
    let port = free_port();
    let daemon = start_with(port, "1", &NONE, &command(server, "shut", port));
    assert!(ask(port).1 && ask(port).1);
    daemon.wait_for("accept woke up");
    assert!((0..20).all(|_| ask(port).1));
    ends_well(daemon, "shut");
}

#[test]
fn a_few_reloads_of_workers_that_share_it() {
    let port = free_port();
    clients(&threads(port), port).through_reloads(3);
    let port = free_port();
    clients(&command(&static_servers()[1], "level", port), port).through_reloads(3);
}

#[test]
fn a_few_kills_of_workers_that_share_it() {
    let port = free_port();
    clients(&threads(port), port).through_kills(6);
}

#[test]
fn one_worker_more_and_one_less_and_an_upgrade() {
    let port = free_port();
    let daemon = start_with(port, "2", &NONE, &threads(port));
    let before = daemon.workers();
    verb(&daemon, &["upgrade"]);
    assert_eq!(daemon.workers(), before);
    both_serve(port, "after an upgrade");
    verb(&daemon, &["scale", "3"]);
    daemon.wait_online(3);
    verb(&daemon, &["scale", "1"]);
    daemon.wait_online(1);
    assert!((0..20).all(|_| ask(port).0 == "slot 0"));
    verb(&daemon, &["scale", "2"]);
    daemon.wait_online(2);
    both_serve(port, "after all");
    ends_well(daemon, "scale");
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_shares_it_through_reloads_and_kills() {
    let (server, ports) = (go_program("server"), [free_port(), free_port()]);
    let command = [server.clone(), ports[0].to_string(), ports[1].to_string()];
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let more = [&NONE[..], &["--min-uptime", "10ms", "-l", &listen[0], "-l", &listen[1]]].concat();
    let daemon = start_with(ports[0], "2", &more, &command);
    let both_ports_serve = |when: &str| ports.into_iter().for_each(|port| both_serve(port, when));
    both_ports_serve("at first");
    verb(&daemon, &["reload"]);
    both_ports_serve("after a reload");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(2);
    both_ports_serve("after a kill");
    drop(daemon);
    let port = free_port();
    let command = [server, port.to_string()];
    clients(&command, port).through_reloads(100);
    clients(&command, port).through_kills(200);
}

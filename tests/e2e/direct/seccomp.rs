//! Direct delivery to programs that make their system calls themselves, by seccomp user notification.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::{ask, start, start_with};
use crate::support::{
    answers, eventually, free_port, get, install_dir, roundsman, seconds, static_server, static_servers, unsaid,
    write_file,
};

/// The static C server in one of its modes: every request is served in turn and knows its client.
fn serves(program: &str, mode: &str, requests: usize) {
    let port = free_port();
    let mut daemon = start(port, "2", &[program.to_owned(), mode.to_owned(), port.to_string()]);
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()), "{mode}");
    let answers: Vec<_> = (0..requests).map(|_| ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{mode}: the client's address");
    if mode == "modes" {
        daemon.wait_for_count("every mode was tried", 2);
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

/// What became of clients: served, cut off (their server had them when it was killed), and those that should not be.
#[derive(Default, Debug)]
struct Fates {
    served: AtomicUsize,
    cut: AtomicUsize,
    refused: AtomicUsize,
    hung: AtomicUsize,
}

impl Fates {
    fn note(&self, result: &std::io::Result<String>) {
        use std::io::ErrorKind::{ConnectionRefused, TimedOut, WouldBlock};
        let fate = match result.as_ref().map_err(std::io::Error::kind) {
            Ok(_) => &self.served,
            Err(ConnectionRefused) => &self.refused,
            Err(TimedOut | WouldBlock) => &self.hung,
            Err(_) => &self.cut,
        };
        fate.fetch_add(1, SeqCst);
    }
}

/// Runs `deed` while 50 clients ask without a pause.
fn under_clients(port: u16, deed: impl FnOnce()) -> Fates {
    let (fates, over) = (Fates::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    fates.note(&get(port));
                }
            });
        }
        deed();
        over.store(true, SeqCst);
    });
    fates
}

/// Reloads while clients come: nobody notices.
pub(super) fn reloads(policy: &str, command: &[String], port: u16, count: usize) {
    let more = ["--via", "direct", "--min-uptime", "10ms", "-p", policy];
    let mut daemon = start_with(port, "2", &more, command);
    let fates = under_clients(port, || {
        for _ in 0..count {
            let done = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
    });
    let (served, lost) = (fates.served.load(SeqCst), [&fates.cut, &fates.refused, &fates.hung]);
    assert!(served > 100 && lost.iter().all(|lost| lost.load(SeqCst) == 0), "{fates:?}\n{}", daemon.log());
    assert!(daemon.slots().iter().all(|slot| slot["generation"].as_u64() > Some(count as u64)));
    assert_eq!(daemon.stop().code(), 0);
}

/// Kills servers while clients come: only what they had received is lost.
pub(super) fn kills(policy: &str, command: &[String], port: u16, count: usize) {
    let mut more = vec!["--via", "direct", "--min-uptime", "10ms", "--backoff", "1ms..10ms", "--max-restarts", "1000"];
    more.extend(["-p", policy]);
    let mut daemon = start_with(port, "2", &more, command);
    let fates = under_clients(port, || {
        for n in 0..count {
            daemon.wait_online(2);
            kill(Pid::from_raw(daemon.workers()[n % 2]), Signal::SIGKILL).unwrap();
            eventually("the end is noticed", seconds(10), || (daemon.total("restarts") > n as u64).then_some(()));
        }
    });
    let (served, lost) = (fates.served.load(SeqCst), [&fates.refused, &fates.hung]);
    assert!(served > 100 && lost.iter().all(|lost| lost.load(SeqCst) == 0), "{fates:?}\n{}", daemon.log());
    // Four threads of each have one connection each.
    assert!(fates.cut.load(SeqCst) <= count * 50, "{fates:?}");
    daemon.wait_online(2);
    assert_eq!(daemon.stop().code(), 0);
}

pub(super) fn threads(port: u16) -> [String; 3] {
    [static_server().to_owned(), "threads".to_owned(), port.to_string()]
}

#[test]
fn a_few_reloads_under_clients() {
    let port = free_port();
    reloads("rr", &threads(port), port, 3);
}

#[test]
fn a_few_kills_under_clients() {
    let port = free_port();
    kills("rr", &threads(port), port, 6);
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
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let keeper: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(1);
    assert!(ask(port).1);
    // A keeper that dies takes its server along: nobody would answer for it.
    let (server, before) = (daemon.workers()[0], keeper);
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let keeper: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap();
    assert_ne!(keeper, before);
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    daemon.wait_for_count("server exited", 2);
    eventually("its server ends", seconds(10), || kill(Pid::from_raw(server), None).is_err().then_some(()));
    daemon.wait_online(1);
    assert!(ask(port).1);
}

/// A Go program that names its slot and its client.
pub(super) fn go_server(dir: &Path) -> String {
    let source = "package main
import (\"fmt\"; \"net\"; \"net/http\"; \"os\")
func main() {
	http.HandleFunc(\"/\", func(w http.ResponseWriter, r *http.Request) {
		_, port, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, \"slot %s peer %s\", os.Getenv(\"ROUNDSMAN_SLOT\"), port)
	})
	for _, port := range os.Args[2:] {
		go func() { panic(http.ListenAndServe(\":\" + port, nil)) }()
	}
	panic(http.ListenAndServe(\":\" + os.Args[1], nil))
}
";
    write_file(dir, "server.go", source);
    let mut go = Command::new("go");
    go.args(["build", "-o", "server", "server.go"]).current_dir(dir);
    go.env("CGO_ENABLED", "0").env("GOCACHE", dir.join("cache")).env("GOFLAGS", "-mod=mod");
    let built = go.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    dir.join("server").to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_knows_its_clients_through_reloads_and_kills() {
    let (dir, port) = (install_dir(), free_port());
    let command = [go_server(dir.path()), port.to_string()];
    let mut daemon = start_with(port, "2", &["--via", "direct", "-l", &format!("127.0.0.1:{port}")], &command);
    daemon.wait_for("via=\"direct (seccomp)\"");
    assert!((0..100).all(|_| ask(port).1));
    answers(&["slot 0", "slot 1"].map(str::to_owned).into(), || ask(port).0);
    assert_eq!(daemon.stop().code(), 0);
    reloads("rr", &command, port, 100);
    kills("rr", &command, port, 200);
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_server_with_two_ports() {
    let (dir, ports) = (install_dir(), [free_port(), free_port()]);
    let command = [go_server(dir.path()), ports[0].to_string(), ports[1].to_string()];
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

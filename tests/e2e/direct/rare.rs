//! Static servers that do what few do, by seccomp user notification.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::{ask, start};
use crate::support::{Daemon, eventually, free_port, install_dir, rare_server, seconds, static_servers, write_file};

fn rare(mode: &str, instances: &str) -> (Daemon, u16) {
    let port = free_port();
    (start(port, instances, &[rare_server().to_owned(), mode.to_owned(), port.to_string()]), port)
}

/// Every request is served, in turn, by a server that knows its client.
fn serves(mode: &str) {
    let (daemon, port) = rare(mode, "2");
    let answers: Vec<_> = (0..20).map(|_| ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{mode}: the client's address");
    let slots = |name| answers.iter().filter(|(slot, _)| slot == name).count();
    assert!(slots("slot 0") > 0 && slots("slot 1") > 0, "{mode}: {answers:?}");
    assert_eq!(daemon.total("restarts"), 0, "{mode}: {}", daemon.log());
}

#[test]
fn a_thread_with_descriptors_of_its_own() {
    serves("own-files");
}

#[test]
fn a_process_whose_first_thread_has_ended() {
    serves("first-ended");
}

#[test]
fn calls_that_signals_interrupt() {
    for mode in ["signals", "signals-restart"] {
        let (daemon, port) = rare(mode, "2");
        assert!((0..400).all(|_| ask(port).1), "{mode}: the client's address");
        assert_eq!(daemon.total("restarts"), 0, "{mode}: {}", daemon.log());
    }
}

#[test]
fn a_signal_ends_a_wait_in_accept() {
    let (daemon, port) = rare("ended-wait", "1");
    daemon.wait_for("accept was interrupted");
    assert!((0..4).all(|_| ask(port).1));
}

#[test]
fn programs_do_without_io_uring() {
    let (daemon, port) = rare("ring", "1");
    daemon.wait_for("no rings");
    assert!((0..4).all(|_| ask(port).1));
}

#[test]
fn options_of_a_listening_socket() {
    let (daemon, port) = rare("options", "1");
    daemon.wait_for("all options");
    assert!((0..4).all(|_| ask(port).1));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn registered_with_epoll_before_bind() {
    for program in static_servers() {
        let port = free_port();
        let daemon = start(port, "2", &[program.to_owned(), "asio".to_owned(), port.to_string()]);
        assert!((0..40).all(|_| ask(port).1), "the client's address");
        assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
    }
}

#[test]
fn closed_and_opened_again_with_an_epoll_instance_that_stays() {
    let (daemon, port) = rare("closed", "2");
    assert!((0..200).all(|_| ask(port).1), "the client's address");
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn many_listeners_and_numbers_that_are_taken_over() {
    let (daemon, port) = rare("many", "2");
    daemon.wait_for_count("many listen", 2);
    assert!((0..20).all(|_| ask(port).1));
    for host in 2..=6 {
        let mut client = TcpStream::connect((Ipv4Addr::new(127, 0, 0, host), port)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let peer = format!("peer {}", client.local_addr().unwrap().port());
        assert!(answer.ends_with(&peer), "{host}: {answer}");
    }
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn a_connection_waits_for_a_free_descriptor() {
    serves("full");
}

#[test]
fn children_end_with_their_server() {
    let (daemon, port) = rare("orphans", "1");
    assert!((0..4).all(|_| ask(port).1));
    let server = daemon.workers()[0];
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
    let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(children.len(), 3);
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    let ended = |&pid: &i32| kill(Pid::from_raw(pid), None).is_err();
    eventually("its children end", seconds(2), || children.iter().all(ended).then_some(()));
    daemon.wait_online(1);
    assert!((0..4).all(|_| ask(port).1));
}

/// A Go program that executes itself with its listening socket, as tableflip, endless and grace do.
fn go_program_that_passes_its_listener(dir: &Path) -> String {
    let source = "package main
import (\"fmt\"; \"net\"; \"net/http\"; \"os\"; \"syscall\")
func main() {
	if os.Getenv(\"PASSED\") == \"\" {
		listener, err := net.Listen(\"tcp4\", \"127.0.0.1:\" + os.Args[1])
		if err != nil { panic(err) }
		file, err := listener.(*net.TCPListener).File()
		if err != nil { panic(err) }
		if err := syscall.Dup3(int(file.Fd()), 30, 0); err != nil { panic(err) }
		panic(syscall.Exec(\"/proc/self/exe\", os.Args, append(os.Environ(), \"PASSED=1\")))
	}
	listener, err := net.FileListener(os.NewFile(30, \"listener\"))
	if err != nil { panic(err) }
	fmt.Fprintln(os.Stderr, \"passed on\", listener.Addr())
	panic(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, port, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, \"slot %s peer %s\", os.Getenv(\"ROUNDSMAN_SLOT\"), port)
	})))
}
";
    write_file(dir, "passes.go", source);
    let mut go = Command::new("go");
    go.args(["build", "-o", "passes", "passes.go"]).current_dir(dir);
    go.env("CGO_ENABLED", "0").env("GOCACHE", dir.join("cache")).env("GOFLAGS", "-mod=mod");
    let built = go.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    dir.join("passes").to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn a_go_program_passes_its_listener_to_itself() {
    let (dir, port) = (install_dir(), free_port());
    let daemon = start(port, "2", &[go_program_that_passes_its_listener(dir.path()), port.to_string()]);
    daemon.wait_for_count(&format!("passed on 127.0.0.1:{port}"), 2);
    assert!((0..40).all(|_| ask(port).1), "the client's address");
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

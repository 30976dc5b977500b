//! What a server's listening socket answers under direct delivery, and what becomes of descriptors that the server does
//! not know: the same as natively. The C program writes down what it sees; it runs both ways.
//! Mostly waits: tests/run runs it beside others.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::direct::start_with;
use crate::support::{
    Daemon, Killed, eventually, free_port, get, install_dir, listener_programs, roundsman, seconds, write_file,
};

/// What the program wrote up to its end. A client comes for each word that says that it listens, and gets its greeting.
/// `waiting`: one more comes, which the program looks at and does not take.
fn seen(port: u16, file: &Path, words: &[&str], waiting: bool) -> String {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    for word in words {
        let said = || read().lines().any(|line| line == *word).then_some(());
        eventually(&format!("{word:?} in {}", file.display()), seconds(20), said);
        let mut client = connect();
        client.set_read_timeout(Some(seconds(20))).unwrap();
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).unwrap_or_else(|error| panic!("{word}: {error}: {}", read()));
        assert_eq!(greeting, "hello", "{word}: {}", read());
    }
    let _client = waiting.then(connect);
    eventually(&format!("the end in {}", file.display()), seconds(20), || {
        let all = read();
        all.ends_with("end\n").then_some(all)
    })
}

/// The program in one mode, natively and under these policies.
fn same_as_natively(program: &str, mode: &str, words: &[&str], waiting: bool, policies: &[&str]) {
    let dir = install_dir();
    let arguments = |port: u16, file: &Path| {
        let file = file.to_str().unwrap().to_owned();
        [mode.to_owned(), port.to_string(), file, free_port().to_string()]
    };
    let (port, file) = (free_port(), dir.path().join("native"));
    let native = {
        let mut command = Command::new(program);
        let _server = Killed::spawn(command.args(arguments(port, &file)).stdin(Stdio::null()));
        seen(port, &file, words, waiting)
    };
    for policy in policies {
        let (port, file) = (free_port(), dir.path().join(policy));
        let command = [&[program.to_owned()], &arguments(port, &file)[..]].concat();
        let daemon = start_with(port, "1", &["--via", "direct", "-p", policy], &command);
        let direct = seen(port, &file, words, waiting);
        let differing: Vec<_> =
            native.lines().zip(direct.lines()).filter(|(native, direct)| native != direct).collect();
        assert!(native == direct, "{program} {mode} {policy}: {differing:#?}\n{direct}");
        assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
    }
}

#[test]
fn receiving_from_and_sending_to_a_listening_socket() {
    for program in listener_programs() {
        same_as_natively(program, "answers", &["listens"], true, &["rr", "none"]);
    }
}

#[test]
fn threads_are_cancelled_where_they_wait_in_read_recv_and_accept() {
    for program in listener_programs() {
        same_as_natively(program, "cancelled", &[], false, &["rr"]);
    }
}

#[test]
fn a_socket_is_bound_once() {
    for program in listener_programs() {
        same_as_natively(program, "reversed", &["listens"], false, &["rr", "none"]);
    }
}

/// Before listen(2) and after shutdown(2) it polls as a socket that is only bound; it is never writable; and shutdown(2)
/// wakes whoever waits at it, in whatever call.
#[test]
fn a_listening_socket_polls_as_the_kernel_s_in_every_state() {
    let words = ["listens", "listens 0", "listens 1", "listens 2", "listens 3", "listens 4", "listens 5"];
    for program in listener_programs() {
        same_as_natively(program, "states", &words, false, &["rr"]);
    }
}

/// Whatever a process asks first of a listening socket that it got from another one, by SCM_RIGHTS or exec.
#[test]
fn a_listening_socket_that_was_passed_on() {
    for program in listener_programs() {
        same_as_natively(program, "passed", &["listens"], false, &["rr"]);
        // The one that bound it has closed it before the other one listens.
        same_as_natively(program, "left", &["listens"], false, &["rr"]);
    }
}

/// The library keeps descriptors of its own in the server. One that is closed there is the server's when its number is used
/// again: nothing is written to it, read from it, or closed.
#[test]
fn servers_that_close_what_they_do_not_know() {
    let [glibc, musl] = listener_programs();
    // close_range by libc, closefrom, close_range by syscall(2), close in a loop.
    for mode in ["closes-r", "closes-f", "closes-s", "closes-l"] {
        same_as_natively(glibc, mode, &["listens", "listens again"], false, &["rr", "none"]);
    }
    for mode in ["closes-s", "closes-l"] {
        same_as_natively(musl, mode, &["listens", "listens again"], false, &["rr"]);
    }
}

/// Leaves listen(2) out where its socket listens already, as HAProxy does. The second slot binds when the first one listens.
const ASKS: &str = "
import os, socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while os.environ['ROUNDSMAN_SLOT'] == '1' and not os.path.exists('listening'): time.sleep(0.01)
s.bind(('127.0.0.1', int(sys.argv[1])))
if not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN): s.listen()
open('listening', 'w').close()
while True:
    c, _ = s.accept(); c.recv(4096); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nok'); c.close()
";

#[test]
fn a_shared_socket_does_not_listen_before_its_server_calls_listen() {
    for policy in ["none", "rr"] {
        let (dir, port) = (install_dir(), free_port());
        let script = write_file(dir.path(), "asks.py", ASKS);
        let mut program = roundsman();
        program.current_dir(&dir);
        let script = script.to_str().unwrap();
        let words = ["-i", "2", "-p", policy, "--", "python3", script, &port.to_string()];
        let mut daemon = Daemon::launch(program, &words, port);
        daemon.wait_online(2);
        assert_eq!(get(port).unwrap(), "ok");
        assert_eq!(daemon.stop().code(), 0);
    }
}

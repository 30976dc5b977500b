//! Mostly waits: a server that connects to itself, to end the wait of its own accept when it is asked to stop.

use nix::sys::signal::Signal;

use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, roundsman, seconds};

/// Serves in a thread that waits in accept. At SIGTERM it connects to its own port, at the address in its first argument; the port is the second.
const SERVER: &str = "
import os, signal, socket, sys, threading
to, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ':' in to else socket.AF_INET
listener = socket.create_server(('', port), family=family, dualstack_ipv6=family == socket.AF_INET6)
stopping = False
def say(who, what):
    os.write(2, f'{who} {os.environ[\"ROUNDSMAN_SLOT\"]} {what}\\n'.encode())
def serve():
    while True:
        client, peer = listener.accept()
        if stopping:
            return say('own accept', 'got ' + peer[0])
        if client.recv(1000):
            client.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nok')
        client.close()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
thread = threading.Thread(target=serve, daemon=True)
thread.start()
signal.sigwait([signal.SIGTERM])
stopping = True
client = socket.socket(family)
client.setblocking(False)
client.connect_ex((to, port))
thread.join(2)
say('thread', 'waits' if thread.is_alive() else 'has ended')
os._exit(0)
";

fn start(to: &str) -> Daemon {
    let port = free_port();
    let command = ["python3", "-c", SERVER, to, &port.to_string()].map(str::to_owned);
    let daemon = start_with(port, "2", &["--via", "direct", "--min-uptime", "100ms"], &command);
    let idle = || (daemon.total("open") == 0).then_some(());
    (0..4).for_each(|_| assert_eq!(get(daemon.port).unwrap(), "ok"));
    eventually("no connection open", seconds(20), idle);
    daemon
}

fn ask(daemon: &Daemon, verb: &[&str]) {
    let done = roundsman().args(verb).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// The connection itself comes to another worker, or is refused.
#[test]
fn the_wait_of_its_own_accept_ends_in_a_reload_and_in_a_stop() {
    for (to, shown) in [("0.0.0.0", "127.0.0.1"), ("::1", "::1")] {
        let mut daemon = start(to);
        ask(&daemon, &["reload"]);
        // Four clients, and each server's connection to itself: what ended the waits is none.
        let counted = || (daemon.total("connections") == 6 && daemon.total("open") == 0).then_some(());
        eventually("six connections in all", seconds(20), counted);
        daemon.signal(Signal::SIGTERM);
        let log = daemon.finish(seconds(30)).log;
        for slot in [0, 1] {
            for words in [format!("thread {slot} has ended"), format!("own accept {slot} got {shown}")] {
                assert_eq!(log.matches(&words).count(), 2, "{words}\n{log}");
            }
        }
    }
}

/// It may be a client of another machine's service at the same port.
#[test]
fn a_connection_to_another_machine_ends_no_wait() {
    let mut daemon = start("192.0.2.1");
    let log = daemon.stop().log;
    assert!(log.contains("thread 0 waits") && log.contains("thread 1 waits") && !log.contains("own accept"), "{log}");
}

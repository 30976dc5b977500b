//! What a server does to its own socket, or closes again, costs the daemon and other services nothing.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use crate::support::{
    Daemon, c_server, free_port, get, http_get, install_dir, millis, read_all, roundsman, seconds, source, write_file,
};

/// Runs a script that speaks the attach protocol itself, without the library. `env -u` would be refused.
const WITHOUT: &str = "unset LD_PRELOAD; exec python3 \"$0\" \"$@\"";

#[test]
fn a_server_that_makes_its_listening_socket_blocking_does_not_stop_the_others() {
    let dir = install_dir();
    let (port, evil) = (free_port(), free_port());
    let text = format!(
        "[service.good]\ncommand = [{:?}, \"threads\", \"{port}\"]\ninstances = 1\n\
         [service.evil]\ncommand = [\"sh\", \"-c\", {WITHOUT:?}, {:?}, \"{evil}\"]\n\
         via = \"direct\"\ninstances = 1\n",
        c_server(),
        source("evil.py"),
    );
    let config = write_file(dir.path(), "two.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", config.to_str().unwrap()], port);
    daemon.wait_for("blocking");
    daemon.wait_for("makes it blocking");
    daemon.wait_for("online service=good");
    for _ in 0..200 {
        let begin = Instant::now();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(seconds(5))).unwrap();
        http_get(&mut client).unwrap();
        assert!(begin.elapsed() < seconds(1), "{:?}\n{}", begin.elapsed(), daemon.log());
        // A second in all: an accept thread that blocks does so at some connection.
        std::thread::sleep(millis(5));
    }
}

fn port_and_text() -> (u16, String) {
    let port = free_port();
    (port, port.to_string())
}

#[test]
fn a_server_that_listens_on_very_many_ports_leaves_the_daemon_its_descriptors() {
    let dir = install_dir();
    let script = "
import socket, sys
kept = []
def listens(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.append(s); s.bind(('127.0.0.1', port)); s.listen(64); return s
port, refused = int(sys.argv[1]), 0
first = listens(port)
for n in range(300):
    try: listens(port + 1 + n)
    except OSError as e: refused += e.errno == 24
print('refused:', refused, file=sys.stderr, flush=True)
while True:
    c, _ = first.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nok'); c.close()
";
    let script = write_file(dir.path(), "server.py", script);
    let (port, text) = port_and_text();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=512:512", env!("CARGO_BIN_EXE_roundsman")]);
    let arguments = ["-i", "1", "--via", "direct", "--", "python3", script.to_str().unwrap(), &text];
    let daemon = Daemon::launch(command, &arguments, port);
    daemon.wait_for("refused: ");
    assert!(!daemon.log().contains("refused: 0"), "{}", daemon.log());
    daemon.wait_for("listeners for now");
    for _ in 0..50 {
        assert_eq!(get(port).unwrap(), "ok");
    }
    let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(reload.status.success(), "{}", daemon.log());
    assert_eq!(get(port).unwrap(), "ok");
}

#[test]
fn nonsense_in_the_counters_of_a_server_disturbs_no_command_and_no_metrics() {
    let (port, admin) = (free_port(), free_port());
    let (text, admin_at, evil) = (port.to_string(), format!("127.0.0.1:{admin}"), source("evil.py"));
    let arguments = ["-i", "1", "--via", "direct", "--admin", &admin_at, "--"];
    let command = ["sh", "-c", WITHOUT, &evil, &text, "counts"];
    let daemon = Daemon::launch(roundsman(), &[&arguments[..], &command].concat(), port);
    daemon.wait_for("counted");
    daemon.wait_online(1);
    let mut client = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    client.set_read_timeout(Some(seconds(10))).unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let metrics = String::from_utf8(read_all(&mut client).unwrap()).unwrap();
    assert!(metrics.contains("roundsman_handoff_latency"), "{metrics}\n{}", daemon.log());
    for command in [&["ls"][..], &["ls", "--json"]] {
        let output = roundsman().args(command).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        assert!(output.status.success(), "{command:?}\n{}", daemon.log());
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

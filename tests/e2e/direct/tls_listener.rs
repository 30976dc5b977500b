//! Python's `ssl` around a *listening* socket (http.server, Flask, Werkzeug, eventlet): it asks the socket for a byte, and
//! goes on when that says that there is no connection.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::support::direct::start_with;
use crate::support::table::python_handler;
use crate::support::{Daemon, certificate, eventually, free_port, install_dir, seconds, servers, write_file};

/// http.server as its documentation has it. With one word more it waits first until a client is there.
const HTTPS: &str = concat!(
    "
import http.server, os, select, ssl, sys",
    python_handler!(),
    "port, directory, waits = int(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
if waits and not select.select([server.socket], [], [], 20)[0]: sys.exit('no client came')
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(directory + '/cert.pem', directory + '/key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"
);

/// Flask's development server with a certificate of its own.
const FLASK: &str = "
import os, sys
from flask import Flask, request
app = Flask('x')
@app.route('/')
def answer(): return f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {request.environ[\"REMOTE_PORT\"]}'
app.run('127.0.0.1', int(sys.argv[1]), ssl_context='adhoc')
";

const EVENTLET: &str = "
import eventlet, os, sys
from eventlet import wsgi
port, directory = int(sys.argv[1]), sys.argv[2]
def app(environment, start):
    start('200 OK', [('Connection', 'close')])
    return [f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {environment[\"REMOTE_PORT\"]}'.encode()]
listener = eventlet.wrap_ssl(eventlet.listen(('127.0.0.1', port)), server_side=True,
    certfile=directory + '/cert.pem', keyfile=directory + '/key.pem')
wsgi.server(listener, app, log_output=False)
";

/// A request by curl, which trusts every certificate: (slot, whether the server knew the client's port).
fn ask(port: u16) -> Result<(String, bool), String> {
    let url = format!("https://127.0.0.1:{port}/");
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "20", "--write-out", "\n%{local_port}", &url])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, own) = text.rsplit_once('\n').unwrap();
    let (slot, peer) = body.split_once(" peer ").unwrap_or_else(|| panic!("{body:?}"));
    Ok((slot.to_owned(), peer == own))
}

/// Two of a server that gets its port, a directory with key and certificate, and perhaps one word more. The way to the
/// servers is chosen by itself.
fn start(policy: &str, python: &str, script: &str, word: Option<&str>) -> (Daemon, u16, tempfile::TempDir) {
    let (dir, port) = (install_dir(), free_port());
    certificate(dir.path());
    let script = write_file(dir.path(), "https.py", script);
    let place = dir.path().to_str().unwrap();
    let mut command = [python, script.to_str().unwrap(), &port.to_string(), place].map(str::to_owned).to_vec();
    command.extend(word.map(str::to_owned));
    (start_with(port, "2", &["-p", policy], &command), port, dir)
}

/// Both answer over TLS under each policy, and end well.
fn serves(name: &str, python: &str, script: &str) {
    for policy in ["rr", "none"] {
        let (mut daemon, port, _dir) = start(policy, python, script, None);
        assert_eq!(daemon.ls()["services"][0]["via"], "direct", "{name} {policy}");
        let mut slots = std::collections::BTreeSet::new();
        // Under none the kernel chooses.
        eventually(&format!("{name}: both slots under {policy}"), seconds(20), || {
            let (slot, known) = ask(port).unwrap_or_else(|error| panic!("{name} {policy}: {error}{}", daemon.log()));
            assert!(known, "{name} {policy}: the client's address");
            slots.insert(slot);
            (slots.len() == 2).then_some(())
        });
        assert!((0..10).all(|_| ask(port).is_ok()), "{name} {policy}: {}", daemon.log());
        assert_eq!(daemon.total("restarts"), 0, "{name} {policy}: {}", daemon.log());
        let end = daemon.stop();
        assert!(end.code() == 0 && !end.log.contains("Traceback"), "{name} {policy}: {}", end.log);
    }
}

#[test]
fn https_by_pythons_http_server() {
    serves("http.server", "python3", HTTPS);
}

#[test]
#[ignore = "long: tests/run --all"]
fn https_by_flask_and_eventlet() {
    let python = servers().join("venv/bin/python");
    serves("Flask", python.to_str().unwrap(), FLASK);
    serves("eventlet", python.to_str().unwrap(), EVENTLET);
}

/// The library must not take a client who waits for the byte that `ssl` asks for.
#[test]
fn clients_that_wait_while_a_server_wraps_its_listening_socket() {
    let (daemon, port, _dir) = start("rr", "python3", HTTPS, Some("waits"));
    // Both wait for a first one; then all wait who come while they load their keys.
    let clients: Vec<_> = (0..20).map(|_| std::thread::spawn(move || ask(port))).collect();
    for client in clients {
        let (_, known) = client.join().unwrap().unwrap_or_else(|error| panic!("{error}{}", daemon.log()));
        assert!(known, "the client's address");
    }
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

/// The same of a socket that only asks, seen from the client.
#[test]
fn a_client_in_the_queue_is_not_received_as_bytes() {
    let script = "
import select, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()
while True:
    select.select([s], [], []); s.setblocking(False)
    try: got = s.recv(1)
    except OSError as error: got = type(error).__name__ + str(error.errno)
    s.setblocking(True); c, peer = s.accept(); c.sendall(str(got).encode()); c.close()
";
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "asks.py", script);
    let command = ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let daemon = start_with(port, "1", &[], &command);
    for _ in 0..20 {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let answer = crate::support::read_all(&mut client).unwrap();
        // ENOTCONN.
        assert_eq!(String::from_utf8_lossy(&answer), "OSError107", "{}", daemon.log());
    }
}

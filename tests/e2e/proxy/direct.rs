//! Servers that know nothing of the PROXY protocol see the client.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;

use super::{CLIENT, DESTINATION, ask, body, connect, own, v1, v2};
use crate::support::direct::start_with;
use crate::support::{Daemon, free_port, install_dir, write_file};

/// Answers what accept, getpeername and getsockname say of the client; under /fork what they say in a child that alone has
/// the connection.
pub const PYTHON: &str = "
import http.server, json, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/fork' and os.fork():
            self.close_connection = True
            return
        s = self.connection
        body = json.dumps([a[:2] for a in (self.client_address, s.getpeername(), s.getsockname())]).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
        if self.path == '/fork': self.wfile.flush(); s.shutdown(2); os._exit(0)
    def log_message(*_): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET
    def shutdown_request(self, request):
        self.close_request(request)
Server((sys.argv[2], int(sys.argv[1])), Handler).serve_forever()
";

/// Answers the client's address and port.
pub const PYTHON_CLIENT: &str = "
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(('%s %s' % self.client_address[:2]).encode())
    def log_message(*_): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET
Server((sys.argv[2], int(sys.argv[1])), Handler).serve_forever()
";

fn python(host: &str, more: &[&str]) -> (Daemon, u16, tempfile::TempDir) {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "ends.py", PYTHON);
    let command = ["python3", script.to_str().unwrap(), &port.to_string(), host].map(str::to_owned);
    let options = [&["--via", "direct", "--proxy-from", "127.0.0.1"], more].concat();
    (start_with(port, "2", &options, &command), port, dir)
}

/// What [`PYTHON`] answers.
pub fn ends(client: &str, destination: &str) -> String {
    format!(r#"[["{client}", 56324], ["{client}", 56324], ["{destination}", 443]]"#)
}

#[test]
fn python_sees_both_ends_in_the_family_of_its_socket() {
    let (client6, destination6) = ("2001:db8::7", "2001:db8::1");
    let (mapped, mapped_destination) = ("::ffff:192.0.2.7", "::ffff:203.0.113.1");
    for (host, header, expected) in [
        ("0.0.0.0", v1(CLIENT, DESTINATION), ends(CLIENT, DESTINATION)),
        // It has no IPv4 address: the port tells it from the others.
        ("0.0.0.0", v2(client6, destination6, &[]), ends("0.0.0.0", "0.0.0.0")),
        ("::", v1(client6, destination6), ends(client6, destination6)),
        ("::", v2(CLIENT, DESTINATION, &[]), ends(mapped, mapped_destination)),
    ] {
        let (daemon, port, _dir) = python(host, &[]);
        for path in ["/", "/fork", "/"] {
            assert_eq!(ask(port, &header, path).unwrap(), expected, "{host} {path}\n{}", daemon.log());
        }
        // The balancer's own question whether somebody is there.
        let mut check = connect(port);
        check.write_all(b"PROXY UNKNOWN\r\nGET / HTTP/1.0\r\n\r\n").unwrap();
        let told = body(&mut check).unwrap();
        assert!(told.contains(&format!(", {}]", own(&check).port())) && told.contains("127.0.0.1"), "{told}");
    }
}

/// Two processes that both accept: each passes its connections to the other one over a Unix socket.
const PASSES: &str = "
import array, json, os, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', int(sys.argv[1]))); s.listen()
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
if os.fork() == 0:
    while True:
        _, (fd,), *_ = socket.recv_fds(here, 1, 1)
        c = socket.socket(fileno=fd); c.recv(1000)
        body = json.dumps([c.getpeername(), c.getsockname()]).encode()
        c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + body); c.close()
while True:
    c, _ = s.accept()
    socket.send_fds(there, [b'x'], [c.fileno()]); c.close()
";

#[test]
fn a_process_that_gets_the_connection_from_another_sees_both_ends() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "passes.py", PASSES);
    let command = ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let daemon = start_with(port, "1", &["--via", "direct", "--proxy-from", "127.0.0.1"], &command);
    for _ in 0..20 {
        let said = ask(port, &v1(CLIENT, DESTINATION), "/").unwrap();
        assert_eq!(said, format!(r#"[["{CLIENT}", 56324], ["{DESTINATION}", 443]]"#), "{}", daemon.log());
    }
}

/// As inetd does: the program that is started has the connection, and nothing else of the server's.
const STARTS: &str = "
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', int(sys.argv[1]))); s.listen()
while True:
    c, _ = s.accept()
    if os.fork() == 0:
        for fd in range(3): os.dup2(c.fileno(), fd)
        os.closerange(3, 100)
        os.execvp('python3', ['python3', sys.argv[2]])
    c.close()
";

const STARTED: &str = "
import json, os, socket
here, there = socket.socketpair(); here.getpeername(), here.getsockname()
c = socket.socket(fileno=0); c.recv(1000)
body = json.dumps([c.getpeername(), c.getsockname()]).encode()
c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + body)
";

#[test]
fn a_program_that_is_started_with_the_connection_alone_sees_both_ends() {
    let (dir, port) = (install_dir(), free_port());
    let (starts, started) =
        (write_file(dir.path(), "starts.py", STARTS), write_file(dir.path(), "started.py", STARTED));
    let command =
        ["python3", starts.to_str().unwrap(), &port.to_string(), started.to_str().unwrap()].map(str::to_owned);
    let daemon = start_with(port, "1", &["--via", "direct", "--proxy-from", "127.0.0.1"], &command);
    for header in [v1(CLIENT, DESTINATION), v2(CLIENT, DESTINATION, &[])] {
        let said = ask(port, &header, "/").unwrap();
        assert_eq!(said, format!(r#"[["{CLIENT}", 56324], ["{DESTINATION}", 443]]"#), "{}", daemon.log());
    }
    let mut check = connect(port);
    check.write_all(b"PROXY UNKNOWN\r\nGET / HTTP/1.0\r\n\r\n").unwrap();
    let told = body(&mut check).unwrap();
    assert!(told.contains(&format!("[[\"127.0.0.1\", {}]", own(&check).port())), "{told}");
}

const NODE: &str = "
require('http').createServer((request, response) => {
  const { remoteAddress, remotePort, remoteFamily, localAddress, localPort } = request.socket;
  response.end(JSON.stringify({ remoteAddress, remotePort, remoteFamily, localAddress, localPort }));
}).listen(process.argv[2], process.argv[3]);
";

#[test]
fn node_sees_both_ends() {
    let dir = install_dir();
    let script = write_file(dir.path(), "ends.js", NODE);
    for (host, client, destination, family) in
        [("0.0.0.0", CLIENT, DESTINATION, "IPv4"), ("::", "2001:db8::7", "2001:db8::1", "IPv6")]
    {
        let port = free_port();
        let command = ["node", script.to_str().unwrap(), &port.to_string(), host].map(str::to_owned);
        let daemon = start_with(port, "2", &["--proxy-from", "127.0.0.0/8,::1"], &command);
        let expected = format!(
            r#"{{"remoteAddress":"{client}","remotePort":56324,"remoteFamily":"{family}","localAddress":"{destination}","localPort":443}}"#
        );
        for header in [v1(client, destination), v2(client, destination, b"\x04\0\x02ab")] {
            assert_eq!(ask(port, &header, "/").unwrap(), expected, "{}", daemon.log());
        }
    }
}

//! Servers whose connections are served by another process than the one that accepts them.

use std::io::{Read, Write};

use super::{Logged, number};
use crate::support::{eventually, install_dir, seconds, write_file};

/// Forks for each connection, or passes it to a process of its own, which was there before.
const SERVER: &str = "
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def serve(c):
    while got := c.recv(4096): c.sendall(got)
    c.close()
here, there = socket.socketpair()
if sys.argv[1] == 'passes' and os.fork() == 0:
    while True:
        _, fds, _, _ = socket.recv_fds(there, 1, 1)
        serve(socket.socket(fileno=fds[0]))
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
while True:
    c, _ = s.accept()
    if sys.argv[1] == 'passes': socket.send_fds(here, [b'x'], [c.fileno()])
    elif os.fork() == 0: s.close(); serve(c); os._exit(0)
    c.close()
";

#[test]
fn the_line_is_that_of_the_process_that_accepted() {
    for how in ["forks", "passes"] {
        let dir = install_dir();
        let script = write_file(dir.path(), "server.py", SERVER);
        let options = ["--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap(), how];
        let logged = Logged::in_dir(dir, &options);
        let clients: Vec<_> = (0..3)
            .map(|n| {
                let mut stream = logged.connect();
                // Its line is there while another process still serves it.
                let lines = logged.lines(n + 1);
                let port = stream.local_addr().unwrap().port();
                assert_eq!(lines[n]["client"], format!("127.0.0.1:{port}"), "{how}");
                assert_eq!((&lines[n]["end"], number(&lines[n], "bytes_in")), (&"server".into(), 0), "{how}");
                stream.write_all(b"served").unwrap();
                let mut back = [0; 6];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(&back, b"served", "{how}");
                // Only one of them is served at a time by the process that they are passed to.
                stream.shutdown(std::net::Shutdown::Both).unwrap();
                stream
            })
            .collect();
        drop(clients);
        // No other lines, and nothing is lost.
        let text = eventually("the next line", seconds(20), || {
            drop(logged.connect());
            let text = std::fs::read_to_string(logged.path()).unwrap();
            (text.lines().count() >= 4).then_some(text)
        });
        let clients: Vec<_> = text.lines().map(|line| line.split("\"client\":\"").nth(1).unwrap()).collect();
        let ports: std::collections::BTreeSet<_> = clients.iter().map(|rest| rest.split('"').next()).collect();
        assert_eq!(ports.len(), clients.len(), "{how}: {text}");
        assert_eq!(logged.lost(), 0, "{how}");
    }
}

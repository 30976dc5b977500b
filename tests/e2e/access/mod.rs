//! The access log: a line for each connection.

mod direct;
mod ends;
mod killed;
mod passed;
mod refused;
mod relay;
mod sinks;

use std::io::{self, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Daemon, Random, eventually, free_port, read_all, roundsman, seconds, servers};

/// Sends back what comes, and closes after "stop".
const SERVER: &str = "
import os, socket, threading
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
def serve(c):
    try:
        while got := c.recv(4096):
            c.sendall(got)
            if got == b'stop': break
    except OSError: pass
    c.close()
while True:
    c, _ = s.accept(); threading.Thread(target=serve, args=[c]).start()
";

/// A daemon whose connections are logged as JSON.
struct Logged {
    daemon: Daemon,
    port: u16,
    dir: TempDir,
}

/// What a client knows of a connection that is over.
#[derive(Debug, Clone, Default)]
struct Seen {
    port: u16,
    sent: u64,
    received: u64,
}

impl Logged {
    /// On a free port of 127.0.0.1, with these options and words.
    fn in_dir(dir: TempDir, options: &[&str]) -> Self {
        Self::at(dir, free_port(), options)
    }

    fn at(dir: TempDir, port: u16, options: &[&str]) -> Self {
        let (listen, log) = (format!("127.0.0.1:{port}"), dir.path().join("access.log"));
        let mut all = vec!["-l", &listen, "--access-log", log.to_str().unwrap(), "--access-format", "json"];
        all.extend(["--name", "web"]);
        all.extend(options);
        let mut command = roundsman();
        command.env("SERVERS", servers()).env("NODE_PATH", servers().join("node_modules"));
        let daemon = Daemon::launch(command, &all, port);
        daemon.wait_for("worker online");
        Self { daemon, port, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream
    }

    /// All lines, once there are so many.
    #[track_caller]
    fn lines(&self, count: usize) -> Vec<Value> {
        let read = || std::fs::read_to_string(self.path()).unwrap_or_default();
        let what = format!("{count} lines");
        let text = eventually(&what, seconds(20), || {
            let text = read();
            (text.lines().count() >= count && text.ends_with('\n')).then_some(text)
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), count, "{text}");
        lines
    }

    fn lost(&self) -> u64 {
        self.daemon.ls()["services"][0]["access_lost"].as_u64().unwrap()
    }

    /// A request over a connection of its own that the server closes.
    fn request(&self) -> io::Result<Seen> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(seconds(20)))?;
        let port = stream.local_addr()?.port();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let received = read_all(&mut stream)?.len() as u64;
        Ok(Seen { port, sent: request.len() as u64, received })
    }
}

/// The same bytes each time.
fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..count).map(|_| random.below(256) as u8).collect()
}

/// A field of a line as a number.
#[track_caller]
fn number(line: &Value, field: &str) -> u64 {
    line[field].as_u64().unwrap_or_else(|| panic!("{field} in {line}"))
}

/// The lines' fields as the clients know them, in whatever order the lines came.
#[track_caller]
fn agrees(lines: &[Value], seen: &[Seen]) {
    let of = |line: &Value| {
        let port = line["client"].as_str().unwrap().strip_prefix("127.0.0.1:").unwrap().parse::<u16>().unwrap();
        (port, number(line, "bytes_in"), number(line, "bytes_out"))
    };
    let mut lines: Vec<_> = lines.iter().map(of).collect();
    let mut seen: Vec<_> = seen.iter().map(|seen| (seen.port, seen.sent, seen.received)).collect();
    lines.sort_unstable();
    seen.sort_unstable();
    assert_eq!(lines, seen);
}

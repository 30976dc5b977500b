//! A daemon goes on as another program, or another process.

mod access_log;
mod full;
mod hostile;
mod in_place;
mod many;
mod older;
mod refused;
mod state;
mod stored;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Output;

use crate::support::{Daemon, free_port, install_dir, roundsman, write_file};

/// Answers each request with its pid; `/slow` waits until the file `go` is there. Keeps connections.
const SERVER: &str = "import http.server, os, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def do_GET(self):
        while self.path == '/slow' and not os.path.exists('go'): time.sleep(0.01)
        body = str(os.getpid()).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length'])); self.do_GET()
    def log_message(self, *a): pass
class S(http.server.ThreadingHTTPServer): request_queue_size = 100
S(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()
";

/// A daemon of that server, in a directory of its own.
struct Site {
    daemon: Daemon,
    port: u16,
    dir: tempfile::TempDir,
}

impl Site {
    fn start(via: &str, slots: usize, options: &[&str]) -> Self {
        Self::of(SERVER, via, slots, options)
    }

    /// With another server.
    fn of(server: &str, via: &str, slots: usize, options: &[&str]) -> Self {
        let (dir, port) = (install_dir(), free_port());
        write_file(dir.path(), "server.py", server);
        let (listen, slots_text) = (format!("127.0.0.1:{port}"), slots.to_string());
        let mut command = roundsman();
        command.current_dir(dir.path());
        let mut all = vec!["-n", "web", "-l", &listen, "-i", &slots_text, "--via", via];
        let uptime = ["--min-uptime", "100ms"];
        all.extend(uptime.iter().filter(|_| !options.contains(&"--min-uptime")));
        all.extend(options);
        all.extend(["--", "python3", "server.py"]);
        let daemon = Daemon::launch(command, &all, port);
        daemon.wait_online(slots);
        Self { daemon, port, dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(crate::support::seconds(20))).unwrap();
        stream
    }
}

/// Resident memory of the daemon, in bytes.
fn resident(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", daemon.pid())).unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A request on a connection that stays open; the body.
fn ask(stream: &mut TcpStream, method: &str, path: &str) -> std::io::Result<String> {
    let body = if method == "POST" { "Content-Length: 4\r\n\r\nbody" } else { "\r\n" };
    // In one piece: small ones wait for each other.
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{body}").as_bytes())?;
    answer(stream)
}

fn answer(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    while !text.contains("\r\n\r\n") || text.ends_with("\r\n\r\n") {
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("cut: {text:?}")));
        }
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    Ok(text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// `roundsman upgrade`: its exit code and what it says.
fn upgrade(daemon: &Daemon, file: Option<&Path>) -> (i32, String) {
    let mut command = roundsman();
    command.arg("upgrade").args(file).env("ROUNDSMAN_CONTROL", daemon.control());
    said(command.output().unwrap())
}

/// Another command, its exit code and what it says.
fn tell(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    said(roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap())
}

fn said(output: Output) -> (i32, String) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[track_caller]
fn upgraded(daemon: &Daemon) {
    let pid = daemon.pid();
    let (code, text) = upgrade(daemon, None);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("(pid {pid})")), "{text}");
}

/// Descriptors of the daemon.
fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

//! However workers are told to go, nobody who is being served loses the answer: kinds of servers × ways of asking × states
//! of connections × deliveries.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{
    Daemon, eventually, free_port, install_dir, read_all, roundsman, seconds, servers, unsaid, write_file,
};

/// Answers at once, but for /slow: half of its body now, half of it a second later.
const NODE: &str = "
const server = require('http').createServer((request, response) => {
  response.setHeader('Content-Length', 11);
  if (request.url !== '/slow') return response.end('quick whole');
  response.write('begun ');
  setTimeout(() => response.end('whole'), 1000);
});
server.keepAliveTimeout = 60000;
server.listen(process.env.PORT, process.env.HOST);
";

const PYTHON: &str = "
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '11')
        if self.headers['Connection'] == 'close': self.send_header('Connection', 'close')
        self.end_headers()
        if self.path != '/slow': return self.wfile.write(b'quick whole')
        self.wfile.write(b'begun '); self.wfile.flush()
        time.sleep(1)
        self.wfile.write(b'whole')
    def log_message(self, *rest): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 100
Server((os.environ['HOST'], int(os.environ['PORT'])), Handler).serve_forever()
";

const WSGI: &str = "
import time
def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '11')])
    if environ['PATH_INFO'] != '/slow':
        yield b'quick whole'
        return
    yield b'begun '
    time.sleep(1)
    yield b'whole'
";

/// A worker of its own that has just been forked ignores the signal that its parent gets: each leaves a file when it is past
/// that.
const GUNICORN: &str = "
workers, worker_class, threads, keepalive = 2, 'gthread', 8, 60
def post_worker_init(worker):
    open(f'DIR/booted-{worker.pid}', 'w').close()
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NodeCluster,
    NodeAlone,
    Python,
    Gunicorn,
    /// One of the tables'.
    Other,
}

impl Kind {
    fn command(self, dir: &Path) -> Vec<String> {
        let file = |name: &str, text: &str| write_file(dir, name, text).to_str().unwrap().to_owned();
        match self {
            Self::NodeCluster | Self::NodeAlone => vec!["node".to_owned(), file("app.js", NODE)],
            Self::Python => vec!["python3".to_owned(), file("app.py", PYTHON)],
            Self::Other => Vec::new(),
            Self::Gunicorn => {
                file("slow.py", WSGI);
                let program = servers().join("venv/bin/gunicorn").to_str().unwrap().to_owned();
                let conf = file("conf.py", &GUNICORN.replace("DIR", dir.to_str().unwrap()));
                let more = ["-c", &conf, "--chdir", dir.to_str().unwrap(), "--log-level", "warning"];
                let place = ["slow:app"];
                [program].into_iter().chain(more.iter().chain(&place).map(|&word| word.to_owned())).collect()
            }
        }
    }

    fn ipc(self) -> &'static [&'static str] {
        if self == Self::NodeAlone { &["--node-ipc", "off"] } else { &[] }
    }
}

/// A way to tell workers to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Signal(Signal),
    Stop,
    Reload,
    Restart,
    ScaleDown,
}

/// What clients have open then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Requests that are being answered, and some that have only just been sent.
    Requests,
    /// The same, and connections that wait for a next request.
    RequestsAndIdle,
    Nothing,
}

fn request(stream: &mut TcpStream, path: &str, connection: &str) {
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n").as_bytes()).unwrap();
}

/// Reads until `words` have come.
fn read_until(stream: &mut TcpStream, words: &str, what: &str) {
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&all).ends_with(words) {
        let n = stream.read(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(n > 0, "{what}: cut after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..n]);
    }
}

/// A service under test: its daemon, and what shows that nothing of it is left.
pub struct Cell {
    pub daemon: Daemon,
    pub name: String,
    pub mark: String,
    pub kind: Kind,
    pub dir: tempfile::TempDir,
}

impl Cell {
    fn start(kind: Kind, via: &str) -> Self {
        let (dir, port) = (install_dir(), free_port());
        let listen = format!("127.0.0.1:{port}");
        let mut words = vec!["-l", &listen, "--via", via, "-i", "2", "--min-uptime", "50ms", "--drain-timeout", "6s"];
        words.extend(kind.ipc());
        words.push("--");
        let command = kind.command(dir.path());
        words.extend(command.iter().map(String::as_str));
        let mark = format!("DRAIN_CELL={}-{port}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        let mut program = roundsman();
        program.env(name, value);
        let daemon = Daemon::launch(program, &words, port);
        daemon.wait_online(2);
        Self { daemon, name: format!("{kind:?} by {via}"), mark, kind, dir }
    }

    /// Waits until all its processes are ready to be told to go.
    fn settled(&self) {
        let booted = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("booted-").is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
        };
        if self.kind == Kind::Gunicorn {
            let wanted = 2 * self.daemon.slots().len();
            let all =
                || std::fs::read_dir(self.dir.path()).unwrap().filter_map(|entry| booted(entry).then_some(())).count();
            eventually("gunicorn's workers are there", seconds(20), || (all() >= wanted).then_some(()));
        }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.daemon.port)).unwrap()
    }

    /// Processes of the service, wherever they went.
    fn processes(&self) -> Vec<PathBuf> {
        let own = |path: &PathBuf| {
            let environment = std::fs::read(path.join("environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|entry| entry == self.mark.as_bytes())
        };
        std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(own).collect()
    }

    fn command(&self, words: &[&str], what: &str) {
        let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", self.daemon.control()).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Does what a verb says and returns when it is done.
    pub fn tell(&mut self, verb: Verb, what: &str) {
        match verb {
            Verb::Signal(signal) => {
                assert_ne!(self.processes(), Vec::<PathBuf>::new(), "{what}: the mark is not found");
                self.daemon.signal(signal);
                let end = self.daemon.finish(seconds(20));
                assert_eq!(end.code(), 0, "{what}: {}", end.log);
                assert_eq!(self.processes(), Vec::<PathBuf>::new(), "{what}: left behind");
            }
            Verb::Stop => self.command(&["stop"], what),
            Verb::Reload => self.command(&["reload"], what),
            Verb::Restart => self.command(&["restart"], what),
            Verb::ScaleDown => self.command(&["scale", "1"], what),
        }
    }

    /// One cell of the matrix. Returns how long the verb took.
    fn play(&mut self, verb: Verb, open: Open) -> Duration {
        let what = format!("{}: {verb:?} with {open:?}", self.name);
        self.settled();
        let before: Vec<_> =
            self.daemon.slots().iter().map(|slot| (slot["pid"].clone(), slot["server_pid"].clone())).collect();
        let logged = self.daemon.log().len();
        let (mut begun, mut idle, mut sent) = (Vec::new(), Vec::new(), Vec::new());
        if open == Open::RequestsAndIdle {
            for _ in 0..4 {
                let mut stream = self.connect();
                request(&mut stream, "/", "keep-alive");
                read_until(&mut stream, "quick whole", &what);
                idle.push(stream);
            }
        }
        if open != Open::Nothing {
            for _ in 0..6 {
                let mut stream = self.connect();
                request(&mut stream, "/slow", "close");
                begun.push(stream);
            }
            begun.iter_mut().for_each(|stream| read_until(stream, "begun ", &what));
            for _ in 0..6 {
                let mut stream = self.connect();
                request(&mut stream, "/slow", "close");
                sent.push(stream);
            }
        }
        let begin = Instant::now();
        let clients: Vec<_> = begun
            .into_iter()
            .map(|stream| (stream, "whole"))
            .chain(sent.into_iter().map(|stream| (stream, "begun whole")))
            .map(|(mut stream, words)| {
                let what = what.clone();
                std::thread::spawn(move || {
                    let answer =
                        read_all(&mut stream).unwrap_or_else(|error| panic!("{what}: {words:?} is cut: {error}"));
                    let answer = String::from_utf8_lossy(&answer).into_owned();
                    assert!(answer.ends_with(words), "{what}: {answer:?} does not end with {words:?}");
                    assert!(words == "whole" || answer.starts_with("HTTP/1.1 200"), "{what}: {answer:?}");
                })
            })
            .collect();
        self.tell(verb, &what);
        let took = begin.elapsed();
        let failed = clients.into_iter().map(|client| client.join()).filter(Result::is_err).count();
        let log = self.daemon.log()[logged..].to_owned();
        assert_eq!(failed, 0, "{what}: answers were lost\n{log}");
        if open != Open::RequestsAndIdle {
            // Whatever the machine's speed: nothing was waited for in vain, and nobody was cut or killed.
            unsaid(&log, &["time is up", "killed: "]);
        }
        if let Verb::Reload | Verb::Restart = verb {
            for (at, slot) in self.daemon.slots().iter().enumerate() {
                assert_ne!(slot["pid"], before[at].0, "{what}: slot {at} was not replaced");
            }
        }
        if !matches!(verb, Verb::Signal(_)) {
            let kept = if verb == Verb::ScaleDown { 1 } else { 0 };
            let pids = before[kept..].iter().flat_map(|(pid, server)| [pid, server]).filter_map(|pid| pid.as_i64());
            let pids: Vec<_> = pids.collect();
            assert!(pids.len() >= 2 - kept, "{what}: {before:?}");
            for pid in pids {
                let path = format!("/proc/{pid}");
                eventually(&format!("{what}: {pid} is gone"), seconds(5), || {
                    (!Path::new(&path).exists()).then_some(())
                });
            }
        }
        drop(idle);
        took
    }
}

/// All verbs with requests and idle connections open, on one daemon after the other.
fn busy(kind: Kind, via: &str) {
    // The connection of a client that says nothing is the server's to close: only Node's cluster has a word for that.
    let closes = kind == Kind::NodeCluster && via == "direct";
    let mut cell = Cell::start(kind, via);
    for verb in [Verb::Reload, Verb::Restart, Verb::ScaleDown, Verb::Signal(Signal::SIGTERM)] {
        let took = cell.play(verb, if closes { Open::RequestsAndIdle } else { Open::Requests });
        assert!(!closes || took < seconds(5), "{}: {verb:?} took {took:?}", cell.name);
    }
    let mut cell = Cell::start(kind, via);
    cell.play(Verb::Stop, Open::RequestsAndIdle);
    cell.command(&["start"], "start");
    cell.daemon.wait_online(2);
    let took = cell.play(Verb::Signal(Signal::SIGINT), Open::RequestsAndIdle);
    assert!(took < if closes { seconds(5) } else { seconds(9) }, "{}: SIGINT took {took:?}", cell.name);
}

/// All verbs with nothing open: nothing is waited for.
fn quiet(kind: Kind, via: &str) {
    let mut cell = Cell::start(kind, via);
    for verb in [Verb::Reload, Verb::Restart, Verb::Stop] {
        cell.play(verb, Open::Nothing);
    }
    cell.command(&["start"], "start");
    cell.daemon.wait_online(2);
    for verb in [Verb::ScaleDown, Verb::Signal(Signal::SIGTERM)] {
        let took = cell.play(verb, Open::Nothing);
        assert!(took < seconds(3), "{}: {verb:?} took {took:?}", cell.name);
    }
}

fn matrix(kinds: [Kind; 2]) {
    std::thread::scope(|scope| {
        for kind in kinds {
            for via in ["direct", "relay"] {
                scope.spawn(move || busy(kind, via));
                scope.spawn(move || quiet(kind, via));
            }
        }
    });
}

#[test]
fn node_loses_no_answer_however_it_is_told_to_go() {
    matrix([Kind::NodeCluster, Kind::NodeAlone]);
}

#[test]
fn python_and_gunicorn_lose_no_answer_however_they_are_told_to_go() {
    matrix([Kind::Python, Kind::Gunicorn]);
}

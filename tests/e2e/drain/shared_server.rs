//! One server behind all slots: when it is started anew, who is being served gets the whole answer from the old one, and who
//! comes meanwhile is served by the new one.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Daemon, eventually, free_port, get, http_get, install_dir, millis, roundsman, seconds, unsaid, write_file,
};

/// Both answer with their pid, after as many seconds as the environment says.
const NODE: &str = "
require('http').createServer((request, response) => {
  const text = `from ${process.pid}`;
  response.setHeader('Content-Length', text.length);
  response.write(text.slice(0, 5));
  setTimeout(() => response.end(text.slice(5)), Number(process.env.SECONDS) * 1000);
}).listen(process.argv[2], '127.0.0.1');
";

const PYTHON: &str = "
import http.server, os, signal, sys, time
fault = open('fault').read() if os.path.exists('fault') else ''
if fault == 'dies': sys.exit('no such table')
if fault == 'silent': time.sleep(1000)
if 'TERM' in os.environ: signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ['TERM'] == 'ignored' else lambda *_: os._exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        text = f'from {os.getpid()}'.encode()
        self.send_response(200); self.send_header('Content-Length', str(len(text)))
        if self.headers['Connection'] == 'close': self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(text[:5]); self.wfile.flush()
        time.sleep(float(os.environ['SECONDS']))
        self.wfile.write(text[5:])
    def log_message(self, *rest): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 100
Server(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

struct App {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl App {
    fn start(program: &str, takes: &str, options: &[&str]) -> Self {
        let (dir, server) = (install_dir(), free_port().to_string());
        let source = if program == "node" { NODE } else { PYTHON };
        let file = write_file(dir.path(), "server", source);
        let (upstream, takes) = (format!("127.0.0.1:{server}"), format!("SECONDS={takes}"));
        let cwd = dir.path().to_str().unwrap();
        let words = ["-i", "2", "-u", &upstream, "--cwd", cwd, "--env", &takes];
        let command = ["--", program, file.to_str().unwrap(), &server];
        let daemon = Daemon::start(&[&words[..], options, &command].concat());
        daemon.wait_online(2);
        Self { daemon, dir }
    }

    fn fault(&self, fault: &str) {
        write_file(self.dir.path(), "fault", fault);
    }

    /// A request that is sent now, and the answer to it.
    fn ask(&self) -> JoinHandle<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.daemon.port)).unwrap();
        std::thread::spawn(move || http_get(&mut stream).unwrap_or_else(|error| error.to_string()))
    }

    /// Several that are being answered.
    fn ask_several(&self) -> Vec<JoinHandle<String>> {
        let clients = (0..4).map(|_| self.ask()).collect();
        eventually("they are open", seconds(10), || (self.daemon.total("open") == 4).then_some(()));
        clients
    }

    /// The command's exit code and what it says.
    fn tell(&self, verb: &str) -> JoinHandle<(i32, String)> {
        let (control, verb) = (self.daemon.control().to_owned(), verb.to_owned());
        std::thread::spawn(move || {
            let output = roundsman().arg(verb).env("ROUNDSMAN_CONTROL", control).output().unwrap();
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            (output.status.code().unwrap(), text)
        })
    }
}

fn answers(clients: Vec<JoinHandle<String>>) -> Vec<String> {
    clients.into_iter().map(|client| client.join().unwrap()).collect()
}

/// The server that answered, if the answer is whole.
fn pid(answer: &str) -> Option<u32> {
    answer.strip_prefix("from ")?.parse().ok()
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn who_is_served_and_who_comes(program: &str, options: &[&str]) {
    let app = App::start(program, "1", options);
    for verb in ["reload", "HUP", "restart"] {
        let what = format!("{program} {options:?} {verb}");
        let old = pid(&get(app.daemon.port).unwrap()).unwrap();
        let clients = app.ask_several();
        let reloaded = app.daemon.log().matches("reloaded").count();
        let asks = if verb == "restart" { "restarting" } else { "reloading" };
        let asked = app.daemon.log().matches(asks).count();
        let told = match verb {
            "HUP" => {
                app.daemon.signal(Signal::SIGHUP);
                None
            }
            _ => Some(app.tell(verb)),
        };
        // Long before those are answered.
        app.daemon.wait_for_count(asks, asked + 1);
        // Those who are served count as open until then; who comes now is in front of the next one.
        std::thread::sleep(millis(200));
        let later: Vec<_> = (0..4).map(|_| app.ask()).collect();
        let clients = answers(clients);
        assert!(clients.iter().all(|answer| pid(answer) == Some(old)), "{what}: {clients:?}");
        let later = answers(later);
        let new = pid(&later[0]);
        assert!(new.is_some_and(|new| new != old), "{what}: {old}, then {later:?}");
        assert!(later.iter().all(|answer| pid(answer) == new), "{what}: {later:?}");
        match told {
            Some(told) => {
                let (code, text) = told.join().unwrap();
                assert_eq!(code, 0, "{what}: {text}");
                assert!(text.contains(&format!("{verb}ed 2 slots")), "{what}: {text}");
            }
            None => app.daemon.wait_for_count("reloaded", reloaded + 1),
        }
        assert!(gone(old), "{what}");
    }
    assert_eq!(app.daemon.ls()["services"][0]["reloads"], 2);
    let log = app.daemon.log();
    unsaid(&log, &["time is up", "killed: ", "upstream down"]);
}

#[test]
fn a_python_server_behind_all_slots_finishes_before_the_next_one_comes() {
    who_is_served_and_who_comes("python3", &[]);
}

#[test]
fn a_node_server_behind_all_slots_finishes_before_the_next_one_comes() {
    who_is_served_and_who_comes("node", &[]);
}

#[test]
fn under_none_a_server_behind_all_slots_finishes_before_the_next_one_comes() {
    who_is_served_and_who_comes("python3", &["-p", "none"]);
}

#[test]
fn under_load_nobody_notices_that_the_server_behind_all_slots_is_another_one() {
    for policy in ["rr", "none"] {
        let app = App::start("python3", "0.01", &["-p", policy]);
        let (over, port) = (Arc::new(AtomicBool::new(false)), app.daemon.port);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let over = over.clone();
                std::thread::spawn(move || {
                    let mut answers = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        answers.push(get(port).unwrap_or_else(|error| error.to_string()));
                    }
                    answers
                })
            })
            .collect();
        for verb in ["reload", "restart", "reload"] {
            // Some requests of each client between two verbs.
            std::thread::sleep(millis(300));
            let (code, text) = app.tell(verb).join().unwrap();
            assert_eq!(code, 0, "{policy} {verb}: {text}");
        }
        std::thread::sleep(millis(300));
        over.store(true, Ordering::Relaxed);
        let answers: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let lost: Vec<_> = answers.iter().filter(|answer| pid(answer).is_none()).collect();
        assert!(lost.is_empty(), "{policy}: {} of {} lost: {lost:?}", lost.len(), answers.len());
        let servers: std::collections::BTreeSet<_> = answers.iter().collect();
        assert_eq!(servers.len(), 4, "{policy}: {servers:?}");
    }
}

#[test]
fn a_server_behind_all_slots_that_does_not_come_back_is_an_error_in_bounded_time() {
    let cases = [("reload", "dies"), ("reload", "silent"), ("restart", "dies"), ("restart", "silent")];
    std::thread::scope(|scope| {
        for (verb, fault) in cases {
            scope.spawn(move || does_not_come_back(verb, fault));
        }
    });
}

fn does_not_come_back(verb: &str, fault: &str) {
    let says = if fault == "dies" { "no such table" } else { "does not listen" };
    let app =
        App::start("python3", "0", &["--listen-timeout", "4s", "--backoff", "50ms..200ms", "--max-restarts", "1000"]);
    let old = pid(&get(app.daemon.port).unwrap());
    app.fault(fault);
    let begin = Instant::now();
    let (code, text) = app.tell(verb).join().unwrap();
    assert_eq!(code, 1, "{verb} {fault}: {text}");
    assert!(begin.elapsed() < seconds(12), "{verb} {fault}: {:?}", begin.elapsed());
    assert!(text.contains("slots 0, 1 are launching (") && text.contains(says), "{verb} {fault}: {text}");
    // The daemon goes on trying, and clients wait.
    let client = app.ask();
    eventually("it is held", seconds(5), || (app.daemon.ls()["services"][0]["held"] == 1).then_some(()));
    app.fault("");
    if fault == "silent" {
        let (code, text) = app.tell(verb).join().unwrap();
        assert_eq!(code, 0, "{verb} {fault}: {text}");
    }
    let new = pid(&client.join().unwrap());
    assert!(new.is_some() && new != old, "{verb} {fault}: {new:?}");
}

#[test]
fn a_server_behind_all_slots_that_is_given_up_is_an_error_with_what_it_said() {
    for (verb, says) in
        [("reload", "reload failed, not all slots are online: "), ("restart", "restarted 2 slots, not all are")]
    {
        // In the middle of its back-off it is not given up sooner.
        for before in ["online", "dying"] {
            let what = format!("{verb}, before {before}");
            let mut app = App::start("python3", "0", &["--backoff", "200ms..200ms", "--max-restarts", "6"]);
            let server = pid(&get(app.daemon.port).unwrap()).unwrap();
            app.fault("dies");
            if before == "dying" {
                kill(Pid::from_raw(server as i32), Signal::SIGKILL).unwrap();
                app.daemon.wait_for_count("server exited", 2);
            }
            let (code, text) = app.tell(verb).join().unwrap();
            assert_eq!(code, 1, "{what}: {text}");
            assert!(
                text.contains(says) && text.contains("(the server they share failed: exit code 1)"),
                "{what}: {text}"
            );
            assert!(text.contains("  | no such table"), "{what}: {text}");
            let end = app.daemon.finish(seconds(10));
            assert_eq!(end.code(), 1, "{what}");
            let tries = end.log.rsplit(&format!("{verb}ing")).next().unwrap().matches("no such table").count();
            assert!(tries >= 6, "{what}: {tries}\n{}", end.log);
        }
    }
}

#[test]
fn however_a_server_behind_all_slots_takes_its_stop_signal_the_next_one_comes() {
    for (term, options) in [("ignored", &["--kill-timeout", "500ms"][..]), ("zero", &["--on-exit", "ok"][..])] {
        let handled = format!("TERM={term}");
        let mut app = App::start("python3", "0", &[&["--env", &handled], options].concat());
        for verbs in [&["reload"][..], &["restart"], &["stop", "start"]] {
            let old = pid(&get(app.daemon.port).unwrap()).unwrap();
            for verb in verbs {
                let (code, text) = app.tell(verb).join().unwrap();
                assert_eq!(code, 0, "{term} {verb}: {text}");
                assert!(gone(old), "{term} {verb}");
            }
            let new = pid(&get(app.daemon.port).unwrap());
            assert!(new.is_some_and(|new| new != old), "{term} {verbs:?}");
        }
        assert_eq!(app.daemon.stop().code(), 0, "{term}");
    }
}

#[test]
fn who_holds_an_idle_connection_keeps_the_next_server_behind_all_slots_waiting_for_the_drain_time_only() {
    let app = App::start("python3", "0", &["--drain-timeout", "1s"]);
    let idle = TcpStream::connect(("127.0.0.1", app.daemon.port)).unwrap();
    eventually("it is open", seconds(10), || (app.daemon.total("open") == 1).then_some(()));
    let begin = Instant::now();
    let told = app.tell("reload");
    app.daemon.wait_for("reloading");
    let client = app.ask();
    let (code, text) = told.join().unwrap();
    assert_eq!(code, 0, "{text}");
    assert!(begin.elapsed() >= seconds(1) && begin.elapsed() < seconds(6), "{:?}", begin.elapsed());
    assert!(pid(&client.join().unwrap()).is_some());
    drop(idle);
}

#[test]
fn a_stop_while_the_server_behind_all_slots_makes_room_loses_nobody() {
    let mut app = App::start("python3", "1", &[]);
    let clients = app.ask_several();
    let told = app.tell("reload");
    app.daemon.wait_for("reloading");
    let end = app.daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    let clients = answers(clients);
    assert!(clients.iter().all(|answer| pid(answer).is_some()), "{clients:?}\n{}", end.log);
    assert_eq!(told.join().unwrap().0, 1);
}

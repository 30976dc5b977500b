//! Programs that have ideas of their own about how to end, or that are told at an awkward moment: who is being served still
//! gets the whole answer, and who is idle is gone at once.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::{
    App, Daemon, eventually, free_port, get, http_get, install_dir, millis, roundsman, seconds, unsaid, write_file,
};

/// Answers after as many milliseconds as the path says; what else it does is up to each test.
const SLOW: &str = "
const server = require('http').createServer((request, response) => {
  console.log('asked');
  setTimeout(() => response.end('whole'), Number(process.env.ANSWERS_AFTER || 1000));
}).listen(process.env.PORT_OF_APP);
";

/// A request that is sent now; its answer.
fn ask(port: u16) -> JoinHandle<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || http_get(&mut stream).unwrap_or_else(|error| error.to_string()))
}

fn whole(clients: Vec<JoinHandle<String>>, what: &str, log: &str) {
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(answers.iter().all(|answer| answer == "whole"), "{what}: {answers:?}\n{log}");
}

/// It was closed or reset; a time-out is neither.
#[track_caller]
fn cut(client: JoinHandle<String>) {
    let answer = client.join().unwrap();
    assert!(answer.contains("reset by peer") || answer.starts_with("cut answer"), "{answer}");
}

fn gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_cluster_script_whose_primary_disconnects_its_workers_answers_who_is_being_served() {
    let source = format!(
        "const cluster = require('cluster');
if (cluster.isPrimary) {{
  for (let i = 0; i < 2; i++) cluster.fork();
  process.on('SIGTERM', () => cluster.disconnect(() => process.exit(0)));
}} else {{ {SLOW} }}"
    );
    // As it is, we are the primary; with its own one it is a server like any other.
    for ipc in ["auto", "off"] {
        let mut app = App::start("node", "app.js", &source, &["-i", "1", "--node-ipc", ipc]).online(1);
        assert_eq!(get(app.port).unwrap(), "whole");
        let clients: Vec<_> = (0..4).map(|_| ask(app.port)).collect();
        app.says_times("asked", 5);
        let end = app.daemon.stop();
        assert_eq!(end.code(), 0, "{}", end.log);
        whole(clients, ipc, &end.log);
        unsaid(&end.log, &["time is up", "killed: "]);
    }
}

#[test]
fn a_handler_of_the_stop_signal_may_leave_the_end_to_the_primary() {
    let handlers = [
        "process.on('SIGTERM', () => console.log('handled'))",
        "process.on('SIGTERM', () => { console.log('handled'); server.close() })",
        "process.on('SIGTERM', () => { console.log('handled'); server.close(() => process.exit(0)) })",
        "process.on('SIGTERM', () => { console.log('handled'); process.exit(0) })",
    ];
    std::thread::scope(|scope| {
        for handler in handlers {
            scope.spawn(move || {
                let source = format!("{SLOW}\n{handler}");
                let options = ["--min-uptime", "100ms", "--stop-timeout", "20s", "--kill-timeout", "20s"];
                let mut app = App::start("node", "app.js", &source, &options).online(2);
                let before = app.daemon.workers();
                let client = ask(app.port);
                app.says("asked");
                let took = app.reload();
                whole(vec![client], handler, &app.daemon.log());
                assert!(took < seconds(12), "{handler}: nobody was waited for in vain: {took:?}");
                assert!(before.iter().all(|&pid| gone(pid)), "{handler}");
                // The one of the two that has nothing to do runs its handler.
                app.says("handled");
                let client = ask(app.port);
                app.says_times("asked", 2);
                let begin = Instant::now();
                let end = app.daemon.stop();
                assert_eq!(end.code(), 0, "{handler}: {}", end.log);
                whole(vec![client], handler, &end.log);
                assert!(begin.elapsed() < seconds(12), "{handler}: {:?}", begin.elapsed());
                unsaid(&end.log, &["time is up", "killed: "]);
            });
        }
    });
}

#[test]
fn who_closes_its_listeners_and_has_connections_is_not_done() {
    // By itself, and because of the message that comes before the signal: the answers take longer than that one's grace.
    let by_itself = SLOW.replace("console.log('asked');", "console.log('asked'); server.close();");
    let by_message = format!("{SLOW}\nprocess.on('message', () => server.close());");
    let cases: [(&str, &[&str]); 3] = [
        (&by_itself, &["--env", "ANSWERS_AFTER=1500"]),
        (&by_itself, &["--env", "ANSWERS_AFTER=1500", "--node-ipc", "off"]),
        (&by_message, &["--env", "ANSWERS_AFTER=4000", "--stop-message", "shutdown"]),
    ];
    std::thread::scope(|scope| {
        for (source, options) in cases {
            scope.spawn(move || {
                let mut app = App::start("node", "app.js", source, &[&["-i", "1"], options].concat()).online(1);
                let client = ask(app.port);
                app.says("asked");
                // The word of the close, where there is one, is there before that of the stop.
                std::thread::sleep(millis(100));
                let end = app.daemon.stop();
                assert_eq!(end.code(), 0, "{options:?}: {}", end.log);
                whole(vec![client], &format!("{options:?}"), &end.log);
            });
        }
    });
}

#[test]
fn a_child_that_serves_what_its_parent_received_is_waited_for() {
    // The first connection of all: nothing has told yet that this server passes them on.
    let script = "
import os, signal, socket, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
while True:
    c, peer = s.accept()
    if os.fork() == 0:
        head = b''
        while b'\\r\\n\\r\\n' not in head: head += c.recv(4096)
        print('asked', flush=True)
        time.sleep(1)
        c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nwhole'); c.close(); os._exit(0)
    c.close()
";
    let (dir, port) = (install_dir(), free_port());
    let file = write_file(dir.path(), "forking.py", script);
    let out = dir.path().join("out.log");
    let listen = format!("127.0.0.1:{port}");
    let words = ["-l", &listen, "-i", "1", "--out", out.to_str().unwrap(), "--", "python3", file.to_str().unwrap()];
    let mut daemon = Daemon::launch(roundsman(), &words, port);
    daemon.wait_online(1);
    let client = ask(port);
    eventually("it is asked", seconds(10), || std::fs::read_to_string(&out).ok()?.contains("asked").then_some(()));
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    whole(vec![client], "a process per connection", &end.log);
}

/// One connection at a time, each for a while.
const ONE_BY_ONE: &str = "
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.06)
        self.send_response(200); self.send_header('Content-Length', '5'); self.end_headers()
        self.wfile.write(b'whole')
    def log_message(self, *rest): pass
class Server(http.server.HTTPServer):
    request_queue_size = 100
Server((os.environ['HOST'], int(os.environ['PORT'])), Handler).serve_forever()
";

#[test]
fn who_waits_in_a_queue_or_in_the_backlog_is_served_and_who_comes_later_is_refused() {
    std::thread::scope(|scope| {
        for (via, verb) in [("direct", "stop"), ("direct", "TERM"), ("relay", "stop"), ("relay", "TERM")] {
            scope.spawn(move || {
                let (dir, port) = (install_dir(), free_port());
                let file = write_file(dir.path(), "app.py", ONE_BY_ONE);
                let listen = format!("127.0.0.1:{port}");
                let words =
                    ["-l", &listen, "--via", via, "-i", "1", "--stop-timeout", "40s", "--drain-timeout", "30s", "--"];
                let command = ["python3", file.to_str().unwrap()];
                let mut daemon = Daemon::launch(roundsman(), &[&words[..], &command].concat(), port);
                daemon.wait_online(1);
                let what = format!("{verb} by {via}");
                let clients: Vec<_> = (0..40).map(|_| ask(port)).collect();
                let control = daemon.control().to_owned();
                let stop = (verb == "stop").then(|| {
                    let stop = move || roundsman().arg("stop").env("ROUNDSMAN_CONTROL", control).output().unwrap();
                    std::thread::spawn(stop)
                });
                if stop.is_none() {
                    daemon.signal(Signal::SIGTERM);
                }
                daemon.wait_for("stopping");
                // Long before the last of them is served.
                eventually(&format!("{what}: refused"), seconds(20), || {
                    let refused = TcpStream::connect(("127.0.0.1", port)).err()?;
                    (refused.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
                });
                let waiting = clients.iter().filter(|client| !client.is_finished()).count();
                whole(clients, &what, &daemon.log());
                assert!(via == "relay" || waiting > 5, "{what}: refused only when all were served");
                match stop {
                    Some(stop) => assert!(stop.join().unwrap().status.success(), "{what}: {}", daemon.log()),
                    None => assert_eq!(daemon.finish(seconds(20)).code(), 0, "{what}"),
                }
            });
        }
    });
}

#[test]
fn a_stop_in_the_middle_of_a_reload_loses_nobody() {
    // The successor never comes: the one before it is the only one that can serve.
    let source = "
if (require('fs').existsSync('second')) setInterval(() => {}, 1000); else {
  require('fs').writeFileSync('second', '');
  require('http').createServer((request, response) => {
    if (request.url !== '/') return response.end('ok');
    console.log('asked'); const end = Date.now() + 100; while (Date.now() < end); response.end('whole');
  }).listen(process.env.PORT_OF_APP);
}";
    for ipc in ["auto", "off"] {
        let mut app = App::start("node", "app.js", source, &["-i", "1", "--node-ipc", ipc]).online(1);
        app.daemon.signal(Signal::SIGHUP);
        app.daemon.wait_for_count("server started", 2);
        let clients: Vec<_> = (0..20).map(|_| ask(app.port)).collect();
        app.says("asked");
        let end = app.daemon.stop();
        assert_eq!(end.code(), 0, "{}", end.log);
        whole(clients, ipc, &end.log);
    }
}

#[test]
fn a_stopped_service_without_workers_keeps_nobody_waiting() {
    let app = App::start("node", "app.js", SLOW, &["-i", "1", "--backoff", "30s..60s"]).online(1);
    let pid = nix::unistd::Pid::from_raw(app.daemon.workers()[0]);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    app.daemon.wait_for("restart_in=");
    let client = ask(app.port);
    eventually("it is held", seconds(5), || (app.daemon.ls()["services"][0]["held"] == 1).then_some(()));
    let begin = Instant::now();
    let (code, text) = app.ask(&["stop"]);
    assert_eq!(code, 0, "{text}");
    assert!(begin.elapsed() < seconds(8), "{:?}", begin.elapsed());
    cut(client);
    let (code, text) = app.ask(&["start"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(get(app.port).unwrap(), "whole");
}

#[test]
fn a_server_behind_all_slots_goes_after_the_last_answer() {
    let (dir, port) = (install_dir(), free_port());
    let file = write_file(dir.path(), "app.js", &SLOW.replace("process.env.PORT_OF_APP", &port.to_string()));
    let upstream = format!("127.0.0.1:{port}");
    for verb in ["stop", "TERM"] {
        let mut daemon = Daemon::start(&["-i", "2", "-u", &upstream, "--", "node", file.to_str().unwrap()]);
        daemon.wait_online(2);
        let clients: Vec<_> = (0..4).map(|_| ask(daemon.port)).collect();
        eventually("they are open", seconds(10), || (daemon.total("open") == 4).then_some(()));
        if verb == "stop" {
            let output = roundsman().arg("stop").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
            assert!(output.status.success(), "{}", daemon.log());
            whole(clients, verb, &daemon.log());
            assert_eq!(daemon.stop().code(), 0);
        } else {
            assert_eq!(daemon.stop().code(), 0);
            whole(clients, verb, &daemon.log());
        }
    }
}

#[test]
fn a_second_signal_does_not_wait_for_answers() {
    let mut app = App::start("node", "app.js", SLOW, &["-i", "2", "--env", "ANSWERS_AFTER=5000"]).online(2);
    let (pids, client) = (app.daemon.workers(), ask(app.port));
    app.says("asked");
    app.daemon.signal(Signal::SIGTERM);
    app.daemon.wait_for("draining");
    // Past the moment (250 ms) in which the same signal twice counts once.
    std::thread::sleep(millis(300));
    app.daemon.signal(Signal::SIGTERM);
    let end = app.daemon.finish(seconds(4));
    assert_eq!(end.code(), 128 + Signal::SIGTERM as i32, "{}", end.log);
    cut(client);
    eventually("nothing is left", seconds(5), || pids.iter().all(|&pid| gone(pid)).then_some(()));
}

#[test]
fn under_none_a_worker_of_nodes_cluster_finishes_too() {
    let mut app = App::start("node", "app.js", SLOW, &["-p", "none", "--min-uptime", "100ms"]).online(2);
    for stop in [false, true] {
        let asked = app.out().matches("asked").count();
        let clients: Vec<_> = (0..4).map(|_| ask(app.port)).collect();
        app.says_times("asked", asked + 4);
        match stop {
            false => drop(app.reload()),
            true => assert_eq!(app.daemon.stop().code(), 0),
        }
        whole(clients, if stop { "stop" } else { "reload" }, &app.daemon.log());
    }
}

//! Programs that were written for Node's cluster or PM2 run unmodified: messages, identity, readiness, graceful ends.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::protocols;
use crate::support::{
    App, Daemon, answers, eventually, free_port, get, install_dir, millis, read_all, roundsman, seconds, servers,
    write_file,
};

/// The plainest of all cluster scripts.
const FORKS: &str = "
const cluster = require('cluster'), http = require('http'), os = require('os');
if (cluster.isMaster) {
  console.log('THE MASTER RUNS');
  os.cpus().forEach(() => cluster.fork());
  cluster.on('exit', () => cluster.fork());
} else {
  http.createServer((request, response) => {
    response.end(`worker ${cluster.worker.id} slot ${process.env.ROUNDSMAN_SLOT} ${request.socket.remotePort}`);
  }).listen(process.env.PORT_OF_APP, () => console.log(`Worker ${cluster.worker.id} listens`));
}";

/// A master that replaces dead workers and passes SIGTERM on, and requires an Express app in its workers.
const MANAGES: &str = "
const cluster = require('cluster');
const workers = {};
function spawn() { const worker = cluster.fork(); workers[worker.id] = worker; return worker }
if (cluster.isPrimary !== undefined ? cluster.isPrimary : cluster.isMaster) {
  console.log('THE MASTER RUNS');
  for (let n = 0; n < 2; n++) spawn();
  cluster.on('exit', (worker) => { delete workers[worker.id]; spawn() });
  process.on('SIGTERM', () => { for (const id in workers) workers[id].kill('SIGTERM') });
} else {
  require('./express-app');
}";

const EXPRESS: &str = "
const app = require('express')(), cluster = require('cluster');
app.get('/', (request, response) => response.send(`worker ${cluster.worker.id} slot ${process.env.ROUNDSMAN_SLOT}`));
app.get('/heavy', (request, response) => {
  console.log('heavy begins'); const end = Date.now() + 400; while (Date.now() < end); response.send('done')
});
const server = app.listen(process.env.PORT_OF_APP, () => { if (process.send) process.send('ready') });
process.on('SIGTERM', () => { console.log('SIGTERM'); server.close(() => process.exit(0)) });";

/// Requests by turns of both slots, identity, nothing of the master's branch; a reload and a stop that cut nothing.
fn serves_and_reloads(app: &App, what: &str) {
    // Right after its start a worker may be passed over for a moment on a busy machine.
    eventually(&format!("{what}: turns of both"), seconds(5), || {
        let answers: Vec<String> = (0..20).map(|_| get(app.port).unwrap()).collect();
        let of = |slot: usize| {
            answers.iter().filter(|text| text.starts_with(&format!("worker {} slot {slot}", slot + 1))).count()
        };
        assert_eq!(of(0) + of(1), 20, "{what}: {answers:?}");
        (of(0) == 10).then_some(())
    });
    assert!(!app.out().contains("THE MASTER RUNS"), "{what}: {}", app.out());
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| app.reload());
        while !reload.is_finished() {
            assert!(get(app.port).unwrap().starts_with("worker "), "{what}");
        }
    });
    assert!(begin.elapsed() < seconds(10), "{what}: {:?}", begin.elapsed());
}

/// What runs under every version of Node.
pub fn run_programs(node: &str) {
    let dir = install_dir();
    write_file(dir.path(), "forks.js", FORKS);
    let mut app = App::in_dir(dir, node, "forks.js", &["--min-uptime", "200ms"]).online(2);
    serves_and_reloads(&app, "forks");
    assert_eq!(app.daemon.stop().code(), 0);

    let dir = install_dir();
    write_file(dir.path(), "manages.js", MANAGES);
    write_file(dir.path(), "express-app.js", EXPRESS);
    let mut app = App::in_dir(dir, node, "manages.js", &["--wait-ready", "--min-uptime", "200ms"]).online(2);
    serves_and_reloads(&app, "manages");
    // One blocks its loop; nobody else waits for it.
    let port = app.port;
    let mut heavy = TcpStream::connect(("127.0.0.1", port)).unwrap();
    heavy.write_all(b"GET /heavy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    // What it had received before that waits for it.
    app.says("heavy begins");
    let begin = std::time::Instant::now();
    (0..20).for_each(|_| drop(get(port).unwrap()));
    assert!(begin.elapsed() < millis(300), "{:?}", begin.elapsed());
    assert!(String::from_utf8_lossy(&read_all(&mut heavy).unwrap()).ends_with("done"));
    assert_eq!(app.daemon.stop().code(), 0);
    protocols::speaks_all_protocols(node);
    protocols::listens_on_everything(node);
    protocols::resumes_tls_sessions(node);
    talks(node);
}

#[test]
fn scripts_with_their_own_cluster_code_are_workers() {
    run_programs("node");
}

/// Between workers, to us, and from us.
fn talks(node: &str) {
    let source = "
const slot = process.env.ROUNDSMAN_SLOT;
process.on('message', message => console.log(`${slot} got ${JSON.stringify(message)}`));
require('http').createServer((request, response) => response.end('ok')).listen(process.env.PORT_OF_APP, () => {
  process.send({ type: 'hello', slot });
  setTimeout(() => {
    if (slot === '0') process.send({ type: 'broadcast', data: { news: [1, 'zwei'] } });
    if (slot === '1') process.send({ type: 'to', slot: 2, data: 'only you' });
  }, 700);
});";
    let mut app = App::start(node, "app.js", source, &["-i", "3"]).online(3);
    let out = app.says_times("got", 3);
    for wanted in [
        r#"1 got {"type":"broadcast","from":0,"data":{"news":[1,"zwei"]}}"#,
        r#"2 got {"type":"broadcast","from":0,"data":{"news":[1,"zwei"]}}"#,
        r#"2 got {"type":"to","from":1,"data":"only you"}"#,
    ] {
        assert!(out.contains(wanted), "{wanted} in {out}");
    }
    assert!(!out.contains("0 got"), "{out}");
    let (code, said) = app.ask(&["send", "app/1", r#"{"a": [1]}"#]);
    assert!(code == 0 && said.contains("sent to 1 worker"), "{said}");
    app.says(r#"1 got {"a":[1]}"#);
    let (code, said) = app.ask(&["send", "\"all\""]);
    assert!(code == 0 && said.contains("sent to 3 workers"), "{said}");
    app.says_times("got \"all\"", 3);
    let (_, said) = app.ask(&["messages"]);
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [0, 1, 2].map(|n| format!(r#"app/{n} | {{"type":"hello","slot":"{n}"}}"#)));
    let (_, said) = app.ask(&["messages", "app/2", "--json", "-n", "1"]);
    let one: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((one["slot"].as_u64(), one["stream"].as_str()), (Some(2), Some("message")));
    let (code, said) = app.ask(&["send", "hello"]);
    assert!(code == 2 && said.contains(r#"'"hello"'"#), "{said}");
    assert_eq!(app.daemon.stop().code(), 0);
}

#[test]
fn messages_can_be_followed() {
    let source = "
require('http').createServer((request, response) => { process.send({ url: request.url }); response.end('ok') })
  .listen(process.env.PORT_OF_APP);";
    let app = App::start("node", "app.js", source, &["-i", "1"]).online(1);
    let mut command = roundsman();
    command.args(["messages", "-f", "-n", "0"]).env("ROUNDSMAN_CONTROL", app.daemon.control()).stdout(Stdio::piped());
    let mut follower = crate::support::Killed::spawn(&mut command);
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    // It follows once it has its first line.
    let first = std::thread::scope(|scope| {
        let first = scope.spawn(|| lines.next().unwrap());
        while !first.is_finished() {
            get(app.port).unwrap();
            std::thread::sleep(millis(10));
        }
        first.join().unwrap()
    });
    assert_eq!(first, r#"app/0 | {"url":"/"}"#);
}

#[test]
fn esm_two_ports_and_an_inspector_for_each() {
    let source = "
import http from 'node:http';
import cluster from 'node:cluster';
const answer = (request, response) => response.end(`worker ${cluster.worker.id} slot ${process.env.ROUNDSMAN_SLOT}`);
http.createServer(answer).listen(process.env.PORT_OF_APP);
http.createServer(answer).listen(Number(process.env.SECOND));
";
    let second = free_port();
    let base = free_port();
    // Its neighbours are the other workers'.
    let _others: [u16; 4] = std::array::from_fn(|_| free_port());
    let dir = install_dir();
    write_file(dir.path(), "app.mjs", source);
    let mut command = roundsman();
    let port = free_port();
    command.current_dir(dir.path()).env("PORT_OF_APP", port.to_string()).env("SECOND", second.to_string());
    let inspect = format!("--inspect=127.0.0.1:{base}");
    let mut daemon = Daemon::launch(
        command,
        &["-i", "2", "--out", "out.log", "--error", "err.log", "--", "node", &inspect, "app.mjs"],
        port,
    );
    daemon.wait_online(2);
    for port in [port, second] {
        answers(&["worker 1 slot 0", "worker 2 slot 1"].map(str::to_owned).into(), || get(port).unwrap());
    }
    let err = eventually("two inspectors", seconds(10), || {
        let text = std::fs::read_to_string(dir.path().join("err.log")).ok()?;
        (text.matches("Debugger listening on").count() == 2).then_some(text)
    });
    assert!(!err.contains("address already in use"), "{err}");
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn plain_and_off_and_what_a_wrapper_starts() {
    let source = "
const cluster = require('cluster');
console.log(`primary ${cluster.isPrimary} send ${typeof process.send}`);
require('http').createServer((request, response) => response.end('ok')).listen(process.env.PORT_OF_APP);";
    for (mode, wanted) in [
        ("auto", "primary false send function"),
        ("plain", "primary true send function"),
        ("off", "primary true send undefined"),
    ] {
        let app = App::start("node", "app.js", source, &["-i", "1", "--node-ipc", mode]).online(1);
        app.says(wanted);
        assert_eq!(get(app.port).unwrap(), "ok");
    }
    // npm is a program in Node, too: the channel is not for it, nor for what it starts.
    let dir = install_dir();
    write_file(dir.path(), "app.js", source);
    write_file(dir.path(), "package.json", r#"{"scripts": {"start": "node app.js"}}"#);
    let app = App::in_dir(dir, "npm", "start", &["-i", "1"]).online(1);
    app.says("primary true send undefined");
    // By relay there is no cluster, and messages.
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let relayed = source.replace("process.env.PORT_OF_APP", "process.env.PORT");
    let app = App::start("node", "app.js", &relayed, &["-i", "1", "-l", &listen, "--via", "relay"]).online(1);
    app.says("primary true send function");
}

#[test]
fn who_waits_for_a_server_that_is_closed_holds_up_nobody_else() {
    let source = "
const http = require('http');
const second = http.createServer((request, response) => response.end('second')).listen(Number(process.env.SECOND));
http.createServer((request, response) => {
  if (request.url === '/close') second.close();
  if (request.url === '/open') second.listen(Number(process.env.SECOND));
  response.end('first');
}).listen(process.env.PORT_OF_APP);";
    let second = free_port();
    let variable = format!("SECOND={second}");
    let app = App::start("node", "app.js", source, &["-i", "1", "--env", &variable]).online(1);
    let ask = |path: &str| {
        let url = format!("http://127.0.0.1:{}{path}", app.port);
        assert!(Command::new("curl").args(["-sS", "-o", "/dev/null", &url]).status().unwrap().success());
    };
    eventually("both listen", seconds(5), || get(second).ok());
    ask("/close");
    let waiting = std::thread::spawn(move || get(second).unwrap());
    eventually("it is held", seconds(10), || (app.daemon.ls()["services"][0]["held"] == 1).then_some(()));
    let begin = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(get(app.port).unwrap(), "first");
    }
    assert!(begin.elapsed() < seconds(5), "{:?}", begin.elapsed());
    assert!(!waiting.is_finished());
    ask("/open");
    assert_eq!(waiting.join().unwrap(), "second", "it waited for the server to come back");
}

#[test]
fn an_app_port_behind_another_is_the_one_that_node_asked_for() {
    let source = "
require('http').createServer((request, response) => response.end(`worker ${require('cluster').isWorker}`)).listen(process.env.OWN);";
    for (policy, cluster) in [("rr", true), ("none", false)] {
        let (port, own) = (free_port(), free_port());
        let (listen, own) = (format!("127.0.0.1:{port}={own}"), format!("OWN={own}"));
        let app = App::start("node", "app.js", source, &["-l", &listen, "-p", policy, "--env", &own]).online(2);
        for _ in 0..6 {
            assert_eq!(get(port).unwrap(), format!("worker {cluster}"), "{policy}");
        }
        drop(app);
    }
}

#[test]
fn one_that_listens_on_a_unix_path_alone_is_online_and_a_script_by_its_first_line_is_a_worker() {
    use std::os::unix::fs::PermissionsExt;
    let source = "#!/usr/bin/env node
require('net').createServer(c => c.end(`worker ${require('cluster').worker.id}`)).listen('app.sock');";
    let dir = install_dir();
    let script = write_file(dir.path(), "server", source);
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut app = App::in_dir(dir, "./server", "argument", &[]).online(2);
    let read = || {
        let stream = std::os::unix::net::UnixStream::connect(app.dir.path().join("app.sock"));
        String::from_utf8(read_all(&mut stream.unwrap()).unwrap()).unwrap()
    };
    assert!((0..10).all(|_| read().starts_with("worker ")));
    app.reload();
    assert!(read().starts_with("worker "));
    assert_eq!(app.daemon.stop().code(), 0);
}

/// Every version that people run.
#[test]
#[ignore = "tests/run --all"]
fn the_same_with_every_version_of_node() {
    for version in ["node16", "node18", "node22", "node24"] {
        let node = servers().join("node_modules").join(version).join("bin/node");
        assert!(node.is_file(), "{}", node.display());
        run_programs(node.to_str().unwrap());
    }
}

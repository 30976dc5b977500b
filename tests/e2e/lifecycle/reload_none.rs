//! Policy none, where servers accept by themselves: servers that end at once when they are told to are replaced, and nobody
//! notices. However a server waits for its connections.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use super::reload::verb;
use crate::support::recycle::{Connections, served_meanwhile, wait_recycled};
use crate::support::{Daemon, free_port, install_dir, roundsman, servers, unsaid, write_file};

/// A listening socket, and an answer after 2 ms.
const HEAD: &str = "
import asyncio, os, select, socket, threading, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(1000)
ANSWER = b'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\nok\\n'
def serve(c):
    c.setblocking(True); c.recv(4096); time.sleep(.002); c.sendall(ANSWER); c.close()
def accept_all():
    while True: serve(s.accept()[0])
def accept_ready():
    while True:
        try: serve(s.accept()[0])
        except (BlockingIOError, ConnectionAbortedError): return
";

/// Ways to wait for a connection.
const WAYS: [(&str, &str); 7] = [
    ("accept", "accept_all()"),
    ("threads", "for n in range(4): threading.Thread(target=accept_all).start()"),
    ("forks", "[os.fork() and 0 or accept_all() for n in range(3)] if os.fork() else accept_all()"),
    ("select", "s.setblocking(False)\nwhile True: select.select([s], [], []); accept_ready()"),
    (
        "blocking after poll",
        "p = select.poll(); p.register(s, select.POLLIN)\nwhile True:\n    p.poll()\n    try: serve(s.accept()[0])\n    except ConnectionAbortedError: pass",
    ),
    (
        "edges",
        "s.setblocking(False)\ne = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLET)\nwhile True: e.poll(); accept_ready()",
    ),
    (
        "asyncio",
        "async def one(r, w):\n    await r.read(4096); await asyncio.sleep(.002); w.write(ANSWER); w.close()\nasync def main(): await asyncio.start_server(one, sock=s); await asyncio.sleep(3600)\nasyncio.run(main())",
    ),
];

fn launch(dir: &Path, via: &str, more: &[&str], command: &[&str]) -> Daemon {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut all = vec!["-n", "web", "-l", &listen, "-i", "2", "-p", "none", "--via", via, "--min-uptime", "50ms"];
    all.extend(more);
    all.push("--");
    all.extend(command);
    let mut program = roundsman();
    program.current_dir(dir);
    let daemon = Daemon::launch(program, &all, port);
    daemon.wait_online(2);
    daemon
}

/// Nothing is lost in so many reloads, and while as many workers are recycled.
fn nothing_is_lost(dir: &Path, (via, name): (&str, &str), command: &[&str], (reloads, recycled): (usize, u64)) {
    let daemon = launch(dir, via, &[], command);
    let served = served_meanwhile(daemon.port, 8, Connections::Short, || {
        for round in 0..reloads {
            let output = verb(&daemon, &["reload"]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name} {via} {round}: {text}");
        }
    });
    assert!(served > 10, "{name} {via}: {served}");
    unsaid(&daemon.log(), &["time is up"]);
    drop(daemon);
    if recycled > 0 {
        let daemon = launch(dir, via, &["--max-age", "300ms"], command);
        served_meanwhile(daemon.port, 8, Connections::Short, || wait_recycled(&daemon, recycled));
        assert_eq!(daemon.total("restarts"), 0, "{name} {via}");
    }
}

fn by_these_ways(is_meant: impl Fn(&str) -> bool, rounds: (usize, u64)) {
    let dir = install_dir();
    std::thread::scope(|scope| {
        for (name, way) in WAYS.into_iter().filter(|(name, _)| is_meant(name)) {
            let script = write_file(dir.path(), &format!("by {name}.py"), &format!("{HEAD}{way}\n"));
            let dir = dir.path();
            scope.spawn(move || nothing_is_lost(dir, ("direct", name), &["python3", script.to_str().unwrap()], rounds));
        }
    });
}

#[test]
fn servers_that_accept_by_themselves_are_replaced_and_lose_nothing() {
    by_these_ways(|way| ["forks", "blocking after poll", "edges"].contains(&way), (2, 0));
}

#[test]
#[ignore = "takes a minute; tests/run --all"]
fn servers_that_accept_by_themselves_are_replaced_and_lose_nothing_however_they_wait() {
    by_these_ways(|_| true, (5, 6));
}

const WSGI: &str = "def app(env, start):\n    start('200 OK', [('Content-Length', '3')])\n    return [b'ok\\n']\n";
const NODE: &str = "require('http').createServer((q, r) => setTimeout(() => r.end('ok\\n'), 2))
    .listen(process.env.PORT, '127.0.0.1')";

fn real_servers(is_meant: impl Fn(&str, &str) -> bool, rounds: (usize, u64)) {
    let dir = install_dir();
    write_file(dir.path(), "app.py", WSGI);
    let script = write_file(dir.path(), "app.js", NODE);
    let gunicorn = servers().join("venv/bin/gunicorn");
    let line = format!("exec {} -b 127.0.0.1:$PORT --log-level warning app:app", gunicorn.display());
    let commands = [("gunicorn", vec!["sh", "-c", &line]), ("node", vec!["node", script.to_str().unwrap()])];
    std::thread::scope(|scope| {
        for (name, command) in &commands {
            for via in ["direct", "relay"].into_iter().filter(|via| is_meant(name, via)) {
                let dir = dir.path();
                scope.spawn(move || nothing_is_lost(dir, (via, name), command, rounds));
            }
        }
    });
}

#[test]
fn gunicorn_under_none_is_replaced_and_loses_nothing() {
    real_servers(|name, via| name == "gunicorn" && via == "direct", (1, 2));
}

#[test]
#[ignore = "takes a minute; tests/run --all"]
fn real_servers_under_none_are_replaced_and_lose_nothing_by_either_delivery() {
    real_servers(|_, _| true, (4, 6));
}

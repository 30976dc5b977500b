//! Nobody waits behind a busy worker while another is free, although servers accept what they cannot serve yet.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;

use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, install_dir, read_all, seconds, servers, write_file};

/// One request at a time, each answered with the process's id; `/slow` only once the file `go` exists.
const WSGI: &str = r#"
import os, time
def app(environ, start):
    while environ["PATH_INFO"] == "/slow" and not os.path.exists("go"):
        time.sleep(0.01)
    start("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
    return [str(os.getpid()).encode()]
"#;

/// Accepts at once, serves one after the other.
const EAGER: &str = r#"
import os, queue, socket, sys, threading, time
waiting = queue.Queue()
def serve():
    while True:
        client = waiting.get()
        slow = b"/slow" in client.recv(4096)
        while slow and not os.path.exists("go"):
            time.sleep(0.01)
        client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d" % os.getpid())
        client.close()
threading.Thread(target=serve, daemon=True).start()
server = socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or sys.argv[1])), backlog=512)
while True:
    waiting.put(server.accept()[0])
"#;

const WORKERS: usize = 6;
const FAST: usize = 4;
const ANSWERS: usize = 240;

/// One client on the slow path, four at a time on the fast one: with a worker free at any time, the fast ones are not given to
/// the slow one's worker, where each would wait as long as the test does.
fn fast_beside_slow(dir: &Path, daemon: &Daemon, port: u16) {
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    eventually("the slow request is received", seconds(20), || (daemon.total("open") == 1).then_some(()));
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..FAST {
            scope.spawn(|| {
                while answers.lock().unwrap().len() < ANSWERS {
                    let answer = get(port).unwrap();
                    answers.lock().unwrap().push(answer);
                }
            });
        }
        let enough = || (answers.lock().unwrap().len() >= ANSWERS).then_some(());
        eventually("the fast ones are answered", seconds(15), enough);
        std::fs::write(dir.join("go"), "").unwrap();
    });
    let answer = String::from_utf8(read_all(&mut slow).unwrap()).unwrap();
    let own = answer.rsplit("\r\n").next().unwrap();
    let answers = answers.into_inner().unwrap();
    let others: BTreeSet<_> = answers.iter().filter(|answer| *answer != own).collect();
    assert_eq!(others.len(), WORKERS - 1, "all others had their turns: {others:?}");
    // On a busy machine all others can be late at the same moment.
    let waited = answers.len() - answers.iter().filter(|answer| *answer != own).count();
    assert!(waited <= FAST / 2, "{waited} fast requests waited for {own}");
}

fn behind(via: &str, command: impl Fn(&Path, u16) -> Vec<String>) {
    let (dir, port) = (install_dir(), free_port());
    let listen = format!("127.0.0.1:{port}");
    let mut more = vec!["--via", via, "--stall-timeout", "5s", "--cwd", dir.path().to_str().unwrap()];
    if via == "relay" {
        more.extend(["-l", &listen]);
    }
    let daemon = start_with(port, &WORKERS.to_string(), &more, &command(dir.path(), port));
    fast_beside_slow(dir.path(), &daemon, port);
}

fn eager(dir: &Path, port: u16) -> Vec<String> {
    let script = write_file(dir, "eager.py", EAGER);
    vec!["python3".to_owned(), script.to_str().unwrap().to_owned(), port.to_string()]
}

#[test]
fn no_fast_request_waits_for_a_slow_one_in_a_server_that_accepts_at_once() {
    behind("direct", eager);
}

#[test]
fn no_fast_request_waits_for_a_slow_one_by_relay() {
    behind("relay", eager);
}

#[test]
fn no_fast_request_waits_for_a_slow_one_in_gunicorn_with_threads() {
    behind("direct", |dir, port| {
        write_file(dir, "app.py", WSGI);
        let program = servers().join("venv/bin/gunicorn").to_str().unwrap().to_owned();
        let bind = format!("127.0.0.1:{port}");
        [&program, "-b", &bind, "-w", "1", "-k", "gthread", "--threads", "1", "app:app"].map(str::to_owned).to_vec()
    });
}

//! Without `-l`: a listener that a server closes goes, unless it is opened again at once or the server restarts.
//! Mostly waits: tests/run runs it beside others.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, http_get, install_dir, millis, seconds, write_file};

const LISTENS: &str = "
import os, socket, sys, threading, time
def listens(host, port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((host, port)); s.listen(64)
    return s
def serve(s, body=b'ok', times=-1):
    while times:
        times -= 1
        try: c, _ = s.accept()
        except OSError: return
        c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + body); c.close()
def serve_for(s, seconds):
    s.settimeout(0.05); end = time.time() + seconds
    while time.time() < end: serve(s, times=1)
def say(what):
    with open(sys.argv[2], 'a') as f: f.write(what + '\\n')
port = int(sys.argv[1])
";

fn start(dir: &Path, instances: &str, script: &str) -> (Daemon, std::path::PathBuf) {
    let port = free_port();
    let said = dir.join("said");
    let script = write_file(dir, "server.py", &format!("{LISTENS}{script}"));
    let command = ["python3", script.to_str().unwrap(), &port.to_string(), said.to_str().unwrap()].map(str::to_owned);
    (start_with(port, instances, &["--via", "direct", "--min-uptime", "0s"], &command), said)
}

#[track_caller]
fn wait_for(said: &Path, what: &str) {
    eventually(what, seconds(60), || std::fs::read_to_string(said).ok()?.contains(what).then_some(()));
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn listeners(daemon: &Daemon) -> Vec<String> {
    let all = daemon.ls()["services"][0]["listen"].as_array().unwrap().clone();
    all.iter().map(|listener| listener["addr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn ports_that_are_opened_and_closed_leave_nothing() {
    // Ports for data, as of passive FTP: each is opened, listened on or not, and closed again.
    let dir = install_dir();
    let (daemon, said) = start(
        dir.path(),
        "1",
        "
main = listens('127.0.0.1', port)
threading.Thread(target=serve, args=(main,)).start()
while not os.path.exists(sys.argv[2] + '.go'): time.sleep(0.01)
done = 0
for port in range(20000, 21500):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Somebody else on this machine may have one of them.
    try:
        s.bind(('127.7.7.7', port))
        if port % 3: s.listen()
        done += 1
    except OSError: pass
    s.close()
say('enough' if done > 1400 else 'only %d' % done)
",
    );
    let before = descriptors(&daemon);
    std::fs::write(dir.path().join("said.go"), "").unwrap();
    wait_for(&said, "enough");
    eventually("only the one that is open is left", seconds(20), || (listeners(&daemon).len() == 1).then_some(()));
    eventually("no descriptors are left", seconds(20), || (descriptors(&daemon) <= before + 5).then_some(()));
    for port in [20000, 20001, 21499] {
        let refused = TcpStream::connect_timeout(&SocketAddr::from(([127, 7, 7, 7], port)), seconds(2));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(get(daemon.port).unwrap(), "ok");
}

#[test]
fn a_server_that_goes_on_elsewhere_is_followed() {
    let dir = install_dir();
    let (daemon, said) = start(
        dir.path(),
        "1",
        "
first = listens('127.0.0.1', port)
first.close()
second = listens('0.0.0.0', port)
second.close()
unheard = socket.socket(); unheard.bind(('127.0.0.1', port)); unheard.close()
third = listens('0.0.0.0', port)
say('follows')
serve(third, b'third')
",
    );
    wait_for(&said, "follows");
    assert_eq!(get(daemon.port).unwrap(), "third");
    assert_eq!(listeners(&daemon), [format!("0.0.0.0:{}", daemon.port)]);
}

#[test]
fn clients_of_a_port_that_a_living_server_closed_are_refused() {
    let dir = install_dir();
    let (daemon, said) = start(
        dir.path(),
        "2",
        "
main, other = listens('127.0.0.1', port), listens('127.0.0.2', port)
threading.Thread(target=serve, args=(main,)).start()
while not os.path.exists(sys.argv[2] + '.go'): time.sleep(0.01)
if os.environ['ROUNDSMAN_SLOT'] == '0': other.close(); say('closed')
else:
    while not os.path.exists(sys.argv[2] + '.go2'): serve(other, b'the other', 1)
    other.close()
    say('closed, too')
",
    );
    let other = SocketAddr::from(([127, 0, 0, 2], daemon.port));
    std::fs::write(dir.path().join("said.go"), "").unwrap();
    wait_for(&said, "closed");
    // The other worker has it still.
    let end = Instant::now() + millis(2500);
    while Instant::now() < end {
        assert_eq!(http_get(&mut TcpStream::connect(other).unwrap()).unwrap(), "the other");
        std::thread::sleep(millis(50));
    }
    std::fs::write(dir.path().join("said.go2"), "").unwrap();
    assert_eq!(http_get(&mut TcpStream::connect(other).unwrap()).unwrap(), "the other");
    wait_for(&said, "closed, too");
    // Whoever comes in the second in which it may be opened again learns it then, not at the end of the queue timeout.
    if let Ok(mut early) = TcpStream::connect(other) {
        let begin = Instant::now();
        early.set_read_timeout(Some(seconds(20))).unwrap();
        let _ = early.read(&mut [0]);
        assert!(begin.elapsed() < seconds(10), "{:?}", begin.elapsed());
    }
    eventually("refused", seconds(10), || TcpStream::connect(other).is_err().then_some(()));
    assert_eq!(get(daemon.port).unwrap(), "ok");
}

#[test]
fn one_that_closes_to_restart_refuses_nobody() {
    // In one process, and by its end.
    let scripts = [
        "
while True:
    s = listens('127.0.0.1', port); serve_for(s, 0.2); s.close(); time.sleep(0.15)
",
        "
s = listens('127.0.0.1', port); serve_for(s, 0.3); s.close(); time.sleep(0.15); os._exit(0)
",
    ];
    for script in scripts {
        let dir = install_dir();
        let (daemon, _) = start(dir.path(), "1", script);
        let end = Instant::now() + seconds(4);
        let (mut longest, mut late) = (Duration::ZERO, 0);
        while Instant::now() < end {
            let begin = Instant::now();
            match get(daemon.port) {
                Ok(body) => assert_eq!(body, "ok"),
                // On a machine so busy that the server needed more than its second.
                Err(error) => {
                    late += 1;
                    assert!(late <= 2 && daemon.log().contains("no longer listening"), "{error}, {late} times");
                }
            }
            longest = longest.max(begin.elapsed());
        }
        // Some of them came while it was closed.
        assert!(longest > millis(100), "{longest:?}");
    }
}

#[test]
fn programs_that_look_for_a_free_port_find_it() {
    // As get-port, detect-port and portfinder do: every address of the port is opened and closed in turn.
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "picks.js",
        "
const fs = require('fs'), net = require('net'), [port, out] = [Number(process.argv[2]), process.argv[3]];
const attempt = host => new Promise((resolve, reject) => {
  const server = net.createServer().on('error', reject);
  server.listen({ port, host }, () => server.close(() => resolve()));
});
(async () => {
  for (const host of [undefined, '0.0.0.0', '127.0.0.1', undefined, '127.0.0.1', '0.0.0.0']) {
    await attempt(host).catch(error => fs.appendFileSync(out, `${host} ${error.code}\\n`));
  }
  require('http').createServer((request, response) => response.end('found')).listen(port, '127.0.0.1');
})();
",
    );
    for node_ipc in ["off", "cluster"] {
        let (port, said) = (free_port(), dir.path().join(node_ipc));
        let command = ["node", script.to_str().unwrap(), &port.to_string(), said.to_str().unwrap()].map(str::to_owned);
        let daemon = start_with(port, "1", &["--via", "direct", "--node-ipc", node_ipc], &command);
        eventually("an answer", seconds(20), || get(port).ok().filter(|body| body == "found"));
        assert!(!said.exists(), "{node_ipc}: {}", std::fs::read_to_string(&said).unwrap());
        eventually("only one is left", seconds(10), || {
            (listeners(&daemon) == [format!("127.0.0.1:{port}")]).then_some(())
        });
    }
}

#[test]
fn a_server_that_opens_ports_for_ever_maps_nothing_more() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(
        dir.path(),
        "again.py",
        "
import socket, sys
def new(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', port)); s.listen()
    return s
def count(): return sum(1 for _ in open('/proc/self/maps'))
first, before = new(int(sys.argv[1])), count()
for _ in range(50): new(int(sys.argv[2])).close()
print('grown by', (count() - before) // 50, file=sys.stderr, flush=True)
while True: first.accept()[0].close()
",
    );
    let (text, other) = (port.to_string(), free_port().to_string());
    let command = ["-i", "1", "--via", "direct", "--", "python3", script.to_str().unwrap(), &text, &other];
    let daemon = Daemon::launch(crate::support::roundsman(), &command, port);
    daemon.wait_for("grown by 0");
}

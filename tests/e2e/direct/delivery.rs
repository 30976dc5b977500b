//! Direct delivery: unmodified servers get the accepted sockets themselves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::{ask, start};
use crate::support::table::{NODE, PYTHON, table};
use crate::support::{
    Daemon, Process, c_server, eventually, free_port, freeze, get, install_dir, millis, roundsman, seconds, source,
    static_server, write_file,
};

#[test]
fn children_that_close_what_they_inherit_end_nothing() {
    // Python starts programs by vfork and closes all descriptors in the child, in its parent's memory.
    let (dir, port) = (install_dir(), free_port());
    let script = PYTHON
        .replace("        body =", "        __import__('subprocess').run(['true'], close_fds=True)\n        body =");
    let script = write_file(dir.path(), "spawns.py", &script);
    let command = ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let daemon = start(port, "2", &command);
    assert!((0..60).all(|_| ask(port).1));
    let counts: Vec<_> = daemon.slots().iter().map(|slot| slot["connections"].as_u64().unwrap()).collect();
    assert!(counts.iter().all(|&count| count >= 25), "{counts:?}");
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn redis_works_and_counts() {
    let (dir, port) = (install_dir(), free_port());
    let command = [
        "redis-server",
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        "--dir",
        dir.path().to_str().unwrap(),
    ]
    .map(str::to_owned);
    let mut daemon = start(port, "1", &command);
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-n", "20000", "-c", "50", "-t", "set,get", "--csv"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn kill_9_under_load_hangs_and_refuses_nobody() {
    let (dir, port) = (install_dir(), free_port());
    let command = table(dir.path(), port).swap_remove(0).command;
    let daemon = start(port, "3", &command);
    let (over, done, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut received = 0;
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    let begin = std::time::Instant::now();
                    if get(port).is_err() {
                        failed.fetch_add(1, SeqCst);
                    }
                    assert!(begin.elapsed() < seconds(10));
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for n in 0..15 {
            let (victim, generation) = eventually("a victim", seconds(20), || {
                let slot = daemon.slots()[n % 3].clone();
                (slot["state"] == "online").then(|| (slot["pid"].as_i64().unwrap() as i32, slot["generation"].clone()))
            });
            freeze(victim);
            received += daemon.slot(n % 3, "open").as_u64().unwrap() as usize;
            kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
            eventually("its successor", seconds(20), || {
                (daemon.slots()[n % 3]["generation"] != generation).then_some(())
            });
        }
        over.store(true, SeqCst);
    });
    let (done, failed) = (done.load(SeqCst), failed.load(SeqCst));
    assert!(done > 500, "{done}");
    // What a server had taken out of its queue but not yet counted may add one for each kill.
    assert!(failed <= received + 15, "{failed} failed, the dead had received {received}");
}

/// Latencies of 400 requests at 200 per second, while one client blocks a process for 300 ms again and again; sorted.
fn beside_a_blocker(port: u16) -> Vec<std::time::Duration> {
    let over = AtomicBool::new(false);
    let took = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.write_all(b"GET /block HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        std::thread::scope(|clients| {
            let begin = std::time::Instant::now();
            for n in 0..400 {
                let due = begin + millis(5 * n);
                std::thread::sleep(due.saturating_duration_since(std::time::Instant::now()));
                // From when it was due, each on its own: one that waits holds up no other.
                clients.spawn(|| {
                    let begin = std::time::Instant::now();
                    get(port).unwrap();
                    took.lock().unwrap().push(begin.elapsed());
                });
            }
        });
        over.store(true, SeqCst);
    });
    let mut took = took.into_inner().unwrap();
    took.sort();
    took
}

#[test]
fn a_blocked_neighbour_delays_nobody_for_long() {
    let (dir, port) = (install_dir(), free_port());
    let command = table(dir.path(), port).swap_remove(0).command;
    let daemon = start(port, "2", &command);
    let ours = beside_a_blocker(port);
    assert!(daemon.total("rescued") > 0);
    drop(daemon);
    // Node's own cluster in the same place.
    let cluster = write_file(
        dir.path(),
        "cluster.js",
        &format!(
            "const c = require('cluster'); if (c.isPrimary) {{ c.fork(); c.fork(); }} else {{ process.argv[2] = 'http'; process.argv[3] = {port}; require('{}'); }}",
            source("app.js")
        ),
    );
    let _cluster = Process::start("node", &[cluster.to_str().unwrap()], port);
    let theirs = beside_a_blocker(port);
    println!("p50/p99: roundsman {:?}/{:?}, cluster {:?}/{:?}", ours[200], ours[396], theirs[200], theirs[396]);
    // Whoever shares a worker with the request that blocks it waits for that (one in each 300 ms); the others do not.
    // A busy machine delays both.
    let limit = millis(20).max(theirs[396] / 5);
    assert!(ours[396] <= limit, "p99 {:?}, Node's cluster {:?}", ours[396], theirs[396]);
}

#[test]
fn the_servers_own_errors_and_options_are_kept() {
    let (dir, port) = (install_dir(), free_port());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = write_file(
        dir.path(),
        "probe.py",
        "
import errno, os, socket, sys, threading
out = open(sys.argv[1], 'a')
def check(what, ok): out.write(('ok ' if ok else 'BAD ') + what + '\\n'); out.flush()
def fails(number, call):
    try: call()
    except OSError as e: return e.errno == number
    return False
busy = socket.socket()
check('bind to a port in use', fails(errno.EADDRINUSE, lambda: busy.bind(('127.0.0.1', int(sys.argv[3])))))
check('bind to a foreign address', fails(errno.EADDRNOTAVAIL, lambda: busy.bind(('192.0.2.1', 4000))))
free = socket.socket(); free.bind(('127.0.0.1', 0)); free.listen()
check('port 0 is the kernel\\'s', free.getsockname()[1] > 0 and free.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.bind(('127.0.0.1', int(sys.argv[2])))
check('getsockname after bind', s.getsockname() == ('127.0.0.1', int(sys.argv[2])))
check('bind twice', fails(errno.EINVAL, lambda: s.bind(('127.0.0.1', int(sys.argv[2])))))
s.listen(100)
check('type', s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM)
check('domain', s.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET)
check('accepts', s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1)
s.setblocking(False)
check('nothing to accept', fails(errno.EAGAIN, s.accept))
s.setblocking(True)
check('accept on no socket', fails(errno.ENOTSOCK, lambda: socket.socket(fileno=os.open('/dev/null', 0)).accept()))
d = s.dup()
c, peer = d.accept()
check('blocking as asked', c.getblocking() and os.get_blocking(c.fileno()))
check('keep-alive inherited', c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1)
check('nodelay inherited', c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1)
check('peer', c.getpeername() == peer and peer[0] == '127.0.0.1')
check('own name', c.getsockname() == ('127.0.0.1', int(sys.argv[2])))
check('not inherited by children', not os.get_inheritable(c.fileno()))
c.sendall(b'bye'); c.close(); d.close()
c, peer = s.accept(); c.sendall(b'again'); c.shutdown(socket.SHUT_RDWR); c.close()
check('done', True)
threading.Event().wait()
",
    );
    let out = dir.path().join("out");
    let busy = taken.local_addr().unwrap().port().to_string();
    let command =
        ["python3", script.to_str().unwrap(), out.to_str().unwrap(), &port.to_string(), &busy].map(str::to_owned);
    let daemon = start(port, "1", &command);
    let read = || {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    eventually("it waits in accept", seconds(5), || {
        std::fs::read_to_string(&out).unwrap().contains("no socket").then_some(())
    });
    assert_eq!(read(), "bye", "the FIN comes at the server's close");
    assert_eq!(read(), "again");
    let text = eventually("all checks", seconds(5), || {
        let text = std::fs::read_to_string(&out).unwrap();
        text.contains("done").then_some(text)
    });
    assert!(!text.contains("BAD"), "{text}");
    assert_eq!(text.lines().count(), 17, "{text}");
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn a_server_at_its_file_limit_gets_emfile_and_nothing_is_lost() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(
        dir.path(),
        "limit.py",
        "
import errno, os, resource, socket, sys, time
s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(100)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
kept, refused = [], 0
while True:
    try: kept.append(s.accept()[0])
    except OSError as e:
        assert e.errno == errno.EMFILE; refused += 1
        for c in kept: c.sendall(b'served'); c.close()
        kept = []
    if len(kept) and refused: kept.pop().sendall(b'served')
",
    );
    let command = ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let _daemon = start(port, "1", &command);
    let mut clients: Vec<_> = (0..60).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for client in &mut clients {
        client.set_read_timeout(Some(seconds(10))).unwrap();
        let mut word = [0; 6];
        client.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"served");
    }
}

#[test]
fn what_cannot_be_preloaded_and_who_is_none_of_ours_is_refused() {
    let dir = install_dir();
    let refused = |arguments: &[&str]| {
        let output = roundsman().args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let program = dir.path().join("setuid");
    std::fs::copy(c_server(), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let (code, text) = refused(&["--via", "direct", "--", program.to_str().unwrap()]);
    assert!(code == 2 && text.contains("setuid"), "{text}");
    // What would take a relay worker needs an address.
    let kept = ["--via", "direct", "--access-log", "-", "--", static_server()];
    let (code, text) = refused(&kept);
    assert!(code == 2 && text.contains("linked statically") && text.contains("--access-log"), "{text}");
    let (code, text) = refused(&["--via", "direct", "-u", "127.0.0.1:1"]);
    assert!(code == 2 && text.contains("delivers to a command, not to --upstream"), "{text}");

    // A stranger at the attach socket: garbage, a wrong token.
    let port = free_port();
    let command = table(dir.path(), port).swap_remove(0).command;
    let daemon = start(port, "1", &command);
    let environment = std::fs::read(format!("/proc/{}/environ", daemon.workers()[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let place = environment.split('\0').find_map(|entry| entry.strip_prefix("ROUNDSMAN_ATTACH=")).unwrap();
    let name = place.split(':').next().unwrap();
    let stranger = format!(
        "
import socket
def send(bytes):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('\\0{name}'); s.send(bytes); s.settimeout(5)
    try: assert s.recv(100) == b'', bytes
    except ConnectionResetError: pass
send(b'garbage'); send(b'x' * 60); send(b'\\x01\\x00\\x02\\x00' + bytes(52)); send(b'y' * 10000)
"
    );
    let status = Command::new("python3").args(["-c", &stranger]).status().unwrap();
    assert!(status.success());
    daemon.wait_for("nonsense on the attach socket");
    daemon.wait_for("attach refused");
    assert!(ask(port).1);
}

#[test]
fn with_listen_those_ports_are_served_and_others_are_warned_about() {
    let (dir, port, other) = (install_dir(), free_port(), free_port());
    let script = write_file(dir.path(), "app.js", NODE);
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["-l", &listen, "-i", "2", "--via", "direct", "--", "node", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    daemon.wait_online(2);
    assert!((0..10).all(|_| ask(port).1));
    assert_eq!(daemon.ls()["services"][0]["listen"][0]["from"], "flag");
    let fixed = write_file(dir.path(), "fixed.py", &PYTHON.replace("os.environ.get('PORT') or ", ""));
    let (listen, other) = (format!("127.0.0.1:{}", free_port()), other.to_string());
    let arguments = ["-l", &listen, "-i", "1", "--via", "direct", "--", "python3", fixed.to_str().unwrap(), &other];
    let daemon = Daemon::launch(roundsman(), &arguments, 0);
    daemon.wait_for(&format!("worker 0 listens on :{other}, which no -l serves"));
}

#[test]
fn when_the_master_dies_the_servers_get_their_stop_signal_and_do_not_spin() {
    let (dir, port) = (install_dir(), free_port());
    let command = table(dir.path(), port).swap_remove(0).command;
    let daemon = start(port, "2", &command);
    let pids = daemon.workers();
    daemon.signal(Signal::SIGKILL);
    let alive =
        |pid: &&i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("the servers are gone", seconds(2), || pids.iter().find(alive).is_none().then_some(()));
    eventually("the port is free", seconds(2), || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
}

#[test]
fn a_stopped_server_loses_its_queue_and_survives_its_empty_message() {
    let dir = install_dir();
    // One with an event loop, one that polls and accepts blocking, one that waits in accept.
    for at in [0, 1, 4] {
        let port = free_port();
        let crate::support::table::Server { name, command, .. } = table(dir.path(), port).swap_remove(at);
        let daemon = start(port, "2", &command);
        let worker = Pid::from_raw(daemon.workers()[0]);
        freeze(worker.as_raw());
        for _ in 0..20 {
            assert_eq!(ask(port), ("slot 1".to_owned(), true), "{name}");
        }
        assert!(daemon.slot(0, "rescued").as_u64().unwrap() >= 1, "{name}");
        kill(worker, Signal::SIGCONT).unwrap();
        eventually("it takes its turn again", seconds(5), || (ask(port).0 == "slot 0").then_some(()));
        assert_eq!(daemon.total("restarts"), 0, "{name}: {}", daemon.log());
        assert!(!daemon.log().contains("Traceback"), "{name}: {}", daemon.log());
    }
}

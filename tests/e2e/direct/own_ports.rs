//! Ports that a worker opens for itself are the kernel's, as without us; those of the service stay shared.
//! Mostly waits: tests/run runs it beside others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::start_with;
use crate::support::{
    Daemon, eventually, free_port, get, install_dir, refused, roundsman, seconds, servers, unsaid, write_file,
};

/// Serves one port, and opens others when a client asks for it, or some time after its start.
const SERVER: &str = "
import errno, os, socket, sys, threading, time
slot = os.environ['ROUNDSMAN_SLOT']
def listens(port, *options):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in options: s.setsockopt(socket.SOL_SOCKET, option, 1)
    s.bind(('127.0.0.1', port)); s.listen(64)
    return s
def serve(s, answer):
    while True:
        try: c, _ = s.accept()
        except OSError: return
        text = answer(c.recv(1000).decode().split()[1].split('/'))
        c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + text.encode()); c.close()
opened = {}
def act(path):
    if len(path) < 4: return 'slot ' + slot
    if path[1] != slot: return 'another'
    port, what = int(path[2]), path[3]
    try:
        if what == 'close': opened.pop(port).shutdown(socket.SHUT_RDWR); return 'closed'
        s = listens(port, *[socket.SO_REUSEPORT] * (what == 'share'))
        opened[port] = s; port = s.getsockname()[1]
        threading.Thread(target=serve, args=(s, lambda path: 'own of ' + slot), daemon=True).start()
        return 'port %d' % port
    except OSError as e: return errno.errorcode[e.errno]
main = listens(int(sys.argv[1]))
threading.Thread(target=serve, args=(main, act), daemon=True).start()
for port in sys.argv[3:]:
    time.sleep(float(sys.argv[2]))
    s = listens(int(port)); threading.Thread(target=serve, args=(s, act), daemon=True).start()
name = os.environ.get('NOTIFY_SOCKET', '')
if name: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', name.replace('@', '\\0', 1))
time.sleep(10000)
";

/// Starts it: the port of its service, and what it opens after so many seconds each.
fn start(dir: &Path, instances: &str, more: &[&str], pause: &str, others: &[u16]) -> Daemon {
    let port = free_port();
    let script = write_file(dir, "server.py", SERVER);
    let mut command = ["python3", script.to_str().unwrap(), &port.to_string(), pause].map(str::to_owned).to_vec();
    command.extend(others.iter().map(u16::to_string));
    let listen = format!("127.0.0.1:{port}");
    let more: Vec<_> = more.iter().map(|word| if *word == "LISTEN" { listen.as_str() } else { word }).collect();
    start_with(port, instances, &[&["--via", "direct"], &more[..]].concat(), &command)
}

/// Asks until a slot does it.
#[track_caller]
fn tell(daemon: &Daemon, slot: usize, port: u16, what: &str) -> String {
    eventually("an answer of that slot", seconds(20), || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.write_all(format!("GET /{slot}/{port}/{what} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer = answer.split("\r\n\r\n").nth(1).unwrap().to_owned();
        (answer != "another").then_some(answer)
    })
}

/// The listeners in `ls`, each with the number of its workers.
fn listeners(daemon: &Daemon) -> Vec<(String, u64)> {
    let all = daemon.ls()["services"][0]["listen"].as_array().unwrap().clone();
    all.iter().map(|one| (one["addr"].as_str().unwrap().to_owned(), one["workers"].as_u64().unwrap())).collect()
}

#[track_caller]
fn run(daemon: &Daemon, arguments: &[&str]) {
    let done = roundsman().args(arguments).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), daemon.log());
}

/// The worker of a slot is killed, and another one is online.
fn replace(daemon: &Daemon, slot: usize) {
    let online = daemon.log().matches("worker online").count();
    kill(Pid::from_raw(daemon.workers()[slot]), Signal::SIGKILL).unwrap();
    daemon.wait_for_count("worker online", online + 1);
}

/// What a kernel does with a port that two processes want.
fn a_port_is_that_of_one(daemon: &mut Daemon, slots: u64) {
    let (port, shared) = (free_port(), free_port());
    let own = |slot| (format!("port {port}"), format!("own of {slot}"));
    assert_eq!((tell(daemon, 0, port, "open"), get(port).unwrap()), own(0));
    assert_eq!(tell(daemon, 1, port, "open"), "EADDRINUSE");
    assert_eq!(tell(daemon, 0, port, "open"), "EADDRINUSE", "twice in one worker");
    assert!((0..50).all(|_| get(port).unwrap() == "own of 0"));
    // Closed, it is free at once; and when its process dies.
    for _ in 0..20 {
        assert_eq!(tell(daemon, 0, port, "close"), "closed");
        assert!(refused(port));
        assert_eq!((tell(daemon, 1, port, "open"), get(port).unwrap()), own(1));
        assert_eq!(tell(daemon, 1, port, "close"), "closed");
        assert_eq!((tell(daemon, 0, port, "open"), get(port).unwrap()), own(0));
    }
    replace(daemon, 0);
    assert!(refused(port));
    assert_eq!((tell(daemon, 1, port, "open"), get(port).unwrap()), own(1));
    // One that comes later has the port of the service, and ports of its own.
    run(daemon, &["reload"]);
    assert_eq!((tell(daemon, 0, port, "open"), get(port).unwrap()), own(0));
    assert_eq!(tell(daemon, 1, port, "open"), "EADDRINUSE");
    run(daemon, &["scale", &(slots + 1).to_string()]);
    assert_eq!(tell(daemon, slots as usize, port, "open"), "EADDRINUSE");
    assert_eq!(tell(daemon, 0, port, "close"), "closed");
    assert_eq!((tell(daemon, slots as usize, port, "open"), get(port).unwrap()), own(slots as usize));
    // Two that agree share a port, and the kernel chooses; any port is nobody else's.
    assert_eq!(tell(daemon, 0, shared, "share"), format!("port {shared}"));
    assert_eq!(tell(daemon, 1, shared, "share"), format!("port {shared}"));
    let who: BTreeSet<_> = (0..200).map(|_| get(shared).unwrap()).collect();
    assert_eq!(who, BTreeSet::from(["own of 0".to_owned(), "own of 1".to_owned()]));
    let any = tell(daemon, 1, 0, "open").split_once(' ').unwrap().1.parse().unwrap();
    assert_eq!(get(any).unwrap(), "own of 1");
    assert_eq!(listeners(daemon), [(format!("127.0.0.1:{}", daemon.port), slots + 1)]);
    unsaid(&daemon.stop().log, &["no -l serves"]);
}

#[test]
fn a_second_worker_that_wants_a_port_gets_what_it_gets_natively() {
    let dir = install_dir();
    for more in [&[][..], &["--policy", "none"], &["-l", "LISTEN"]] {
        a_port_is_that_of_one(&mut start(dir.path(), "2", more, "0", &[]), 2);
    }
}

#[test]
fn ports_that_servers_open_as_they_start_are_shared() {
    let (dir, second, third) = (install_dir(), free_port(), free_port());
    let mut daemon = start(dir.path(), "3", &["--min-uptime", "10s"], "0.2", &[second, third]);
    let at = |workers| [daemon.port, second, third].map(|port| (format!("127.0.0.1:{port}"), workers)).to_vec();
    let all = |daemon: &Daemon, workers| {
        let shared = at(workers);
        eventually("each port is served by all", seconds(20), || (listeners(daemon) == shared).then_some(()));
        for port in [daemon.port, second, third] {
            let mut who = BTreeSet::new();
            eventually("all answer", seconds(20), || {
                who.insert(get(port).unwrap());
                (who.len() as u64 == workers).then_some(())
            });
        }
    };
    all(&daemon, 3);
    replace(&daemon, 1);
    all(&daemon, 3);
    run(&daemon, &["scale", "4"]);
    all(&daemon, 4);
    run(&daemon, &["restart"]);
    all(&daemon, 4);
    assert_eq!(daemon.total("restarts"), 1, "{}", daemon.log());
    unsaid(&daemon.stop().log, &["no -l serves", "for itself"]);
}

/// Until then its first start lasts, however long that takes; and so does that of one that comes later.
#[test]
fn what_a_server_opens_before_it_says_that_it_is_ready_is_shared() {
    let (dir, second) = (install_dir(), free_port());
    let daemon = start(dir.path(), "2", &["--wait-ready", "--min-uptime", "100ms"], "1", &[second]);
    let all = |daemon: &Daemon| {
        let shared = [daemon.port, second].map(|port| (format!("127.0.0.1:{port}"), 2));
        eventually("both serve both", seconds(20), || (listeners(daemon) == shared).then_some(()));
    };
    all(&daemon);
    replace(&daemon, 1);
    all(&daemon);
    let own = free_port();
    assert_eq!((tell(&daemon, 0, own, "open"), get(own).unwrap()), (format!("port {own}"), "own of 0".to_owned()));
    assert_eq!(tell(&daemon, 1, own, "open"), "EADDRINUSE");
    all(&daemon);
}

#[test]
fn a_worker_that_starts_and_needs_what_another_has_for_itself_is_told_of_the_option() {
    let (dir, second) = (install_dir(), free_port());
    let script = SERVER.replace("in sys.argv[3:]:", "in sys.argv[3:] if slot == '1' else []:");
    let (port, script) = (free_port(), write_file(dir.path(), "server.py", &script));
    let command = ["python3", script.to_str().unwrap(), &port.to_string(), "0", &second.to_string()].map(str::to_owned);
    let daemon = start_with(port, "1", &["--via", "direct"], &command);
    assert_eq!(tell(&daemon, 0, second, "open"), format!("port {second}"));
    // It is online for a moment: how the command ends is of no interest.
    roundsman().args(["scale", "2"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    daemon.wait_for(&format!(
        "worker 1 cannot listen on :{second}: worker 0 opened it for itself after the start; if all workers shall serve \
         it, use -l {port} -l {second}"
    ));
}

#[test]
fn late_ports_of_nodes_workers_are_shared() {
    let (dir, port, late) = (install_dir(), free_port(), free_port());
    let text = "
const serves = () => require('http').createServer((_, r) => r.end('slot ' + process.env.ROUNDSMAN_SLOT));
const [port, late] = process.argv.slice(2).map(Number);
serves().listen(port, '127.0.0.1');
const timer = setInterval(() => require('fs').existsSync(__dirname + '/go') && (clearInterval(timer), serves().listen(late, '127.0.0.1')), 20);
";
    let script = write_file(dir.path(), "app.js", text);
    let command = ["node", script.to_str().unwrap(), &port.to_string(), &late.to_string()].map(str::to_owned);
    let daemon = start_with(port, "2", &["--via", "direct", "--min-uptime", "0s"], &command);
    assert!((0..10).all(|_| get(port).is_ok()));
    write_file(dir.path(), "go", "");
    let both = [port, late].map(|port| (format!("127.0.0.1:{port}"), 2));
    eventually("both share it", seconds(20), || (listeners(&daemon) == both).then_some(()));
    let who: BTreeSet<_> = (0..8).map(|_| get(late).unwrap()).collect();
    assert_eq!(who.len(), 2);
    assert_eq!(daemon.total("restarts"), 0);
}

const FTP_SERVER: &str = "
import os, sys
import logging; logging.basicConfig(level=logging.WARNING)
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
port, directory = int(sys.argv[1]), sys.argv[2] + '/%d' % os.getpid()
os.makedirs(directory)
open(directory + '/who', 'w').write('%d\\n' % os.getpid() * 2000)
FTPHandler.authorizer = DummyAuthorizer(); FTPHandler.authorizer.add_anonymous(directory)
FTPHandler.passive_ports, FTPHandler.banner = [int(port) for port in sys.argv[3:]], str(os.getpid())
FTPServer(('127.0.0.1', port), FTPHandler).serve_forever()
";

/// Prints which processes it met, in one line for each transfer that it got the data of another process. Two processes
/// that choose one port at the same time are natural: one of them fails then, and the client asks again.
const FTP_CLIENT: &str = "
import ftplib, sys, threading
port, clients, transfers = map(int, sys.argv[1:4])
wrong, met = [], set()
def session():
    f = ftplib.FTP(); f.connect('127.0.0.1', port, timeout=20)
    f.pid = f.welcome.split()[1]; f.login(); met.add(f.pid)
    return f
def transfer(f):
    out = []; f.retrbinary('RETR who', out.append)
    if b''.join(out).decode() != (f.pid + '\\n') * 2000: wrong.append(f.pid)
def again(act):
    for attempt in range(20):
        try: return act()
        except (EOFError, OSError, ftplib.Error) as e: failure = e
    wrong.append('failed: %r' % failure)
def run():
    def one():
        f = session(); transfer(f); f.quit()
    for _ in range(transfers): again(one)
if clients == 0:
    # A session that goes on while the world around it changes.
    f = session(); print('open', flush=True)
    for line in sys.stdin: again(lambda: transfer(f)); print('done', flush=True)
else:
    threads = [threading.Thread(target=run) for _ in range(clients)]
    [t.start() for t in threads]; [t.join() for t in threads]
print('wrong', wrong, 'met', len(met))
";

#[test]
fn transfers_of_passive_ftp_reach_the_process_of_their_session() {
    let (dir, port) = (install_dir(), free_port());
    let python = servers().join("venv/bin/python").to_str().unwrap().to_owned();
    let [server, client] = [("server.py", FTP_SERVER), ("client.py", FTP_CLIENT)]
        .map(|(name, text)| write_file(dir.path(), name, text).to_str().unwrap().to_owned());
    let mut command = vec![python.clone(), server, port.to_string(), dir.path().to_str().unwrap().to_owned()];
    command.extend((0..6).map(|_| free_port().to_string()));
    let mut daemon = start_with(port, "4", &["--via", "direct", "--max-surge", "4"], &command);
    let ask = |clients: &str, transfers: &str| {
        let mut ask = Command::new(&python);
        ask.args([&client, &port.to_string(), clients, transfers]);
        ask
    };
    let transfers = |least: u32| {
        let output = ask("8", "8").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let met = said.strip_prefix("wrong [] met ").unwrap_or_else(|| panic!("{said}"));
        assert!(met.trim().parse::<u32>().unwrap() >= least, "{said}");
    };
    transfers(4);
    let mut open = ask("0", "0");
    let mut open = open.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = open.stdout.take().unwrap();
    let mut wait_for = |what: &str| {
        let mut line = vec![0; what.len() + 1];
        said.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8_lossy(&line).trim_end(), what);
    };
    wait_for("open");
    // Its worker drains until the session ends, and has ports for it.
    let mut reload = roundsman();
    let reload = reload.arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).stdout(Stdio::null());
    let mut reload = reload.spawn().unwrap();
    daemon.wait_for_count("worker online", 8);
    transfers(4);
    for _ in 0..3 {
        writeln!(open.stdin.as_mut().unwrap()).unwrap();
        wait_for("done");
    }
    drop(open.stdin.take());
    wait_for("wrong [] met 1");
    assert!(open.wait().unwrap().success() && reload.wait().unwrap().success(), "{}", daemon.log());
    replace(&daemon, 2);
    transfers(4);
    run(&daemon, &["scale", "5"]);
    transfers(5);
    assert_eq!(listeners(&daemon), [(format!("127.0.0.1:{port}"), 5)]);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["no -l serves", "for itself"]);
}

//! Other local users can connect to the attach socket and to NOTIFY_SOCKETs, and get nothing by it.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Daemon, Killed, c_server, eventually, free_port, http_get, install_dir, roundsman, seconds, source, unsaid,
    write_file,
};

const NOBODY: &str = "65534";

/// Starts an attack; returns when it is under way.
#[track_caller]
fn attack(uid: &str, name: &str, mode: &str, number: &str) -> Killed {
    let mut command = Command::new("python3");
    command.args([&source("attack.py"), uid, name, mode, number]).stdout(Stdio::piped());
    let mut attack = Killed::spawn(&mut command);
    assert_eq!(line(&mut attack.0), "ready\n");
    attack
}

fn line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line
}

/// A variable of a worker.
#[track_caller]
fn variable(pid: u32, name: &str) -> String {
    eventually(name, seconds(10), || {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        environment.split('\0').find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    })
}

/// The name of the attach socket.
fn attach_name(daemon: &Daemon) -> String {
    variable(daemon.workers()[0] as u32, "ROUNDSMAN_ATTACH").split(':').next().unwrap().to_owned()
}

/// Two workers, an admin port, and a file limit; returns the admin port, too.
fn start(nofile: &str, more: &[&str]) -> (Daemon, u16) {
    let (port, admin) = (free_port(), free_port());
    let mut command = Command::new("prlimit");
    let limit = format!("--nofile={nofile}:{nofile}");
    command.args([&limit, env!("CARGO_BIN_EXE_roundsman")]).stdin(Stdio::null());
    let (text, admin_at) = (port.to_string(), format!("127.0.0.1:{admin}"));
    let mut arguments = vec!["-i", "2", "--via", "direct", "--admin", &admin_at, "--min-uptime", "100ms"];
    arguments.extend(more);
    arguments.extend(["--", c_server(), "threads", &text]);
    let daemon = Daemon::launch(command, &arguments, port);
    daemon.wait_online(2);
    (daemon, admin)
}

/// A request, with a limit.
fn get(port: u16) -> std::io::Result<String> {
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(seconds(15)))?;
    http_get(&mut client)
}

/// While the attack goes on: requests are served, `ls` and /livez answer, a crashed worker comes back, a reload succeeds.
#[track_caller]
fn all_is_well(daemon: &Daemon, admin: u16) {
    for _ in 0..20 {
        assert!(get(daemon.port).unwrap().starts_with("slot"), "{}", daemon.log());
    }
    let (pid, restarts) = (daemon.workers()[0], daemon.total("restarts"));
    let mut probe = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    probe.set_read_timeout(Some(seconds(10))).unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    probe.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("the crashed worker is counted", seconds(10), || (daemon.total("restarts") > restarts).then_some(()));
    daemon.wait_online(2);
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
    assert!(get(daemon.port).unwrap().starts_with("slot"));
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn another_users_connections_cost_the_daemon_nothing() {
    let (daemon, admin) = start("1024", &[]);
    let name = attach_name(&daemon);
    let _attacks: Vec<_> = (0..4).map(|_| attack(NOBODY, &name, "flood", "1100")).collect();
    all_is_well(&daemon, admin);
    let open = descriptors(daemon.pid());
    assert!(open < 256, "{open} descriptors");
    let warnings = daemon.log().matches("attach refused").count();
    assert!((1..60).contains(&warnings), "{warnings} warnings");
}

#[test]
fn connections_of_our_own_user_without_a_proof_are_few() {
    let (daemon, admin) = start("1024", &[]);
    let name = attach_name(&daemon);
    let before = descriptors(daemon.pid());
    let _attacks: Vec<_> = (0..4).map(|_| attack("0", &name, "flood", "1100")).collect();
    all_is_well(&daemon, admin);
    let open = descriptors(daemon.pid());
    // Those to be closed and those without a proof.
    assert!(open < before + 64 + 64 + 64, "{before}, then {open} descriptors");
}

#[test]
fn a_close_that_blocks_does_not_block_the_daemon() {
    // By a stranger; by our own user with garbage, and in the form of a request.
    for (uid, mode) in [(NOBODY, "linger"), ("0", "linger"), ("0", "request-linger")] {
        let (daemon, admin) = start("1024", &[]);
        let _attack = attack(uid, &attach_name(&daemon), mode, "60");
        all_is_well(&daemon, admin);
    }
}

#[test]
fn a_worker_that_binds_a_socket_whose_close_blocks_harms_itself() {
    let (daemon, admin) = start("1024", &[]);
    let dir = install_dir();
    // It has a proof, and speaks to the daemon without the library.
    let script = format!(
        "import os, socket, struct, sys, time
sys.path.insert(0, os.path.dirname({:?}))
from attack import connect, give_away, lingering
name, token = {:?}.split(':')
kept = []
while True:
    if len(kept) == 60: print('ready', flush=True)
    for what in (1, 9, 3):
        listener, client = lingering(60)
        kept.append(listener)
        way = connect(name)
        kept.append(way)
        address = struct.pack('=H', 2) + bytes(26)
        try: give_away(way, struct.pack('HHI', 1, what, os.getpid()) + bytes.fromhex(token) + struct.pack('I', 0) + address, client)
        except OSError: pass
    time.sleep(0.1 if len(kept) < 200 else 1)
",
        source("attack.py"),
        variable(daemon.workers()[1] as u32, "ROUNDSMAN_ATTACH")
    );
    let script = write_file(dir.path(), "evil.py", &script);
    let mut evil = Killed::spawn(Command::new("python3").arg(script).stdout(Stdio::piped()));
    assert_eq!(line(&mut evil.0), "ready\n");
    all_is_well(&daemon, admin);
}

/// A server in Python; `more` runs before it listens.
fn python_server(more: &str) -> String {
    format!(
        "import os, socket, sys, threading
sys.path.insert(0, {:?})
from attack import connect, give_away, lingering
{more}
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', int(sys.argv[1])))
server.listen(100)
while True:
    client, _ = server.accept()
    client.recv(1000)
    client.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nslot ' + os.environ['ROUNDSMAN_SLOT'].encode())
    client.close()
",
        std::path::Path::new(&source("attack.py")).parent().unwrap()
    )
}

fn start_python(more_python: &str, more: &[&str], dir: &std::path::Path) -> (Daemon, u16) {
    let script = write_file(dir, "server.py", &python_server(more_python));
    let (port, admin) = (free_port(), free_port());
    let (text, admin_at) = (port.to_string(), format!("127.0.0.1:{admin}"));
    let mut arguments = vec!["-i", "2", "--via", "direct", "--admin", &admin_at, "--min-uptime", "100ms"];
    arguments.extend(more);
    arguments.extend(["--", "python3", script.to_str().unwrap(), &text]);
    (Daemon::launch(roundsman(), &arguments, port), admin)
}

#[test]
fn a_server_that_becomes_another_user_attaches() {
    let dir = install_dir();
    let (daemon, admin) = start_python("os.setgroups([]); os.setgid(65534); os.setuid(65534)", &[], dir.path());
    daemon.wait_online(2);
    let _attack = attack("65533", &attach_name(&daemon), "flood", "500");
    all_is_well(&daemon, admin);
    // They are served by the library, and not by a port that the first of them took for itself.
    assert!(daemon.slots().iter().all(|slot| slot["connections"].as_u64().unwrap() > 0), "{:?}", daemon.slots());
}

#[test]
fn sockets_that_a_worker_sends_over_its_ipc_channel_are_closed_elsewhere() {
    let dir = install_dir();
    let evil = r#"
def send():
    import time
    channel, kept = socket.socket(fileno=int(os.environ['NODE_CHANNEL_FD'])), []
    for _ in range(100):
        listener, client = lingering(60)
        kept.append(listener)
        give_away(channel, b'{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{}}\n', client)
        channel.recv(1000)
        time.sleep(0.05)
    print('all given away', file=sys.stderr, flush=True)
threading.Thread(target=send, daemon=True).start()
"#;
    let (daemon, admin) = start_python(evil, &["--node-ipc", "plain"], dir.path());
    daemon.wait_online(2);
    for _ in 0..3 {
        all_is_well(&daemon, admin);
    }
    daemon.wait_for("all given away");
    unsaid(&daemon.log(), &["nonsense"]);
}

/// With `--wait-ready`, a server that says nothing itself; the name of its NOTIFY_SOCKET.
fn start_waiting(script: &str) -> (Daemon, String) {
    let port = free_port();
    let script = format!("{script} exec {} threads {port}", c_server());
    let arguments = ["-i", "1", "--via", "direct", "--wait-ready", "--", "sh", "-c", &script];
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    daemon.wait_for("server started");
    let pid = eventually("the server's pid", seconds(10), || daemon.slot(0, "pid").as_u64());
    (daemon, variable(pid as u32, "NOTIFY_SOCKET")[1..].to_owned())
}

#[test]
fn ready_counts_from_the_server_alone() {
    let (daemon, name) = start_waiting("");
    let _attack = attack(NOBODY, &name, "ready", "0");
    // Turns in which it would have been read.
    for _ in 0..20 {
        assert_eq!(daemon.slot(0, "state"), "launching");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _own = attack("0", &name, "ready", "0");
    daemon.wait_online(1);
}

#[test]
fn ready_counts_from_a_child_of_the_server_that_is_another_user() {
    let say = format!("python3 {} {NOBODY} \"${{NOTIFY_SOCKET#@}}\" ready &", source("attack.py"));
    let (daemon, _) = start_waiting(&say);
    daemon.wait_online(1);
}

#[test]
fn descriptors_sent_to_a_notify_socket_disturb_nobody() {
    let (daemon, name) = start_waiting("");
    // By a stranger; and by our own user, as a program that the server runs is.
    let _attacks = [attack(NOBODY, &name, "notify-linger", "60"), attack("0", &name, "notify-linger", "60")];
    for _ in 0..20 {
        assert_eq!(daemon.slot(0, "state"), "launching");
    }
    let _own = attack("0", &name, "ready", "0");
    daemon.wait_online(1);
}

//! Direct delivery where something is not as it should be: what cannot be preloaded, who does harm, what does not end.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::{ask, start, start_with};
use crate::support::{
    Daemon, c_server, eventually, free_port, get, install_dir, roundsman, seconds, static_server, unprivileged_copy,
    unsaid, write_file,
};

/// What `ls` says of the delivery, and that a request is served.
#[track_caller]
fn via(program: Command, more: &[&str], server: &str) -> (String, String) {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut arguments = vec!["-l", &listen, "-i", "1"];
    arguments.extend(more);
    arguments.push("--");
    arguments.extend(server.split(' '));
    arguments.extend(["threads", "{port}"]);
    let daemon = Daemon::launch(program, &arguments, port);
    daemon.wait_online(1);
    assert!(get(port).unwrap().starts_with("slot 0 peer"));
    let service = daemon.ls()["services"][0].clone();
    let text = |field: &str| service[field].as_str().unwrap().to_owned();
    (text("via"), text("via_reason"))
}

/// A copy of the C server with other rights.
fn copy(dir: &Path, name: &str, mode: u32) -> String {
    let program = dir.join(name);
    std::fs::copy(c_server(), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(mode)).unwrap();
    program.to_str().unwrap().to_owned()
}

#[test]
fn what_cannot_be_preloaded_is_relayed_and_the_reason_is_said() {
    let dir = install_dir();
    let (delivery, reason) = via(roundsman(), &[], static_server());
    assert!(delivery == "relay" && reason.contains("linked statically"), "{delivery}: {reason}");
    let script = write_file(dir.path(), "script", &format!("#!{}\n", static_server()));
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let output = roundsman().args(["--", script.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("linked statically") && text.contains("--listen"), "{text}");

    let setuid = copy(dir.path(), "setuid", 0o4755);
    let (delivery, reason) = via(roundsman(), &[], &setuid);
    assert!(delivery == "relay" && reason.contains("setuid"), "{delivery}: {reason}");
    let capable = copy(dir.path(), "capable", 0o755);
    let set = Command::new("setcap").args(["cap_net_bind_service+ep", &capable]).status().unwrap();
    assert!(set.success());
    let (delivery, reason) = via(roundsman(), &[], &capable);
    assert!(delivery == "relay" && reason.contains("file capabilities"), "{delivery}: {reason}");
    let output = roundsman().args(["--via", "direct", "--", &capable]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("file capabilities; use --via relay"), "{text}");
}

#[test]
fn another_user_without_rights_a_read_only_root_and_noexec_directories() {
    // The memory file lies under the master's /proc/PID, where another user may not look: a file takes its place.
    let dir = install_dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let server = copy(dir.path(), "server", 0o755);
    let port = free_port();
    let daemon =
        start_with(port, "2", &["--user", "nobody"], &[server.clone(), "threads".to_owned(), port.to_string()]);
    assert!((0..10).all(|_| ask(port).1));
    assert_eq!(daemon.ls()["services"][0]["via"], "direct");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.workers()[0])).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(line("Uid:").split_whitespace().nth(1), Some(nobody.uid.to_string().as_str()));
    assert!(line("CapEff:").ends_with("0000000000000000"), "{status}");
    drop(daemon);

    // In a mount namespace: every place for a file is noexec, then the root is read-only.
    let inside = |mounts: &str| {
        let mut command = Command::new("unshare");
        let line = format!("{mounts} exec {} \"$@\"", env!("CARGO_BIN_EXE_roundsman"));
        command.args(["-m", "--propagation", "private", "sh", "-c", &line, "sh"]);
        command
    };
    let bound = dir.path().join("exec");
    std::fs::create_dir(&bound).unwrap();
    let noexec = format!(
        "mount --bind {0} {0}; for d in /run /dev/shm /var/tmp; do mount -t tmpfs -o noexec,mode=1777 none $d; done; \
         mount -t tmpfs -o noexec,mode=1777 none /mnt; export TMPDIR=/mnt;",
        dir.path().display()
    );
    let (delivery, reason) = via(inside(&noexec), &["--user", "nobody"], &server);
    assert_eq!(delivery, "direct", "servers inherit a memory file: {reason}");
    let (delivery, reason) = via(inside(&noexec), &[], &format!("gosu nobody {server}"));
    assert_eq!(delivery, "direct", "{reason}");
    let (delivery, _) = via(inside(&noexec), &[], &server);
    assert_eq!(delivery, "direct", "as the same user no file is needed");
    // Nor is a root that can be written to (there is no place for a control socket then).
    let port = free_port();
    let read_only = inside("mount -o remount,bind,ro / 2>/dev/null || mount --bind -o ro / /;");
    let listen = format!("127.0.0.1:{port}");
    let daemon = Daemon::launch(read_only, &["-l", &listen, "-i", "1", "--", &server, "threads", "{port}"], port);
    daemon.wait_for("worker online");
    assert!(
        daemon.log().contains("Read-only file system") && daemon.log().contains("via=\"direct\""),
        "{}",
        daemon.log()
    );
    assert!(get(port).is_ok());
}

#[test]
fn without_any_capability() {
    let dir = install_dir();
    let program = unprivileged_copy(dir.path());
    let server = copy(dir.path(), "server", 0o755);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]);
    command.arg(&program);
    let (delivery, reason) = via(command, &[], &server);
    assert_eq!(delivery, "direct", "{reason}");
}

#[test]
fn who_puts_itself_into_the_background_is_refused_and_leaves_nothing() {
    for mode in ["daemon", "late-daemon"] {
        let port = free_port();
        let command = [c_server(), mode, &port.to_string()].map(str::to_owned);
        let mut all = vec!["-i", "1", "--via", "direct", "--max-restarts", "2", "--backoff", "10ms..20ms", "--"];
        all.extend(command.iter().map(String::as_str));
        let mut daemon = Daemon::launch(roundsman(), &all, port);
        let end = daemon.finish(seconds(20));
        assert_eq!(end.code(), 1, "{mode}: {}", end.log);
        assert!(
            end.log.contains("put itself into the background; let it run in the foreground"),
            "{mode}: {}",
            end.log
        );
        assert_eq!(end.log.matches("server started").count(), 1, "it is not tried again: {}", end.log);
        eventually("nothing of it is left", seconds(5), || {
            let all = procfs::process::all_processes().unwrap().flatten();
            let mut lines = all.filter_map(|process| process.cmdline().ok());
            (!lines.any(|line| line == command)).then_some(())
        });
    }
}

#[test]
fn nonsense_on_a_page_harms_nobody_else() {
    let port = free_port();
    let daemon = start(port, "2", &[c_server().to_owned(), "hostile".to_owned(), port.to_string()]);
    daemon.wait_for_count("scribbled", 2);
    assert!((0..100).all(|_| ask(port).1));
    assert!(daemon.total("open") <= 200 << 30);
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn one_that_never_receives_is_named() {
    let port = free_port();
    let daemon = start(port, "1", &[c_server().to_owned(), "raw".to_owned(), port.to_string()]);
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    daemon.wait_for("received none for 5 s: it is blocked, or it accepts by io_uring");
}

#[test]
fn behind_a_shell_the_server_gets_the_signal_and_its_end_is_noticed() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(
        dir.path(),
        "app.py",
        &crate::support::table::PYTHON.replace(
            "class Handler",
            "import signal\ndef bye(*rest): print('told to stop', file=sys.stderr, flush=True); os._exit(0)\nsignal.signal(signal.SIGTERM, bye)\nclass Handler",
        ),
    );
    let line = format!("python3 {} {port}; sleep 60", script.display());
    let mut daemon = start(port, "1", &["sh".to_owned(), "-c".to_owned(), line]);
    assert!(ask(port).1);
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("its launcher did not; launcher killed");
    eventually("it is started again", seconds(20), || (daemon.slot(0, "generation") == 2).then_some(()));
    daemon.wait_online(1);
    assert!(ask(port).1);
    let end = daemon.stop();
    assert!(end.code() == 0 && end.log.contains("told to stop"), "{}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn when_the_master_is_killed_a_server_that_does_not_mind_signals_does_not_spin() {
    let (dir, port) = (install_dir(), free_port());
    for at in [1, 2, 3] {
        let script = crate::support::table::table(dir.path(), port).swap_remove(at).command[1].clone();
        let deaf = format!(
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{}",
            std::fs::read_to_string(&script).unwrap()
        );
        std::fs::write(&script, deaf).unwrap();
        let daemon = start(port, "1", &["python3".to_owned(), script, port.to_string()]);
        assert!(ask(port).1);
        let pid = daemon.workers()[0];
        daemon.signal(Signal::SIGKILL);
        let ticks = || {
            let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).unwrap();
            stat.utime + stat.stime
        };
        eventually("the port is free", seconds(2), || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
        let before = ticks();
        std::thread::sleep(seconds(1));
        let spent = ticks() - before;
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert!(spent <= 5, "{spent} of 100 ticks");
    }
}

#[test]
fn a_lease_tells_servers_behind_a_shell_that_the_master_died() {
    let (dir, port) = (install_dir(), free_port());
    let server = crate::support::table::table(dir.path(), port).swap_remove(0);
    let line = format!("SERVERS= {}; sleep 60", server.command.join(" "));
    let daemon = start(port, "1", &["sh".to_owned(), "-c".to_owned(), line]);
    let pid = daemon.workers()[0];
    daemon.signal(Signal::SIGKILL);
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("the server is gone", seconds(2), || (!alive()).then_some(()));
}

/// A process for each connection, forked before it comes; each accepts one and ends.
const ONE_EACH: &str = "
import os, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(100)
while True:
    if os.fork() == 0:
        c, peer = s.accept(); head = b''
        while b'\\r\\n\\r\\n' not in head: head += c.recv(4096)
        body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {peer[1]}'.encode()
        c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body); os._exit(0)
    os.wait()
";

#[test]
fn more_processes_than_the_page_has_rows() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "each.py", ONE_EACH);
    let daemon = start(port, "1", &["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned));
    assert!((0..200).all(|_| ask(port).1));
    assert_eq!(daemon.total("connections"), 200);
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn a_stop_waits_for_children_that_serve() {
    let (dir, port) = (install_dir(), free_port());
    let slow = write_file(
        dir.path(),
        "slow.py",
        "
import os, signal, socket, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(100)
while True:
    c, peer = s.accept()
    if os.fork() == 0:
        s.close(); time.sleep(float(c.recv(100))); c.sendall(b'served'); c.close(); os._exit(0)
    c.close()
",
    );
    let mut daemon = start(port, "1", &["python3", slow.to_str().unwrap(), &port.to_string()].map(str::to_owned));
    let send = |seconds: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(seconds).unwrap();
        stream
    };
    let mut answer = Vec::new();
    send(b"0").read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"served");
    eventually("ls says that it is an estimate", seconds(5), || {
        (daemon.slot(0, "open_is_estimate") == true).then_some(())
    });
    let mut late = send(b"1.5");
    eventually("it was received", seconds(5), || (daemon.slot(0, "connections") == 2).then_some(()));
    let server = daemon.workers()[0];
    eventually("a child has it", seconds(5), || {
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        (!children.trim().is_empty()).then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"served", "{}", daemon.log());
    assert_eq!(daemon.finish(seconds(10)).code(), 0);
}

#[test]
fn a_stranger_with_a_token_is_refused() {
    let port = free_port();
    let daemon = start(port, "1", &[c_server().to_owned(), "threads".to_owned(), port.to_string()]);
    let environment = std::fs::read(format!("/proc/{}/environ", daemon.workers()[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let place = environment.split('\0').find_map(|entry| entry.strip_prefix("ROUNDSMAN_ATTACH=")).unwrap();
    let (name, token) = place.split_once(':').unwrap();
    let stranger = format!(
        "
import os, socket, struct
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('\\0{name}')
s.settimeout(5)
try:
    s.send(struct.pack('HHI', 1, 2, os.getpid()) + bytes.fromhex('{token}') + bytes(32))
    assert s.recv(100) == b''
except (BrokenPipeError, ConnectionResetError): pass
"
    );
    assert!(Command::new("python3").args(["-c", &stranger]).status().unwrap().success());
    daemon.wait_for("attach refused");
    assert!(ask(port).1);
}

//! A worker is online as long as one of its processes can receive: also where those who bound have closed their copies.
//! Mostly waits: tests/run runs it beside others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, install_dir, refused, seconds, write_file};

const PREFORK: &str = "
import os, select, signal, socket, sys, time
def listens(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', port)); s.listen(64)
    return s
def serve(s):
    while True:
        try: c, _ = s.accept()
        except BlockingIOError: select.select([s], [], []); continue
        c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n%d' % os.getpid()); c.close()
port, how = int(sys.argv[1]), sys.argv[2]
";

/// The parent binds, forks those who accept, and closes its own copy.
const PARENT_CLOSES: &str = "
s = listens(port)
if 'poll' in how: s.setblocking(False)
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0: serve(s)
    children.append(pid)
if 'late' in how: time.sleep(0.5)
s.close()
while True:
    try: os.wait()
    except ChildProcessError: time.sleep(0.1)
";

fn start(dir: &Path, instances: &str, script: &str, how: &str) -> Daemon {
    let port = free_port();
    let script = write_file(dir, "server.py", &format!("{PREFORK}{script}"));
    let command = ["python3", script.to_str().unwrap(), &port.to_string(), how].map(str::to_owned);
    start_with(port, instances, &["--via", "direct", "--min-uptime", "0s"], &command)
}

fn health(daemon: &Daemon) -> bool {
    let mut health = crate::support::roundsman();
    health.arg("health").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap().status.success()
}

#[test]
fn children_accept_what_their_parent_bound_and_closed() {
    for how in ["accept", "poll", "accept late", "poll late"] {
        let dir = install_dir();
        let daemon = start(dir.path(), "2", PARENT_CLOSES, how);
        let parents: BTreeSet<String> = daemon.workers().iter().map(ToString::to_string).collect();
        let mut seen = BTreeSet::new();
        // Beyond the second after which a listener goes that nobody has.
        let end = std::time::Instant::now() + seconds(2);
        eventually(&format!("{how}: answers of both workers"), seconds(20), || {
            let pid = get(daemon.port).unwrap();
            assert!(!parents.contains(&pid));
            seen.insert(pid);
            (seen.len() >= 2 && std::time::Instant::now() > end).then_some(())
        });
        assert_eq!(daemon.slots().iter().filter(|slot| slot["state"] == "online").count(), 2, "{how}");
        assert!(health(&daemon), "{how}");
    }
}

#[test]
fn a_worker_whose_acceptors_have_ended_is_not_online() {
    let dir = install_dir();
    let daemon = start(dir.path(), "1", PARENT_CLOSES, "accept late");
    let children: BTreeSet<i32> = eventually("both children", seconds(20), || {
        let parent = daemon.workers()[0];
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        let children: BTreeSet<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        (children.len() == 2).then_some(children)
    });
    // The parent closes its copy half a second after the fork: no state shows it.
    std::thread::sleep(seconds(1));
    for (ended, &child) in children.iter().enumerate() {
        assert!(children.contains(&get(daemon.port).unwrap().parse().unwrap()), "{ended} of them ended");
        assert!(health(&daemon));
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        // Until it is gone it may still receive.
        eventually("the child's end", seconds(10), || {
            let fds = std::fs::read_dir(format!("/proc/{child}/fd")).into_iter().flatten().count();
            (fds == 0).then_some(())
        });
    }
    eventually("not online", seconds(20), || (daemon.slots()[0]["state"] == "launching").then_some(()));
    let reason = daemon.slots()[0]["reason"].clone();
    assert_eq!(reason, "it has closed what it listened on");
    assert!(!health(&daemon));
    // As natively, although the one that closed it last has ended: the parent lives.
    eventually("refused", seconds(10), || refused(daemon.port).then_some(()));
}

#[test]
fn children_that_close_what_they_inherited_are_noticed() {
    // The last one closes and lives on; then the parent listens anew.
    let dir = install_dir();
    let daemon = start(
        dir.path(),
        "1",
        "
s = listens(port)
if os.fork() == 0:
    c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nchild'); c.close()
    s.close()
    time.sleep(1000)
s.close()
while not os.path.exists(how): time.sleep(0.01)
serve(listens(port))
",
        dir.path().join("go").to_str().unwrap(),
    );
    assert_eq!(get(daemon.port).unwrap(), "child");
    eventually("not online", seconds(20), || (daemon.slots()[0]["state"] == "launching").then_some(()));
    eventually("refused", seconds(10), || refused(daemon.port).then_some(()));
    write_file(dir.path(), "go", "");
    daemon.wait_online(1);
    assert_eq!(get(daemon.port).unwrap(), daemon.workers()[0].to_string());
    daemon.wait_for("worker listens again");
}

#[test]
fn processes_of_multiprocessing_serve_what_their_parent_closed() {
    for method in ["fork", "spawn", "forkserver"] {
        let (dir, port) = (install_dir(), free_port());
        let script = write_file(
            dir.path(),
            "mp.py",
            "
import multiprocessing, os, socket, sys
def serve(s):
    while True:
        c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n%d' % os.getpid()); c.close()
if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[2])
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(128)
    children = [multiprocessing.Process(target=serve, args=(s,)) for _ in range(2)]
    for child in children: child.start()
    s.close()
    for child in children: child.join()
",
        );
        let command = ["python3", script.to_str().unwrap(), &port.to_string(), method].map(str::to_owned);
        let daemon = start_with(port, "1", &["--via", "direct"], &command);
        let parent = daemon.workers()[0].to_string();
        let end = std::time::Instant::now() + seconds(2);
        while std::time::Instant::now() < end {
            assert_ne!(get(port).unwrap_or_else(|error| panic!("{method}: {error}")), parent);
        }
        assert!(health(&daemon), "{method}");
        assert_eq!(daemon.slots()[0]["restarts"], 0, "{method}");
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn haproxy_in_master_worker_mode_serves() {
    let (dir, port) = (install_dir(), free_port());
    let config = write_file(
        dir.path(),
        "haproxy.cfg",
        &format!(
            "global\n nbthread 1\ndefaults\n mode http\n timeout client 5s\n timeout connect 5s\n timeout server 5s\n\
             frontend f\n bind 127.0.0.1:{port}\n http-request return status 200 content-type text/plain string served\n"
        ),
    );
    assert!(Command::new("haproxy").arg("-v").output().is_ok(), "haproxy (tests/install --all)");
    let command = ["haproxy", "-W", "-f", config.to_str().unwrap()].map(str::to_owned);
    let daemon = start_with(port, "2", &["--via", "direct"], &command);
    for _ in 0..50 {
        assert_eq!(get(port).unwrap(), "served");
    }
    assert!(health(&daemon));
}

//! Time that has passed and nothing that follows from it: no thread of the daemon may run in circles then.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::truth::bounded;
use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, get, install_dir, millis, roundsman, seconds, write_file};

const LISTENS: &str = "
import os, signal, socket, sys, time
def listens():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(64)
    return s
def serve(s):
    while True:
        c, _ = s.accept(); c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nok'); c.close()
";

fn command(dir: &Path, port: u16, script: &str) -> Vec<String> {
    let script = write_file(dir, "server.py", &format!("{LISTENS}{script}"));
    ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned).to_vec()
}

/// What the daemon's threads have run so far, in ticks of 10 ms.
fn ran(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect();
    assert_ne!(fields[0], "Z", "it has ended: {}", daemon.log());
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// One in circles runs for 100 ticks a second, or for half of that beside others.
#[track_caller]
fn rests(daemon: &Daemon, when: &str) {
    let before = ran(daemon);
    std::thread::sleep(Duration::from_millis(1500));
    let ticks = ran(daemon) - before;
    assert!(ticks < 20, "{when}: {ticks} ticks in 1.5 s\n{}", daemon.log());
}

#[test]
fn while_a_server_has_closed_its_port_and_is_not_online() {
    // It tries a port, closes it again, and then takes its time.
    let (dir, port) = (install_dir(), free_port());
    let script = "listens().close()\nopen(sys.argv[0] + '.closed', 'w')\ntime.sleep(5)\nserve(listens())\n";
    let command = command(dir.path(), port, script);
    let mut arguments = vec!["-i", "1", "--via", "direct", "--"];
    arguments.extend(command.iter().map(String::as_str));
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    let closed = dir.path().join("server.py.closed");
    eventually("it has closed it", seconds(20), || closed.exists().then_some(()));
    // More than the second after which a worker is said to listen nowhere.
    std::thread::sleep(millis(1200));
    rests(&daemon, "launching");
    daemon.wait_online(1);
    assert_eq!(get(port).unwrap(), "ok");
}

#[test]
fn while_a_server_that_was_told_to_stop_takes_its_time() {
    let (dir, port) = (install_dir(), free_port());
    let script = "
class Told(Exception): pass
def told(*_): raise Told()
signal.signal(signal.SIGTERM, told)
s = listens()
try: serve(s)
except Told: s.close(); time.sleep(5)
";
    let mut daemon = start_with(port, "1", &["--via", "direct"], &command(dir.path(), port, script));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("draining");
    // Past the second in which it may listen anew.
    std::thread::sleep(millis(1500));
    rests(&daemon, "stopping");
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
}

#[test]
fn while_every_slot_is_given_up() {
    let (dir, port) = (install_dir(), free_port());
    let options = ["-i", "2", "--via", "direct", "--on-errored", "stay", "--max-restarts", "0", "--"];
    let command = command(dir.path(), port, "s = listens()\ntime.sleep(0.3)\nsys.exit(3)\n");
    let arguments: Vec<&str> = options.into_iter().chain(command.iter().map(String::as_str)).collect();
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    // The accept thread may hear of the listener's end before or after its own order to let it go.
    for times in 1..=5 {
        daemon.wait_for_count("clients are refused", times);
        rests(&daemon, "given up");
        bounded(&daemon, &["start"]);
    }
}

#[test]
fn many_servers_that_die_at_once_are_looked_at_in_bounded_time() {
    // To look at all the others' ports for each that dies takes the control thread's time from everybody.
    let cost = |how: &[&str]| {
        let listen = format!("127.0.0.1:{}", free_port());
        let options = ["-i", "32", "--on-errored", "stay", "--max-restarts", "0"];
        let listen = if how.is_empty() { vec!["--no-listen"] } else { vec!["-l", &listen] };
        let command = ["--", "sh", "-c", "sleep 1; exit 1"];
        let daemon = Daemon::launch(roundsman(), &[&options[..], &listen, how, &command].concat(), 0);
        eventually("all are given up", seconds(60), || {
            (daemon.log().matches("slot given up").count() == 32).then_some(())
        });
        ran(&daemon)
    };
    let (without, relayed) = (cost(&[]), cost(&["--via", "relay"]));
    assert!(relayed < 12 * without + 50, "{relayed} ticks, {without} without a port");
}

#[test]
fn a_relay_worker_rests_when_a_listener_has_left_the_file() {
    // Under none the workers watch the listeners themselves, also those that go at the end of the reload.
    let (dir, ports) = (install_dir(), [free_port(), free_port()]);
    let upstream = crate::support::Upstream::echo();
    let file = |listen: &[u16]| {
        let listen: Vec<_> = listen.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let (upstream, policy) = (upstream.arg(), "policy = \"none\"\ninstances = 1");
        write_file(
            dir.path(),
            "proxy.toml",
            &format!("[service.proxy]\nupstream = [{upstream:?}]\nlisten = {listen:?}\n{policy}\n"),
        )
    };
    let path = file(&ports);
    let daemon = Daemon::launch(roundsman(), &["-c", path.to_str().unwrap()], ports[0]);
    daemon.wait_online(1);
    file(&ports[..1]);
    assert_eq!(bounded(&daemon, &["reload"]).0, 0);
    let sleeps = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.workers()[0])).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    // What the reload leaves to be done is done by then.
    std::thread::sleep(millis(500));
    let before = sleeps();
    std::thread::sleep(seconds(1));
    let all = sleeps() - before;
    assert!(all < 5, "{all} times in a second");
}

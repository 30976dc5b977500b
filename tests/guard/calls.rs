//! System calls per connection, by strace: one connection after the other, so nothing is saved by bursts. In this build the
//! standard library looks at each descriptor before it closes it (fcntl); a release has one call less for each close.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Daemon, Upstream, eventually, free_port, get, millis, roundsman, seconds};

const CONNECTIONS: u32 = 200;

/// Calls per connection of some processes while connections are made.
fn counted(pids: &[i32], connect: impl Fn()) -> BTreeMap<String, f64> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qqq", "-o"]).arg(file.path()).stderr(Stdio::piped());
    strace.args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    let mut strace = strace.spawn().unwrap();
    // With -qqq it does not say when it is attached: the threads' tracer does.
    let threads = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    eventually("attached", seconds(10), || {
        let traced = |path: std::path::PathBuf| {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
        };
        pids.iter().flat_map(threads).all(traced).then_some(())
    });
    for _ in 0..CONNECTIONS {
        connect();
    }
    std::thread::sleep(millis(300));
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let mut calls = BTreeMap::new();
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let call =
            line.split_whitespace().nth(1).and_then(|call| call.split_once('(')).map(|(name, _)| name.to_owned());
        if let Some(name) = call.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
            *calls.entry(name).or_insert(0.0) += 1.0 / f64::from(CONNECTIONS);
        }
    }
    calls
}

/// All calls together are at most that many per connection, and there were some.
#[track_caller]
fn at_most(what: &str, limit: f64, calls: &BTreeMap<String, f64>) {
    // The accept thread's alarm belongs to the time that a turn takes, not to a connection.
    let sum: f64 = calls
        .iter()
        .filter(|(name, _)| !["rt_sigreturn", "timer_settime"].contains(&name.as_str()))
        .map(|(_, n)| n)
        .sum();
    println!("{what}: {sum:.2} calls per connection: {calls:.2?}");
    assert!(sum > 1.0, "{what}: nothing was counted");
    assert!(sum <= limit, "{what}: {sum:.2} calls per connection, not {limit}: {calls:.2?}");
}

fn answers(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ping");
}

fn relaying(policy: &str) -> (Daemon, Upstream) {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-p", policy, "-u", &upstream.arg()]);
    daemon.wait_online(1);
    for _ in 0..20 {
        answers(daemon.port);
    }
    (daemon, upstream)
}

#[test]
fn the_master_hands_a_connection_over_with_six_calls() {
    let (daemon, _upstream) = relaying("rr");
    let calls = counted(&[daemon.pid() as i32], || answers(daemon.port));
    // epoll_wait, accept4 and its EAGAIN, sendmsg, close with its fcntl.
    at_most("master, rr", 6.3, &calls);
}

#[test]
fn a_relay_worker_carries_a_connection_with_few_calls() {
    for (policy, limit) in [("rr", 20.5), ("none", 20.8)] {
        let (daemon, _upstream) = relaying(policy);
        let calls = counted(&daemon.workers(), || answers(daemon.port));
        at_most(&format!("relay worker, {policy}"), limit, &calls);
        assert_eq!((calls["socket"].round(), calls["connect"].round()), (1.0, 1.0), "{calls:.2?}");
    }
}

#[test]
fn the_library_adds_few_calls_to_a_servers_accept() {
    let port = free_port();
    let node = "require('http').createServer((_, to) => to.end('ok')).listen(process.env.PORT)";
    let listen = format!("127.0.0.1:{port}");
    let daemon =
        Daemon::launch(roundsman(), &["-l", &listen, "--via", "direct", "-i", "1", "--", "node", "-e", node], port);
    daemon.wait_online(1);
    for _ in 0..20 {
        get(port).unwrap();
    }
    let calls = counted(&[daemon.pid() as i32], || drop(get(port).unwrap()));
    at_most("master, direct", 6.3, &calls);
    let calls = counted(&daemon.workers(), || drop(get(port).unwrap()));
    // A socket that is received instead of accepted: a look for a free descriptor (fcntl, close) and the receive itself.
    let of = |name: &str| calls.get(name).copied().unwrap_or(0.0);
    println!("server, direct: {calls:.2?}");
    assert_eq!(of("accept4") + of("accept"), 0.0, "{calls:.2?}");
    assert!((0.9..1.3).contains(&of("recvmsg")), "{calls:.2?}");
    assert!(of("fcntl") <= 1.1 && of("close") <= 2.1 && of("getpid") <= 1.1, "{calls:.2?}");
}

/// Serves one connection after the other.
const SERVER: &str = "
import os, socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
while True:
    c, _ = s.accept(); c.recv(1000)
    c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok'); c.close()
";

#[test]
fn an_access_log_costs_a_server_a_call_or_two_and_none_without_one() {
    let of_log = |more: &[&str]| {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let words = [&["-l", &listen, "--via", "direct", "-i", "1"], more, &["--", "python3", "-c", SERVER]].concat();
        let daemon = Daemon::launch(roundsman(), &words, port);
        daemon.wait_online(1);
        for _ in 0..20 {
            get(port).unwrap();
        }
        let calls = counted(&daemon.workers(), || drop(get(port).unwrap()));
        at_most(&format!("server, {more:?}"), 20.0, &calls);
        (calls.get("getsockopt").copied().unwrap_or(0.0), calls.values().sum::<f64>())
    };
    let (asked, without) = of_log(&[]);
    assert_eq!(asked, 0.0, "nothing is asked of a connection without a log");
    // What TCP knows of it; again where its FIN came meanwhile. The bell is rung for a reader that sleeps.
    let (asked, with) = of_log(&["--access-log", "/dev/null"]);
    assert!((0.9..=2.0).contains(&asked), "{asked:.2}");
    assert!(with - without <= 4.0, "{with:.2} calls per connection, {without:.2} without a log");
}

/// A client of a service with `--proxy-from`, which sends its header at once.
fn answers_behind_a_header(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.7 203.0.113.1 56324 443\r\nping").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ping");
}

#[test]
fn the_stage_costs_nothing_where_nothing_has_to_be_known() {
    let upstream = Upstream::echo();
    // Whose first bytes are looked at; calls for that (a peek, and a receive for the header) and all.
    for (from, of_stage, limit) in [("", 0.0, 6.3), ("10.0.0.0/8", 0.0, 6.3), ("127.0.0.1", 2.0, 8.5)] {
        let option = ["--proxy-from", from];
        let option = if from.is_empty() { &[][..] } else { &option };
        let daemon = Daemon::start(&[&["-i", "1", "-u", &upstream.arg()], option].concat());
        daemon.wait_online(1);
        let connect = || if of_stage > 0.0 { answers_behind_a_header(daemon.port) } else { answers(daemon.port) };
        (0..20).for_each(|_| connect());
        let calls = counted(&[daemon.pid() as i32], connect);
        at_most(&format!("master, --proxy-from {from:?}"), limit, &calls);
        let of = |name: &str| calls.get(name).copied().unwrap_or(0.0);
        // A header that has not come when its connection is accepted is waited for: now and then.
        let received = of("recvfrom");
        assert!(received >= of_stage - 0.01 && received <= of_stage * 1.2, "{from:?}: {calls:.2?}");
        assert!(of("epoll_ctl") <= of_stage * 0.3, "{from:?}: {calls:.2?}");
    }
}

#[test]
fn rules_about_addresses_cost_no_call_and_limits_two_each() {
    let upstream = Upstream::echo();
    let rules = ["--allow", "127.0.0.0/8,192.0.2.0/24", "--deny", "127.0.0.2", "--source-rate", "1000000/s"];
    for (options, limit, named) in [
        (&rules[..], 6.3, 0.0),
        // Its own address, and its cookie: a port of a balancer is used again and again.
        (&["--source-conns", "65536"], 8.3, 1.0),
        // A look; where the first byte comes later, it is waited for: two more looks at most, and epoll.
        (&["--first-byte-timeout", "5s"], 13.0, 0.0),
    ] {
        let daemon = Daemon::start(&[&["-i", "1", "-u", &upstream.arg()], options].concat());
        daemon.wait_online(1);
        (0..20).for_each(|_| answers(daemon.port));
        let calls = counted(&[daemon.pid() as i32], || answers(daemon.port));
        at_most(&format!("master, {options:?}"), limit, &calls);
        let of = |name: &str| calls.get(name).copied().unwrap_or(0.0);
        assert!((of("getsockname") - named).abs() < 0.02, "{options:?}: {calls:.2?}");
        assert_eq!(of("recvfrom") > 0.5, options[0] == "--first-byte-timeout", "{options:?}: {calls:.2?}");
        assert_eq!(of("sendto"), 0.0, "below the limit the kernel is not asked: {calls:.2?}");
    }
}

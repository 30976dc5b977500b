//! What happens at the edges of descriptors, memory and queues.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Daemon, Killed, Upstream, eventually, free_port, freeze, get, install_dir, millis, roundsman, seconds,
    unprivileged_copy,
};

fn echoes(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// The daemon under strace with an injected fault.
fn injected(fault: &str, arguments: &[&str]) -> Daemon {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new("strace");
    // -D: the daemon itself is our child, so it is the one that is killed at the end.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=accept4", "-e", &format!("inject={fault}")]);
    command.arg(env!("CARGO_BIN_EXE_roundsman"));
    let mut all = vec!["-l", &listen];
    all.extend(arguments);
    let daemon = Daemon::launch(command, &all, port);
    daemon.wait_for("listening");
    daemon
}

#[test]
fn accept_errors_delay_but_lose_nobody() {
    let upstream = Upstream::echo();
    for policy in ["rr", "none"] {
        for error in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EINTR", "EPROTO"] {
            // Every third accept fails.
            let daemon =
                injected(&format!("accept4:error={error}:when=1+3"), &["-i", "2", "-p", policy, "-u", &upstream.arg()]);
            let begin = Instant::now();
            let clients: Vec<_> = (0..30).map(|_| connect(daemon.port)).collect();
            clients.into_iter().for_each(|mut client| echoes(&mut client));
            assert!(begin.elapsed() < seconds(8), "{policy} {error}: {:?}", begin.elapsed());
        }
    }
}

#[test]
fn a_master_without_descriptors_waits_without_spinning_and_serves_when_some_are_free() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    echoes(&mut connect(daemon.port));
    let limit = |files: &str| {
        let limit = format!("--nofile={files}:400");
        let status = Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &limit]).status().unwrap();
        assert!(status.success());
    };
    limit("10");
    let mut clients: Vec<_> = (0..60).map(|_| connect(daemon.port)).collect();
    daemon.wait_for("cannot accept for now");
    let cpu = || {
        let path = format!("/proc/{}/task", daemon.pid());
        let tasks = std::fs::read_dir(path).unwrap().flatten();
        let nanos = tasks.map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        nanos.sum::<u64>()
    };
    let before = cpu();
    std::thread::sleep(millis(1000));
    let used = (cpu() - before) / 1_000_000;
    assert!(used < 50, "{used} ms of CPU in a second of waiting");
    // Descriptors become free: those in the backlog are served without a new client arriving.
    limit("400");
    let begin = Instant::now();
    clients.iter_mut().for_each(echoes);
    assert!(begin.elapsed() < millis(200), "{:?}", begin.elapsed());
    daemon.wait_for("accepting again");
}

#[test]
fn held_clients_leave_the_master_descriptors_for_a_new_worker() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:64", env!("CARGO_BIN_EXE_roundsman")]);
    let server = env!("CARGO_BIN_EXE_roundsman");
    let arguments = ["-l", &listen, "-i", "1", "--via", "relay", "--backoff", "1s..1s", "--", server, "demo-server"];
    let daemon = Daemon::launch(command, &arguments, port);
    daemon.wait_for("listening");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("relay worker exited");
    let clients: Vec<_> = (0..100).map(|_| std::thread::spawn(move || get(port))).collect();
    for client in clients {
        client.join().unwrap().unwrap();
    }
}

#[test]
fn a_worker_near_its_file_limit_stops_receiving_and_nothing_is_dropped() {
    for policy in ["rr", "none"] {
        let upstream = Upstream::echo();
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let mut command = Command::new("prlimit");
        command.args(["--nofile=200:200", env!("CARGO_BIN_EXE_roundsman")]);
        let daemon = Daemon::launch(command, &["-l", &listen, "-i", "1", "-p", policy, "-u", &upstream.arg()], port);
        daemon.wait_for("listening");
        let mut clients: Vec<_> = (0..400).map(|_| connect(port)).collect();
        daemon.wait_for("at its file limit");
        // First come, first served: as clients end, those behind them get their turn, all of them.
        for client in &mut clients {
            echoes(client);
            client.shutdown(std::net::Shutdown::Both).unwrap();
        }
        drop(clients);
        eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
        assert_eq!(daemon.total("connections"), 400, "{policy}");
        assert_eq!(daemon.total("restarts"), 0);
        daemon.wait_for("takes connections again");
    }
}

#[test]
fn too_many_descriptors_in_flight_is_back_pressure_for_an_unprivileged_daemon() {
    let upstream = Upstream::echo();
    let dir = install_dir();
    let copy = unprivileged_copy(dir.path());
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new("setpriv");
    // A user of its own: the count of descriptors in flight is per user.
    command.args(["--reuid=64001", "--regid=64001", "--clear-groups"]);
    command.args(["prlimit", "--nofile=100:100", copy.to_str().unwrap()]);
    let daemon = Daemon::launch(
        command,
        &["-l", &listen, "-i", "8", "-u", &upstream.arg(), "--stall-timeout", "1h", "--queue-timeout", "60s"],
        port,
    );
    daemon.wait_online(8);
    for pid in daemon.workers() {
        freeze(pid);
    }
    let mut clients: Vec<_> = (0..600).map(|_| connect(port)).collect();
    let mut last = 0;
    let pending = eventually("no more are taken", seconds(20), || {
        // Between two looks.
        std::thread::sleep(millis(100));
        let now = daemon.total("pending");
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(now)
    });
    assert!((80..=110).contains(&pending), "{pending} pending at a limit of 100");
    for pid in daemon.workers() {
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    }
    for client in &mut clients {
        echoes(client);
        client.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

#[test]
fn full_queues_hold_back_and_lose_nothing() {
    // More at once than caps, queues and budgets take; one stopped worker is all there is.
    let daemon =
        Daemon::start(&["-i", "1", "--stall-timeout", "1h", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    daemon.wait_online(1);
    let worker = Pid::from_raw(daemon.workers()[0]);
    freeze(worker.as_raw());
    let port = daemon.port;
    let mut clients: Vec<_> = (0..1500)
        .map(|_| {
            let mut stream = connect(port);
            stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            stream
        })
        .collect();
    eventually("the queue is at its cap", seconds(5), || (daemon.total("pending") == 64).then_some(()));
    kill(worker, Signal::SIGCONT).unwrap();
    for client in &mut clients {
        client.set_read_timeout(Some(seconds(20))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("hello from slot 0"));
    }
    assert_eq!(daemon.total("connections"), 1500);
    get(port).unwrap();
}

#[test]
fn an_idle_daemon_makes_no_system_call() {
    let upstream = Upstream::echo();
    for policy in ["rr", "none"] {
        let daemon = Daemon::start(&["-i", "2", "-p", policy, "-u", &upstream.arg()]);
        echoes(&mut connect(daemon.port));
        daemon.wait_online(2);
        eventually("it is idle", seconds(5), || (daemon.total("open") == 0).then_some(()));
        // Whatever a connection's end leaves to be done is done by then.
        std::thread::sleep(millis(500));
        let mut pids = daemon.workers();
        pids.push(daemon.pid() as i32);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/stdout"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        for pid in &pids {
            strace.args(["-p", &pid.to_string()]);
        }
        let mut strace = strace.spawn().unwrap();
        let mut attached = BufReader::new(strace.stderr.take().unwrap()).lines();
        for _ in &pids {
            let line = attached.next().unwrap().unwrap();
            assert!(line.contains("attached"), "{line}");
        }
        std::thread::sleep(seconds(5));
        kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
        let output = strace.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // Attaching interrupts what each thread waits in: that call shows once, as unfinished, restarted, or begun.
        let calls: Vec<_> =
            text.lines().filter(|line| !line.contains("<detached") && !line.contains("resuming")).collect();
        let mut threads: Vec<_> = calls.iter().filter_map(|line| line.split_whitespace().next()).collect();
        let all = threads.len();
        threads.sort_unstable();
        threads.dedup();
        assert!(threads.len() >= pids.len() && all <= 2 * threads.len(), "{policy}: {text}");
        assert!(!calls.iter().any(|line| line.contains("epoll_wait") && line.contains(") = ")), "{policy}: {text}");
    }
}

#[test]
fn a_relay_worker_is_small_and_so_is_an_idle_connection() {
    let Some(release) = release() else { return };
    let upstream = Upstream::echo();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let daemon = Daemon::launch(Command::new(release), &["-l", &listen, "-i", "1", "-u", &upstream.arg()], port);
    daemon.wait_for("worker online");
    let rss = || daemon.slot(0, "rss_bytes").as_u64().unwrap();
    echoes(&mut connect(port));
    let before = rss();
    assert!(before <= 4 << 20, "{before} bytes idle");
    let mut clients: Vec<_> = (0..2000).map(|_| connect(port)).collect();
    clients.iter_mut().for_each(echoes);
    let per_connection = (rss() - before) / 2000;
    assert!(per_connection <= 1024, "{per_connection} bytes per idle connection");
}

/// The release binary, built once: memory is promised for what people run.
fn release() -> Option<std::path::PathBuf> {
    let status = Command::new(env!("CARGO")).args(["build", "--release", "--quiet"]).status().unwrap();
    assert!(status.success());
    let target = std::path::Path::new(env!("CARGO_BIN_EXE_roundsman")).parent()?.parent()?;
    Some(target.join("release/roundsman"))
}

#[test]
fn the_daemon_says_so_when_it_has_no_place_for_its_control_socket() {
    let upstream = Upstream::echo();
    let port = free_port();
    let mut command = roundsman();
    command.env("ROUNDSMAN_CONTROL", "/proc/no/such/place.sock");
    command.args(["-l", &format!("127.0.0.1:{port}"), "-i", "1", "-u", &upstream.arg()]).stderr(Stdio::piped());
    let mut child = Killed::spawn(&mut command);
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("no control socket")));
    eventually("it serves all the same", seconds(10), || TcpStream::connect(("127.0.0.1", port)).ok());
}

//! Bytes: all of them, in order, with the end that they had.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::streams::play_cases;
use crate::support::{Daemon, Upstream, eventually, millis, read_all, seconds};

#[test]
fn a_thousand_random_streams_arrive_whole_and_end_as_they_ended() {
    play_cases("rr", 0..1000);
}

#[test]
fn under_none_as_well() {
    play_cases("none", 5000..5200);
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    let upstream = Upstream::start(|mut stream| {
        let chunk = vec![7; 1 << 20];
        loop {
            stream.write_all(&chunk)?;
        }
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let rss = || daemon.slot(0, "rss_bytes").as_u64().unwrap();
    let before = rss();
    let mut clients: Vec<_> = (0..50).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    for client in &mut clients {
        client.read_exact(&mut [0; 100_000]).unwrap();
    }
    // As long as it takes for all buffers to be full.
    let mut last = 0;
    eventually("memory settles", seconds(20), || {
        // Between two looks.
        std::thread::sleep(millis(200));
        let now = rss();
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let grown = last.saturating_sub(before);
    assert!(grown < 50 * 80 * 1024 + (1 << 20), "{grown} bytes for 50 clients that do not read");
}

#[test]
fn a_long_stream_is_spliced_and_small_messages_are_not() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let worker = daemon.workers()[0].to_string();
    let count = |work: &dyn Fn()| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace");
        let mut strace = std::process::Command::new("strace")
            .args(["-f", "-e", "trace=splice", "-o", file.to_str().unwrap(), "-p", &worker])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(strace.stderr.take().unwrap()), &mut String::new()).unwrap();
        work();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::Signal::SIGINT)
            .unwrap();
        strace.wait().unwrap();
        std::fs::read_to_string(file).unwrap().matches("splice(").count()
    };
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let ping = |mut stream: &TcpStream| {
        for _ in 0..50 {
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
        }
    };
    assert_eq!(count(&|| ping(&stream)), 0);
    let long = |stream: &TcpStream| {
        std::thread::scope(|scope| {
            scope.spawn(|| { stream }.write_all(&vec![1; 16 << 20]).unwrap());
            { stream }.read_exact(&mut vec![0; 16 << 20]).unwrap();
        });
    };
    assert!(count(&|| long(&stream)) > 20);
    ping(&stream);
    assert!(count(&|| ping(&stream)) < 30, "back to copying when idle");
    stream.write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stream).unwrap(), b"x");
}

#[test]
fn idle_connections_are_closed_after_the_idle_timeout_and_busy_ones_are_not() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg(), "--idle-timeout", "600ms"]);
    let mut idle = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let mut busy = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    idle.set_read_timeout(Some(seconds(10))).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0]).unwrap();
    let begin = Instant::now();
    let watcher = std::thread::spawn(move || (idle.read(&mut [0]).unwrap_or(0), begin.elapsed()));
    for _ in 0..40 {
        busy.write_all(b"y").unwrap();
        busy.read_exact(&mut [0]).unwrap();
        std::thread::sleep(millis(50));
    }
    let (n, after) = watcher.join().unwrap();
    assert_eq!(n, 0);
    assert!((millis(500)..seconds(3)).contains(&after), "closed after {after:?}");
}

#[test]
fn both_sides_have_tcp_keep_alive() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let timers = |filter: &str| {
        let output = std::process::Command::new("ss").args(["-Htno", filter]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let client_side = timers(&format!("sport = :{}", daemon.port));
    assert!(client_side.contains("keepalive"), "{client_side}");
    // The upstream's socket gets it when the connection turns out to last.
    eventually("keep-alive on the upstream's socket", seconds(30), || {
        timers(&format!("dport = :{}", upstream.address.port())).contains("keepalive").then_some(())
    });
}

#[test]
fn small_messages_are_not_held_back() {
    // Without TCP_NODELAY the second small write of a pair waits for a delayed acknowledgement: 40 ms.
    let upstream = Upstream::start(|mut stream| {
        stream.set_nodelay(true)?;
        let mut two = [0; 2];
        loop {
            stream.read_exact(&mut two)?;
            stream.write_all(&two[..1])?;
            std::thread::sleep(millis(1));
            stream.write_all(&two[1..])?;
        }
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    SockRef::from(&stream).set_tcp_nodelay(true).unwrap();
    let begin = Instant::now();
    for _ in 0..50 {
        stream.write_all(b"a").unwrap();
        std::thread::sleep(millis(1));
        stream.write_all(b"b").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_millis(50 * 20), "{:?} for 50 exchanges", begin.elapsed());
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let upstream = Upstream::start(|mut stream| stream.write_all(b"220 hello\r\n"));
    let daemon = Daemon::start(&["-i", "2", "-u", &upstream.arg()]);
    for _ in 0..100 {
        assert_eq!(read_all(&mut TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).unwrap(), b"220 hello\r\n");
    }
}

#[test]
fn a_listener_that_vanishes_between_connections_is_no_matter() {
    // A port that is bound by nobody in between: the client waits for the next server, not for an error.
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    let daemon = Daemon::start(&["-i", "1", "-u", &address.to_string()]);
    drop(first);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"kept").unwrap();
    let waiting = || daemon.ls()["services"][0]["waiting_for_upstream"] == 1;
    eventually("it waits for an upstream", seconds(10), || waiting().then_some(()));
    let second = TcpListener::bind(address).unwrap();
    let (mut served, _) = second.accept().unwrap();
    let mut word = [0; 4];
    served.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"kept");
}

#[test]
fn the_last_bytes_before_a_fin_that_a_reset_follows_come_at_once() {
    let ((go, wait), (arrived, at_upstream)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |mut stream| {
        stream.read_exact(&mut [0; 4])?;
        arrived.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        stream.write_all(b"the answer")?;
        stream.shutdown(Shutdown::Write)?;
        SockRef::from(&stream).set_linger(Some(seconds(0)))
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    daemon.wait_online(1);
    let worker = nix::unistd::Pid::from_raw(daemon.workers()[0]);
    // The least of several: what is held back until a timer ends (200 ms) is held back every time.
    let took = (0..10).map(|_| {
        let mut client = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        client.write_all(b"ping").unwrap();
        at_upstream.recv_timeout(seconds(20)).unwrap();
        // The worker finds it all at once: the answer, its end, the reset, and bytes that it cannot pass on any more.
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
        go.send(()).unwrap();
        client.write_all(b"more").unwrap();
        // The upstream's thread has done its part by then; what is in a stopped process's sockets is no state to wait for.
        std::thread::sleep(millis(20));
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGCONT).unwrap();
        let begin = Instant::now();
        let mut answer = [0; 10];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"the answer");
        begin.elapsed()
    });
    let took = took.min().unwrap();
    assert!(took < millis(100), "{took:?}");
}

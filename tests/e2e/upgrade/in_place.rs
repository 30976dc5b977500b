//! `roundsman upgrade` under load: no connection is refused, reset, cut or left without an answer.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use nix::sys::signal::Signal;

use super::{Site, answer, ask, descriptors, resident, tell, upgraded};
use crate::support::{eventually, get, install_dir, millis, seconds, unprivileged_copy};

/// Ends the clients.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn under_load(via: &str, times: usize, options: &[&str]) {
    let site = Site::start(via, 2, options);
    let (stop, short, kept) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let servers = |site: &Site| -> Vec<(u64, u64, u64)> {
        let of = |slot: &serde_json::Value, name: &str| slot[name].as_u64().unwrap_or(0);
        let pid = |slot: &serde_json::Value| of(slot, "server_pid").max(of(slot, "pid"));
        site.daemon.slots().iter().map(|slot| (pid(slot), of(slot, "generation"), of(slot, "restarts"))).collect()
    };
    let before = servers(&site);
    std::thread::scope(|scope| {
        // Also when an assertion fails: the clients would be waited for.
        let _stop = Stops(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    get(site.port).unwrap();
                    short.fetch_add(1, SeqCst);
                    std::thread::sleep(millis(1));
                }
            });
            scope.spawn(|| {
                let mut stream = site.connect();
                while !stop.load(SeqCst) {
                    ask(&mut stream, "POST", "/").unwrap();
                    kept.fetch_add(1, SeqCst);
                    std::thread::sleep(millis(1));
                }
            });
        }
        let (flat, mut memory) = (descriptors(&site.daemon), 0);
        for round in 0..times {
            let (short_before, kept_before) = (short.load(SeqCst), kept.load(SeqCst));
            upgraded(&site.daemon);
            eventually("requests of both kinds", seconds(20), || {
                (short.load(SeqCst) > short_before + 5 && kept.load(SeqCst) > kept_before + 5).then_some(())
            });
            // Connections under way come and go, and the way back is open for a moment.
            eventually(&format!("{flat} descriptors in round {round}"), seconds(20), || {
                (descriptors(&site.daemon) <= flat + 10).then_some(())
            });
            if round == 2 {
                memory = resident(&site.daemon);
            }
        }
        let grown = resident(&site.daemon).saturating_sub(memory);
        assert!(grown < 4 << 20, "{grown} bytes more than after the third");
    });
    assert_eq!(servers(&site), before, "the same servers");
    // None was counted twice, or forgotten.
    assert_eq!(site.daemon.total("connections"), (short.load(SeqCst) + 3) as u64);
    let service = site.daemon.ls()["services"][0].clone();
    assert_eq!((service["shed"].as_u64(), service["held"].as_u64()), (Some(0), Some(0)), "{service}");
}

#[test]
fn direct_delivery_under_load() {
    under_load("direct", 3, &[]);
    under_load("direct", 3, &["--policy", "none"]);
}

#[test]
fn delivery_by_relay_under_load() {
    under_load("relay", 3, &[]);
}

#[test]
#[ignore = "long"]
fn twenty_times_under_load() {
    under_load("direct", 20, &[]);
    under_load("direct", 20, &["--policy", "none"]);
    under_load("relay", 20, &[]);
}

#[test]
fn clients_that_wait_in_the_line_get_their_turn_in_order() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 1, &["--worker-conns", "1"]);
        let mut first = site.connect();
        write!(first, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let held = || site.daemon.ls()["services"][0]["held"].as_u64().unwrap();
        let open = || site.daemon.total("open");
        eventually("the first one", seconds(10), || (open() == 1).then_some(()));
        let mut waiting: Vec<TcpStream> = Vec::new();
        for n in 0..5 {
            let mut stream = site.connect();
            write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            waiting.push(stream);
            eventually("it waits", seconds(10), || (held() == n + 1).then_some(()));
        }
        upgraded(&site.daemon);
        assert_eq!((held(), open()), (5, 1), "{via}");
        upgraded(&site.daemon);
        std::fs::write(site.dir.path().join("go"), "").unwrap();
        answer(&mut first).unwrap();
        drop(first);
        // Each makes room for the next one by its end.
        for mut stream in waiting {
            answer(&mut stream).unwrap();
        }
        let shed = site.daemon.ls()["services"][0]["shed"].as_u64();
        assert_eq!((held(), site.daemon.total("connections"), shed), (0, 6, Some(0)), "{via}");
    }
}

#[test]
fn clients_of_which_something_is_awaited_go_on_where_they_were() {
    let site = Site::start("direct", 1, &["--first-byte-timeout", "60s", "--proxy-from", "127.0.0.1"]);
    let intake = |name: &str| site.daemon.ls()["services"][0]["intake"][name].as_u64().unwrap();
    let header = "PROXY TCP4 192.0.2.7 192.0.2.8 1000 80\r\n";
    // Their headers were taken off, and nothing else has come.
    let mut half: Vec<TcpStream> = (0..5).map(|_| site.connect()).collect();
    half.iter_mut().for_each(|stream| stream.write_all(header.as_bytes()).unwrap());
    eventually("five headers", seconds(20), || (intake("proxy_headers") == 5).then_some(()));
    // They have 3 seconds for their headers, which may be over.
    let silent: Vec<TcpStream> = (0..5).map(|_| site.connect()).collect();
    eventually("all are there", seconds(20), || (intake("waiting") >= 6).then_some(()));
    upgraded(&site.daemon);
    let mut in_time = 0;
    for mut stream in silent {
        let answer = stream.write_all(header.as_bytes()).and_then(|()| ask(&mut stream, "GET", "/"));
        in_time += u64::from(answer.is_ok());
    }
    let late = site.daemon.ls()["services"][0]["intake"]["refused"]["proxy-timeout"].as_u64().unwrap();
    assert_eq!((in_time + late, intake("proxy_headers")), (5, 5 + in_time));
    for stream in &mut half {
        ask(stream, "GET", "/").unwrap();
    }
    assert_eq!(intake("waiting"), 0);
}

#[test]
fn the_signal_finds_the_program_whose_file_was_replaced() {
    let dir = install_dir();
    let copy = unprivileged_copy(dir.path());
    let (port, mut command) = (crate::support::free_port(), std::process::Command::new(&copy));
    let listen = format!("127.0.0.1:{port}");
    let mut daemon = crate::support::Daemon::launch(
        {
            command.stdin(std::process::Stdio::null());
            command
        },
        &["-l", &listen, "-i", "1", "--via", "relay", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"],
        port,
    );
    daemon.wait_online(1);
    std::fs::remove_file(&copy).unwrap();
    // There is none.
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for("not upgraded: cannot run");
    unprivileged_copy(dir.path());
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for("upgraded from=");
    assert_eq!(std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap(), copy);
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid())).unwrap(), "roundsman\n");
    get(port).unwrap();
    assert_eq!(tell(&daemon, &["health"]).0, 0);
    assert_eq!(daemon.stop().code(), 0);
}

/// Open connections that were used before are used after.
fn open_connections_stay(count: usize, times: usize) {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 2, &[]);
        let mut streams: Vec<TcpStream> = (0..count).map(|_| site.connect()).collect();
        for stream in &mut streams {
            ask(stream, "GET", "/").unwrap();
        }
        for _ in 0..times {
            upgraded(&site.daemon);
        }
        assert_eq!(site.daemon.total("open"), count as u64);
        for stream in &mut streams {
            ask(stream, "POST", "/").unwrap();
        }
        assert_eq!(site.daemon.total("connections"), count as u64);
    }
}

#[test]
fn a_thousand_open_connections_stay() {
    open_connections_stay(1000, 1);
}

#[test]
#[ignore = "long"]
fn a_thousand_open_connections_stay_through_ten_upgrades() {
    open_connections_stay(1000, 10);
}

#[test]
fn clients_of_a_unix_socket_stay() {
    let (dir, upstream) = (install_dir(), crate::support::Upstream::echo());
    let path = dir.path().join("s");
    let listen = format!("unix:{}", path.display());
    let mut daemon = crate::support::Daemon::launch(
        crate::support::roundsman(),
        &["-n", "web", "-l", &listen, "-i", "1", "-u", &upstream.arg()],
        0,
    );
    daemon.wait_online(1);
    let echoes = |stream: &mut std::os::unix::net::UnixStream| {
        let mut word = [0; 5];
        stream.write_all(b"hello").unwrap();
        std::io::Read::read_exact(stream, &mut word).unwrap();
        assert_eq!(&word, b"hello");
    };
    let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut kept = connect();
    echoes(&mut kept);
    for _ in 0..2 {
        upgraded(&daemon);
        echoes(&mut kept);
        echoes(&mut connect());
    }
    drop(kept);
    assert_eq!(daemon.stop().code(), 0);
    assert!(!path.exists());
}

//! `--admin`: health and metrics over HTTP, and what nobody can do to the data path by it.

use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::support::{Daemon, eventually, free_port, get, is_closed, millis, read_all, roundsman, seconds};

struct Watched {
    daemon: Daemon,
    admin: u16,
}

impl Watched {
    fn start(more: &[&str]) -> Self {
        let admin = free_port();
        let address = admin.to_string();
        let mut all = vec!["--admin", &address, "--min-uptime", "100ms", "-i", "2", "--name", "shop"];
        all.extend(more);
        all.extend(["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
        Self { daemon: Daemon::start(&all), admin }
    }

    /// Status and body.
    fn ask(&self, path: &str) -> (u16, String) {
        self.ask_as(path, "127.0.0.1").unwrap()
    }

    fn ask_as(&self, path: &str, host: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin))?;
        stream.set_read_timeout(Some(seconds(10)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let text = String::from_utf8_lossy(&read_all(&mut stream)?).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// A value of /metrics.
    fn metric(&self, line: &str) -> u64 {
        let (status, text) = self.ask("/metrics");
        assert_eq!(status, 200, "{text}");
        let found = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or_else(|| panic!("no {line} in {text}"))
    }
}

#[test]
fn it_is_alive_from_the_start_and_ready_while_there_is_a_worker_and_no_stop() {
    let mut watched = Watched::start(&["--stop-delay", "2s"]);
    watched.daemon.wait_online(2);
    assert_eq!(watched.ask("/livez"), (200, "ok\n".into()));
    eventually("ready", seconds(5), || (watched.ask("/readyz").0 == 200).then_some(()));
    let verb = |verb: &str| {
        let output = roundsman().arg(verb).env("ROUNDSMAN_CONTROL", watched.daemon.control()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    verb("stop");
    let (status, why) =
        eventually("not ready", seconds(5), || Some(watched.ask("/readyz")).filter(|(status, _)| *status == 503));
    assert_eq!((status, why.as_str()), (503, "shop: none of 2 workers is online\n"));
    assert_eq!(watched.ask("/livez").0, 200);
    verb("start");
    eventually("ready again", seconds(5), || (watched.ask("/readyz").0 == 200).then_some(()));
    // From the stop signal on: still accepting, no longer ready.
    watched.daemon.signal(Signal::SIGTERM);
    eventually("not ready", seconds(2), || {
        (watched.ask("/readyz") == (503, "the daemon is stopping\n".into())).then_some(())
    });
    get(watched.daemon.port).unwrap();
    assert_eq!(watched.daemon.finish(seconds(15)).code(), 0);
}

#[test]
fn counters_are_right_and_never_fall() {
    let watched = Watched::start(&[]);
    watched.daemon.wait_online(2);
    for _ in 0..10 {
        get(watched.daemon.port).unwrap();
    }
    let counter =
        |name: &str, slot: u32| watched.metric(&format!("roundsman_{name}_total{{service=\"shop\",slot=\"{slot}\"}}"));
    // A worker that the machine holds up has its queue taken back, and that is counted with both.
    let served = |slot: u32| counter("connections", slot) - counter("rescued", slot);
    eventually("ten connections", seconds(5), || (served(0) + served(1) == 10).then_some(()));
    assert_eq!(watched.metric("roundsman_slots_online{service=\"shop\"}"), 2);
    let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", watched.daemon.control()).output().unwrap();
    assert!(reload.status.success());
    let pid = nix::unistd::Pid::from_raw(watched.daemon.workers()[0]);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    eventually("a new worker", seconds(10), || {
        (watched.metric("roundsman_workers_started_total{service=\"shop\",slot=\"0\"}") >= 3).then_some(())
    });
    assert_eq!(served(0) + served(1), 10);
    assert_eq!(watched.metric("roundsman_reloads_total{service=\"shop\"}"), 1);
    let (_, text) = watched.ask("/metrics");
    assert!(text.ends_with("# EOF\n") && !text.contains("pid") && !text.contains("127.0.0.1"), "{text}");
}

#[test]
fn the_latency_of_hand_offs_bytes_and_errors_outlive_the_workers_that_counted_them() {
    for via in ["relay", "direct"] {
        let (admin, port) = (free_port(), free_port());
        let (address, listen) = (admin.to_string(), format!("127.0.0.1:{port}"));
        let all =
            ["--via", via, "-l", &listen, "--admin", &address, "--min-uptime", "100ms", "-i", "2", "--name", "shop"];
        let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
        // A direct server has to be a dynamic program that binds by libc.
        let node =
            ["--", "node", "-e", "require('http').createServer((_, to) => to.end('hi')).listen(process.env.PORT)"];
        let server = if via == "direct" { &node[..] } else { &server[..] };
        let daemon = Daemon::launch(roundsman(), &[&all[..], server].concat(), port);
        let watched = Watched { daemon, admin };
        watched.daemon.wait_online(2);
        let sum = |name: &str, more: &str| -> u64 {
            let of = |slot| watched.metric(&format!("roundsman_{name}{{{more}service=\"shop\",slot=\"{slot}\"}}"));
            of(0) + of(1)
        };
        let counted = || sum("handoff_latency_seconds_count", "");
        for round in 1..=2 {
            for _ in 0..10 {
                get(watched.daemon.port).unwrap();
            }
            eventually("all counted", seconds(5), || (counted() == round * 10).then_some(()));
            let reload = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", watched.daemon.control()).output().unwrap();
            assert!(reload.status.success());
        }
        let (_, text) = watched.ask("/metrics");
        let in_a_second: u64 = (text.lines())
            .filter(|line| line.starts_with("roundsman_handoff_latency_seconds_bucket{le=\"0.536870912\""))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(in_a_second, 20, "{text}");
        assert!(text.contains("roundsman_errors_total{service=\"shop\",slot=\"0\",kind=\"upstream_unreachable\"} 0"));
        match via {
            "relay" => assert!(sum("received_bytes_total", "") >= 20 * 10 && sum("sent_bytes_total", "") >= 20 * 10),
            // The servers have the connections themselves.
            _ => assert!(!text.contains("received_bytes_total{"), "{text}"),
        }
    }
}

#[test]
fn a_connection_without_an_upstream_is_counted_as_an_error() {
    let (admin, listen) = (free_port().to_string(), free_port().to_string());
    let closed = format!("127.0.0.1:{}", free_port());
    let limits = ["--connect-timeout", "300ms", "--admin", &admin, "-i", "1", "--name", "shop"];
    let daemon = Daemon::start(&[&["-l", &listen, "-u", &closed][..], &limits].concat());
    let watched = Watched { daemon, admin: admin.parse().unwrap() };
    watched.daemon.wait_online(1);
    let _ = get(listen.parse().unwrap());
    let line = "roundsman_errors_total{service=\"shop\",slot=\"0\",kind=\"upstream_unreachable\"}";
    eventually("counted", seconds(10), || (watched.metric(line) == 1).then_some(()));
}

#[test]
fn abuse_costs_the_abuser_and_not_the_data_path() {
    let watched = Watched::start(&[]);
    watched.daemon.wait_online(2);
    // A name that leads here is not enough.
    assert_eq!(watched.ask_as("/livez", "evil.example").unwrap().0, 421);
    assert_eq!(watched.ask_as("/livez", "localhost:80").unwrap().0, 200);
    assert_eq!(watched.ask_as("/livez", "[::1]:80").unwrap().0, 200);
    assert_eq!(watched.ask("/nothing").0, 404);
    // More connections than there is room for, that say nothing: they are thrown out, and it answers again.
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", watched.admin)).unwrap()).collect();
    for stream in &silent {
        let _ = (&mut &*stream).write_all(b"GET /livez HT");
    }
    // Heads without an end, and bodies.
    let mut endless = TcpStream::connect(("127.0.0.1", watched.admin)).unwrap();
    let _ = endless.set_write_timeout(Some(millis(200)));
    for _ in 0..64 {
        if endless.write_all(&[b'a'; 16 * 1024]).is_err() {
            break;
        }
    }
    let begin = std::time::Instant::now();
    for _ in 0..200 {
        get(watched.daemon.port).unwrap();
    }
    assert!(begin.elapsed() < seconds(4), "{:?}", begin.elapsed());
    eventually("it answers", seconds(20), || {
        watched.ask_as("/livez", "127.0.0.1").ok().filter(|(status, _)| *status == 200)
    });
    drop(silent);
    // A head that takes too long ends its connection, and sooner than any connection ends (10 s).
    let begin = std::time::Instant::now();
    let mut slow = TcpStream::connect(("127.0.0.1", watched.admin)).unwrap();
    slow.write_all(b"GET /livez HT").unwrap();
    slow.set_read_timeout(Some(seconds(20))).unwrap();
    assert!(is_closed(&mut slow) && begin.elapsed() < seconds(9), "{:?}", begin.elapsed());
    let rss = roundsman::sys::process::rss_bytes(watched.daemon.pid());
    assert!(rss < 40 << 20, "{rss}");
}

#[test]
fn an_address_that_cannot_be_had_ends_the_start() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let listen = free_port().to_string();
    let output = roundsman().args(["-l", &listen, "-u", "127.0.0.1:1", "--admin", &port]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(71) && text.contains(&format!("cannot listen on 127.0.0.1:{port} (--admin)")),
        "{text}"
    );
    let output = roundsman().args(["--admin", "example.org:80", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

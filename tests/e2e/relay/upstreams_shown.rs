//! Upstreams as the service sees them, over all its workers: turns, state, counts, health.
//! Mostly waits: tests/run runs it beside others.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Daemon, Upstream, eventually, free_port, install_dir, read_all, roundsman, seconds, write_file};

/// Sends "1234" and reads to the end.
fn ask(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(seconds(20)))?;
    stream.write_all(b"1234")?;
    Ok(String::from_utf8_lossy(&read_all(&mut stream)?).into_owned())
}

/// Reads four bytes, says who it is, and closes. It can listen on a port of one's choice, and stop.
struct Server {
    listener: TcpListener,
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(name: &'static str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (accepts, ends) = (listener.try_clone().unwrap(), over.clone());
        let thread = std::thread::spawn(move || {
            for stream in accepts.incoming().map_while(Result::ok) {
                if ends.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || answer(stream, name));
            }
        });
        Self { listener, over, thread: Some(thread) }
    }
}

/// A probe says nothing.
fn answer(mut stream: TcpStream, name: &str) {
    if stream.read_exact(&mut [0; 4]).is_ok() {
        let _ = stream.write_all(name.as_bytes());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = TcpStream::connect(self.listener.local_addr().unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn upstreams(daemon: &Daemon) -> Vec<Value> {
    daemon.ls()["services"][0]["upstreams"].as_array().unwrap().clone()
}

fn sum(daemon: &Daemon, field: &str) -> u64 {
    upstreams(daemon).iter().map(|upstream| upstream[field].as_u64().unwrap()).sum()
}

fn states(daemon: &Daemon) -> Vec<String> {
    upstreams(daemon).iter().map(|upstream| upstream["state"].as_str().unwrap().to_owned()).collect()
}

/// Exit code and text of a command.
fn command(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

/// Status and body of an admin page.
fn page(admin: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let text = String::from_utf8_lossy(&read_all(&mut stream).unwrap()).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn one_rotation_for_all_workers() {
    let ports = [free_port(), free_port()];
    let _servers = [Server::start("a", ports[0]), Server::start("b", ports[1])];
    let [a, b] = ports.map(|port| format!("127.0.0.1:{port}"));
    let daemon = Daemon::start(&["-i", "2", "-u", &a, "-u", &b]);
    daemon.wait_online(2);
    // On a busy machine a worker may still have a connection open that is over: fewest open comes before the turn. With a
    // rotation per worker each of the two goes a, b, a, b, and together they never do for so long.
    let connections = || daemon.slots().iter().map(|slot| slot["connections"].as_u64().unwrap()).collect::<Vec<_>>();
    eventually("strict turns over both workers", seconds(30), || {
        let before = connections();
        let order: String = (0..20).map(|_| ask(daemon.port).unwrap()).collect();
        let both = connections().iter().zip(before).all(|(after, before)| after - before >= 8);
        (both && order.contains("abababababab")).then_some(())
    });
}

#[test]
fn fewest_open_counts_the_connections_of_all_workers_and_none_of_a_dead_one() {
    let all = [Upstream::echo(), Upstream::echo()];
    let [a, b] = all.each_ref().map(Upstream::arg);
    let daemon = Daemon::start(&["-i", "4", "-u", &a, "-u", &b, "--backoff", "10ms..50ms"]);
    daemon.wait_online(4);
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    // Of twenty over four workers, all that went to one upstream end.
    let kept: Vec<_> = (0..20)
        .map(|_| {
            let before = all[0].count();
            (connect(), all[0].count() > before)
        })
        .collect();
    assert_eq!(all.each_ref().map(Upstream::count), [10, 10]);
    let (of_a, of_b): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(_, of_a)| *of_a);
    drop(of_a);
    eventually("they are gone", seconds(5), || {
        let open: Vec<_> = upstreams(&daemon).iter().map(|upstream| upstream["open"].as_u64().unwrap()).collect();
        (open == [0, 10]).then_some(())
    });
    let more: Vec<_> = (0..10).map(|_| connect()).collect();
    assert_eq!(all.each_ref().map(Upstream::count), [20, 10], "all ten went to the emptier one");
    // Every worker is killed: nothing is open any more, and what was counted stays.
    for worker in daemon.workers() {
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    }
    eventually("nothing is open", seconds(10), || (sum(&daemon, "open") == 0).then_some(()));
    assert_eq!(sum(&daemon, "connections"), 30);
    drop((more, of_b));
    daemon.wait_online(4);
    let _kept: Vec<_> = (0..10).map(|_| connect()).collect();
    let counts = all.each_ref().map(Upstream::count);
    assert_eq!([counts[0] - 20, counts[1] - 10], [5, 5], "the dead workers' connections are not counted");
}

#[test]
fn state_counts_and_errors_are_shown_and_said_once() {
    let (good, dead, admin) = (free_port(), free_port(), free_port().to_string());
    let _server = Server::start("good", good);
    let [a, b] = [dead, good].map(|port| format!("127.0.0.1:{port}"));
    let daemon = Daemon::start(&["-i", "4", "--name", "px", "--admin", &admin, "-u", &a, "-u", &b]);
    daemon.wait_online(4);
    assert_eq!(states(&daemon), ["up", "up"], "what was never tried counts as up");
    for _ in 0..40 {
        assert_eq!(ask(daemon.port).unwrap(), "good");
    }
    // A worker counts what it has written.
    eventually("all is counted", seconds(5), || {
        ((sum(&daemon, "bytes_out"), sum(&daemon, "open")) == (160, 0)).then_some(())
    });
    let shown = upstreams(&daemon);
    assert_eq!([&shown[0]["addr"], &shown[1]["addr"]], [&Value::from(a.clone()), &Value::from(b.clone())]);
    assert_eq!(states(&daemon), ["down", "up"]);
    assert_eq!([shown[0]["connections"].as_u64(), shown[1]["connections"].as_u64()], [Some(0), Some(40)]);
    assert_eq!([shown[1]["bytes_in"].as_u64(), shown[1]["bytes_out"].as_u64()], [Some(160), Some(160)]);
    assert!(shown[0]["errors"].as_u64().unwrap() >= 1 && shown[1]["errors"] == 0, "{shown:?}");
    assert!(shown[0]["last_error"].as_str().unwrap().contains("refused"), "{shown:?}");
    assert_eq!(shown[1]["last_error"], Value::Null);
    assert_eq!(daemon.log().matches("upstream down").count(), 1, "once for the service, not per worker");
    // One of two is enough.
    assert_eq!(command(&daemon, &["health"]).0, 0);
    let admin = admin.parse().unwrap();
    assert_eq!(page(admin, "/readyz").0, 200);
    let (_, text) = page(admin, "/metrics");
    for (metric, labels, value) in [
        ("upstream_up", format!("upstream=\"{a}\""), "0"),
        ("upstream_up", format!("upstream=\"{b}\""), "1"),
        ("upstream_connections_total", format!("upstream=\"{b}\""), "40"),
        ("upstream_bytes_total", format!("upstream=\"{b}\",direction=\"in\""), "160"),
        ("upstream_bytes_total", format!("upstream=\"{b}\",direction=\"out\""), "160"),
        ("upstream_errors_total", format!("upstream=\"{b}\""), "0"),
        ("upstream_open", format!("upstream=\"{a}\""), "0"),
    ] {
        let line = format!("roundsman_{metric}{{service=\"px\",{labels}}} {value}\n");
        assert!(text.contains(&line), "no {line:?} in {text}");
    }
    let (_, text) = command(&daemon, &["ls", "px"]);
    let row = |address: &str| text.lines().find(|line| line.trim_start().starts_with(address)).unwrap().to_owned();
    assert!(row(&a).contains("down") && row(&a).contains("refused"), "{text}");
    assert!(row(&b).contains("up") && row(&b).contains("40"), "{text}");
    for verb in ["ls", "health"] {
        let (_, text) = command(&daemon, &[verb]);
        assert!(text.contains("1 of 2 upstreams up"), "{text}");
    }
    // The dead one comes back: one worker's client finds it, and all use it.
    let _back = Server::start("back", dead);
    eventually("it is used", seconds(30), || (ask(daemon.port).unwrap() == "back").then_some(()));
    eventually("it is up", seconds(5), || (states(&daemon) == ["up", "up"]).then_some(()));
    daemon.wait_for("upstream up again");
    let answers: Vec<_> = (0..20).map(|_| ask(daemon.port).unwrap()).collect();
    assert!(answers.iter().filter(|answer| *answer == "back").count() >= 8, "{answers:?}");
    assert_eq!(daemon.log().matches("upstream up again").count(), 1);
}

#[test]
fn with_all_upstreams_dead_it_is_not_well_and_without_clients_it_gets_well_again() {
    let (ports, admin) = ([free_port(), free_port()], free_port());
    let [a, b] = ports.map(|port| format!("127.0.0.1:{port}"));
    let daemon = Daemon::start(&[
        "-i",
        "2",
        "--name",
        "px",
        "--admin",
        &admin.to_string(),
        "-u",
        &a,
        "-u",
        &b,
        "--connect-timeout",
        "300ms",
    ]);
    daemon.wait_online(2);
    assert_eq!((command(&daemon, &["health"]).0, page(admin, "/readyz").0), (0, 200), "nobody has tried them");
    ask(daemon.port).unwrap_err();
    daemon.wait_for("all upstreams are down");
    let (code, text) = command(&daemon, &["health"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("px: all 2 upstreams are down") && text.contains("refused"), "{text}");
    let (status, text) =
        eventually("not ready", seconds(5), || Some(page(admin, "/readyz")).filter(|page| page.0 == 503));
    assert!(status == 503 && text.contains("px: all 2 upstreams are down"), "{text}");
    assert_eq!(page(admin, "/livez").0, 200);
    // Both workers found it out, and it is said once.
    ask(daemon.port).unwrap_err();
    assert_eq!(daemon.log().matches("all upstreams are down").count(), 1);
    assert_eq!(daemon.log().matches("upstream down").count(), 2, "one line for each");
    // No client comes any more. The worker that found it out is killed, too.
    for worker in daemon.workers() {
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    }
    daemon.wait_for_count("relay worker exited", 2);
    daemon.wait_online(2);
    assert_eq!(command(&daemon, &["health"]).0, 1, "new workers know it, too");
    let _server = Server::start("back", ports[1]);
    eventually("ready", seconds(20), || (page(admin, "/readyz").0 == 200).then_some(()));
    assert_eq!(command(&daemon, &["health"]).0, 0);
    assert_eq!(states(&daemon), ["down", "up"]);
    assert_eq!(ask(daemon.port).unwrap(), "back");
}

#[test]
fn clients_that_wait_for_an_upstream_are_counted() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let daemon = Daemon::start(&["-i", "2", "--name", "px", "-u", &address, "--connect-timeout", "30s"]);
    daemon.wait_online(2);
    let proxy = daemon.port;
    let clients: Vec<_> = (0..6).map(|_| std::thread::spawn(move || ask(proxy))).collect();
    eventually("six wait", seconds(10), || (daemon.ls()["services"][0]["waiting_for_upstream"] == 6).then_some(()));
    let (code, text) = command(&daemon, &["health"]);
    assert!(code == 1 && text.contains("is down") && text.contains("clients waiting: 6"), "{text}");
    let _server = Server::start("late", port);
    for client in clients {
        assert_eq!(client.join().unwrap().unwrap(), "late");
    }
    eventually("nobody waits", seconds(5), || (daemon.ls()["services"][0]["waiting_for_upstream"] == 0).then_some(()));
    assert_eq!(command(&daemon, &["health"]).0, 0);
}

#[test]
fn a_name_that_gets_an_address_later_comes_up_without_a_client() {
    let (dir, port) = (install_dir(), free_port());
    let server = Upstream::echo();
    let hosts = write_file(dir.path(), "hosts", "127.0.0.1 localhost\n");
    let mut command = std::process::Command::new("unshare");
    // A table of names of its own.
    let line = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    command.args(["-m", "sh", "-c", &line, env!("CARGO_BIN_EXE_roundsman")]);
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("app.test:{}", server.address.port()));
    let daemon = Daemon::launch(command, &["-l", &listen, "-i", "2", "-u", &upstream], port);
    daemon.wait_for("all upstreams are down");
    assert_eq!(states(&daemon), ["down"]);
    std::fs::write(&hosts, "127.0.0.1 app.test\n").unwrap();
    eventually("it is up", seconds(20), || (states(&daemon) == ["up"]).then_some(()));
    assert_eq!(sum(&daemon, "connections"), 0, "a probe is no connection of a client");
}

#[test]
fn a_name_that_does_not_resolve_is_down_and_services_without_upstreams_have_none() {
    let daemon = Daemon::start(&["-i", "1", "-u", "no-such-host.invalid:80"]);
    daemon.wait_online(1);
    eventually("it is down", seconds(10), || (states(&daemon) == ["down"]).then_some(()));
    let (code, text) = command(&daemon, &["health"]);
    assert!(code == 1 && text.contains("no-such-host.invalid:80") && text.contains("does not resolve"), "{text}");
    let daemon = Daemon::start(&["-i", "1", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    daemon.wait_online(1);
    assert_eq!(upstreams(&daemon), Vec::<Value>::new());
    assert_eq!(command(&daemon, &["health"]).0, 0);
}

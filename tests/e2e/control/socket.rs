//! The control socket and `ls`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::support::{Daemon, eventually, free_port, get, install_dir, roundsman, seconds};

fn demo(arguments: &[&str]) -> Daemon {
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    Daemon::start(&arguments.iter().copied().chain(server).collect::<Vec<_>>())
}

#[test]
fn ls_json_has_the_shape_of_the_contract() {
    let daemon = demo(&["-i", "2", "--name", "shop"]);
    daemon.wait_online(2);
    get(daemon.port).unwrap();
    let state = daemon.ls();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let has = |value: &Value, wanted: &[&str]| {
        for key in wanted {
            assert!(keys(value).iter().any(|have| have == key), "{key} is missing in {value}");
        }
    };
    has(&state, &["version", "pid", "uptime_s", "services"]);
    assert_eq!(state["pid"], daemon.pid());
    let service = &state["services"][0];
    has(service, &["name", "command", "policy", "via", "via_reason", "listen", "slots"]);
    assert_eq!((service["name"].as_str(), service["via"].as_str()), (Some("shop"), Some("relay")));
    has(&service["listen"][0], &["addr", "from", "workers"]);
    let slot = [
        "slot",
        "state",
        "pid",
        "server_pid",
        "generation",
        "restarts",
        "uptime_s",
        "open",
        "pending",
        "connections",
        "rescued",
        "rss_bytes",
        "reason",
        "last_exit",
    ];
    has(&service["slots"][1], &slot);
    assert_eq!(daemon.total("connections"), 1);
    assert!(service["slots"][0]["rss_bytes"].as_u64().unwrap() > 100_000);
}

#[test]
fn several_daemons_are_all_shown_and_a_live_name_is_refused() {
    let dir = install_dir();
    let launch = |name: &str| {
        let port = free_port();
        let mut command = std::process::Command::new("env");
        // The harness sets a control path; names are about the directory.
        command.args(["-u", "ROUNDSMAN_CONTROL", env!("CARGO_BIN_EXE_roundsman")]).env("XDG_RUNTIME_DIR", dir.path());
        let listen = format!("127.0.0.1:{port}");
        Daemon::launch(command, &["-l", &listen, "-i", "1", "-u", "127.0.0.1:1", "--name", name], port)
    };
    let (a, b) = (launch("a"), launch("b"));
    a.wait_for("worker online");
    b.wait_for("worker online");
    let output = roundsman().args(["ls", "--json"]).env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["services"][0]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a", "b"]);
    let mut third = launch("a");
    let end = third.finish(seconds(5));
    assert_eq!(end.code(), 2);
    assert!(end.log.contains(&format!("taken by pid {}; run `roundsman reload a`", a.pid())), "{}", end.log);
    // A name whose daemon was killed is free again.
    let mut b = b;
    b.signal(nix::sys::signal::Signal::SIGKILL);
    b.finish(seconds(5));
    launch("b").wait_for("worker online");
}

#[test]
fn without_a_daemon_ls_ends_with_69() {
    let dir = install_dir();
    let output = roundsman().arg("ls").env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no roundsman daemon is running"));
}

#[test]
fn the_socket_is_private_and_so_is_its_directory() {
    let daemon = demo(&["-i", "1"]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(daemon.control()), 0o600);
    assert_eq!(mode(daemon.control().parent().unwrap()), 0o700);
}

fn ask(stream: &mut UnixStream, line: &[u8]) -> String {
    stream.write_all(line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn nonsense_and_slow_peers_get_an_error_or_are_closed_and_ls_still_works() {
    let daemon = demo(&["-i", "1"]);
    daemon.wait_online(1);
    let connect = || {
        let stream = UnixStream::connect(daemon.control()).unwrap();
        stream.set_read_timeout(Some(seconds(10))).unwrap();
        stream
    };
    for nonsense in
        [&b"hello\n"[..], b"{\"cmd\":\"fly\"}\n", b"{\"cmd\":\"ls\",\"x\":1}\n", b"\xff\xfe\n", b"[]\n", b"\n"]
    {
        let answer = ask(&mut connect(), nonsense);
        assert!(answer.starts_with("{\"error\":\"bad request"), "{answer}");
    }
    // A line that never ends.
    let mut endless = connect();
    let closed = (0..64).any(|_| endless.write_all(&[b'x'; 64 * 1024]).is_err());
    assert!(closed, "an endless request is cut off");
    // One that asks and never reads.
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    for _ in 0..200_000 {
        if deaf.write_all(b"{\"cmd\":\"ls\"}\n").is_err() {
            break;
        }
    }
    // Several requests in one write, and half a request in two.
    let mut two = connect();
    two.write_all(b"{\"cmd\":\"ls\"}\n{\"cmd\":\"ls\"}\n{\"cm").unwrap();
    two.write_all(b"d\":\"ls\"}\n").unwrap();
    let mut lines = BufReader::new(&mut two).lines();
    for _ in 0..3 {
        assert!(lines.next().unwrap().unwrap().contains("\"services\""));
    }
    // More clients than there is room for: the surplus is closed, and room comes back.
    let crowd: Vec<_> = (0..100).map(|_| connect()).collect();
    drop(crowd);
    eventually("ls works", seconds(5), || {
        let output = roundsman().arg("ls").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        output.status.success().then_some(())
    });
    let rss = daemon.ls()["pid"].as_u64().map(|pid| roundsman::sys::process::rss_bytes(pid as u32)).unwrap();
    assert!(rss < 40 << 20, "{rss}");
    get(daemon.port).unwrap();
    drop(deaf);
}

#[test]
fn the_protocol_says_its_version_and_what_it_does_not_know() {
    let daemon = demo(&["-i", "1", "--name", "shop"]);
    let mut stream = UnixStream::connect(daemon.control()).unwrap();
    let hello: Value = serde_json::from_str(&ask(&mut stream, b"{\"cmd\":\"hello\"}\n")).unwrap();
    assert_eq!((hello["protocol"].as_u64(), hello["version"].as_str()), (Some(1), Some(env!("CARGO_PKG_VERSION"))));
    let unknown = ask(&mut stream, b"{\"cmd\":\"fly\"}\n");
    assert!(unknown.contains("unknown variant `fly`, expected one of `hello`, `ls`, `reload`"), "{unknown}");
    let nobody = ask(&mut stream, b"{\"cmd\":\"restart\",\"service\":\"other\"}\n");
    assert!(nobody.contains("there is no service \\\"other\\\"; here are shop"), "{nobody}");
}

#[test]
fn one_that_says_no_more_still_gets_its_answer() {
    let daemon = demo(&["-i", "1", "--min-uptime", "100ms"]);
    daemon.wait_online(1);
    // As `echo … | nc -U` does it.
    let mut stream = UnixStream::connect(daemon.control()).unwrap();
    stream.write_all(b"{\"cmd\":\"ls\"}\n{\"cmd\":\"reload\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(
        all.contains("\"services\"") && all.lines().last().unwrap().contains("{\"done\":\"reloaded 1 slot in"),
        "{all}"
    );
}

#[test]
fn idle_clients_make_room_and_a_flood_of_requests_holds_up_nobody() {
    let daemon = demo(&["-i", "2"]);
    daemon.wait_online(2);
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(daemon.control()).unwrap()).collect();
    daemon.ls();
    // Three that ask as fast as they can, and read, too; meanwhile a worker dies and is replaced.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut stream = UnixStream::connect(daemon.control()).unwrap();
                let mut reader = stream.try_clone().unwrap();
                let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = stream.write_all(&b"{\"cmd\":\"ls\"}\n".repeat(100));
                }
                stream.shutdown(std::net::Shutdown::Both).unwrap();
                let _ = drain.join().unwrap();
            });
        }
        // The three are at it by then; that they are is no state to be asked for.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let begin = std::time::Instant::now();
        let pid = daemon.workers()[0];
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("a new worker", seconds(10), || {
            let workers = daemon.workers();
            (workers.len() == 2 && !workers.contains(&pid)).then_some(())
        });
        let took = begin.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(took < seconds(5), "{took:?}");
    });
    for _ in 0..20 {
        get(daemon.port).unwrap();
    }
    drop(idle);
}

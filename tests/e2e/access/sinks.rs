//! Where lines go, what becomes of those that nobody takes, and which are drawn.

use std::process::Command;

use nix::sys::signal::Signal;

use super::{Logged, SERVER, random_bytes};
use crate::support::{Daemon, Upstream, eventually, free_port, install_dir, roundsman, seconds, write_file};

/// A server that answers at once and closes.
fn quick() -> Upstream {
    Upstream::start(|mut stream| {
        std::io::Read::read(&mut stream, &mut [0; 1024])?;
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    })
}

#[test]
fn a_renamed_file_is_opened_again_by_its_name() {
    let upstream = quick();
    let logged = Logged::in_dir(install_dir(), &["-i", "1", "-u", &upstream.arg()]);
    logged.request().unwrap();
    logged.lines(1);
    let old = logged.dir.path().join("old.log");
    std::fs::rename(logged.path(), &old).unwrap();
    logged.daemon.signal(Signal::SIGUSR1);
    eventually("a new file", seconds(20), || logged.path().exists().then_some(()));
    logged.request().unwrap();
    logged.lines(1);
    assert_eq!(std::fs::read_to_string(old).unwrap().lines().count(), 1);
}

#[test]
fn text_on_stdout_is_a_line_as_haproxy_writes_them() {
    let upstream = quick();
    let dir = install_dir();
    let port = free_port();
    let (listen, out) = (format!("127.0.0.1:{port}"), dir.path().join("out"));
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" > \"$OUT\"", "sh"]).arg(roundsman().get_program()).env("OUT", &out);
    let words = ["-l", &listen, "-i", "1", "--name", "web", "--access-log", "-", "-u", &upstream.arg()];
    let daemon = Daemon::launch(command, &words, port);
    daemon.wait_for("worker online");
    crate::support::get(port).unwrap();
    let text =
        eventually("a line", seconds(20), || std::fs::read_to_string(&out).ok().filter(|text| text.ends_with('\n')));
    let words: Vec<&str> = text.trim_end().split(' ').collect();
    let [client, time, listener, worker, times, bytes, end, tcp, to] = words[..] else { panic!("{text}") };
    assert!(client.starts_with("127.0.0.1:") && time.starts_with('[') && time.ends_with(']'), "{text}");
    assert_eq!((listener, worker, end, to), (listen.as_str(), "web/0.1", "server", upstream.arg().as_str()));
    assert_eq!(bytes, "46/38", "{text}");
    assert!(times.split('/').all(|ms| ms.parse::<f64>().is_ok()) && times.split('/').count() == 3, "{text}");
    assert_eq!(tcp.split('/').count(), 2, "{text}");
}

#[test]
fn a_tenth_of_all_connections_is_drawn() {
    let upstream = quick();
    let logged = Logged::in_dir(install_dir(), &["-i", "2", "--access-sample", "10%", "-u", &upstream.arg()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1250).all(|_| logged.request().is_ok()));
        }
    });
    // All the others are in the file by the time that this one is.
    let count = || std::fs::read_to_string(logged.path()).unwrap_or_default().lines().count();
    let mut before = 0;
    let drawn = eventually("no more lines", seconds(20), || {
        let now = count();
        std::thread::sleep(std::time::Duration::from_millis(400));
        (now == std::mem::replace(&mut before, now) && now > 0).then_some(now)
    });
    // Five standard deviations.
    assert!((394..=606).contains(&drawn), "{drawn} of 5000");
    assert_eq!(logged.lost(), 0);
}

#[test]
fn a_full_disk_loses_lines_and_no_connection() {
    let upstream = quick();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let words = ["-l", &listen, "-i", "1", "--name", "web", "--access-log", "/dev/full", "-u", &upstream.arg()];
    let daemon = Daemon::launch(roundsman(), &words, port);
    daemon.wait_for("worker online");
    for _ in 0..20 {
        crate::support::get(port).unwrap();
    }
    eventually("20 lines lost", seconds(20), || (daemon.ls()["services"][0]["access_lost"] == 20).then_some(()));
    daemon.wait_for("cannot write to /dev/full");
}

#[test]
fn a_reader_of_a_fifo_that_reads_nothing_keeps_nobody_waiting() {
    let (dir, upstream, port) = (install_dir(), quick(), free_port());
    let (listen, fifo) = (format!("127.0.0.1:{port}"), dir.path().join("access.log"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Its end is open all the time, so that the FIFO only fills up.
    let mut reader = std::fs::OpenOptions::new();
    let reader = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut reader, nix::fcntl::OFlag::O_NONBLOCK.bits());
    let mut reader = reader.read(true).write(true).open(&fifo).unwrap();
    let words = ["-l", &listen, "-i", "2", "--name", "web", "--access-format", "json", "--access-log"];
    let to = upstream.arg();
    let words = [&words[..], &[fifo.to_str().unwrap(), "-u", &to]].concat();
    let daemon = Daemon::launch(roundsman(), &words, port);
    daemon.wait_for("worker online");
    let lost = || daemon.ls()["services"][0]["access_lost"].as_u64().unwrap();
    // A FIFO's 64 KiB and 1 MiB are 4,000 lines.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1500).for_each(|_| drop(crate::support::get(port).unwrap())));
        }
    });
    eventually("lines are lost", seconds(20), || (lost() > 1000).then_some(()));
    daemon.wait_for("access log: lines lost");
    let mut bytes = vec![0; 1 << 20];
    let mut read = || match std::io::Read::read(&mut reader, &mut bytes) {
        Ok(n) => bytes[..n].iter().filter(|&&byte| byte == b'\n').count() as u64,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            0
        }
    };
    let mut lines = 0;
    eventually("each is written or counted", seconds(30), || {
        lines += read();
        (lines + lost() == 6000).then_some(())
    });
    crate::support::get(port).unwrap();
    eventually("and lines go on", seconds(20), || (read() > 0).then_some(()));
}

#[test]
fn lines_on_stdout_are_not_among_the_servers() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", &format!("print('of the server', flush=True)\n{SERVER}"));
    let (port, out) = (free_port(), dir.path().join("out"));
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" > \"$OUT\"", "sh"]).arg(roundsman().get_program()).env("OUT", &out);
    let listen = format!("127.0.0.1:{port}");
    let words = ["-l", &listen, "--via", "direct", "-i", "1", "--name", "web", "--access-log", "-", "--"];
    let daemon = Daemon::launch(command, &[&words[..], &["python3", script.to_str().unwrap()]].concat(), port);
    daemon.wait_for("worker online");
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let address = client.local_addr().unwrap().to_string();
    drop(client);
    let text = || std::fs::read_to_string(&out).unwrap_or_default();
    eventually("a line", seconds(20), || text().contains(&address).then_some(()));
    assert!(text().contains("of the server"), "{}", text());
    let output = roundsman().args(["logs", "-n", "1000"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("of the server") && !shown.contains(&address), "{shown}");
}

/// While the master does not run, nobody reads the ring; the workers accept by themselves.
#[test]
fn a_full_ring_loses_lines_and_counts_them() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let options = ["--via", "direct", "-p", "none", "-i", "1", "--", "python3", script.to_str().unwrap()];
    let logged = Logged::in_dir(dir, &options);
    let talk = || {
        let mut stream = logged.connect();
        std::io::Write::write_all(&mut stream, b"stop").unwrap();
        assert_eq!(crate::support::read_all(&mut stream).unwrap(), b"stop");
    };
    talk();
    logged.lines(1);
    crate::support::freeze(logged.daemon.pid() as i32);
    (0..2500).for_each(|_| talk());
    logged.daemon.signal(Signal::SIGCONT);
    // Two records each, for 4096 places.
    eventually("452 lines are lost", seconds(20), || (logged.lost() == 452).then_some(()));
    logged.daemon.wait_for("access log: lines lost");
    talk();
    let text = eventually("the last line", seconds(20), || {
        let text = std::fs::read_to_string(logged.path()).unwrap();
        (text.lines().count() >= 2050).then_some(text)
    });
    assert_eq!(text.lines().count(), 2050);
}

#[test]
fn whatever_a_server_writes_into_the_memory_file_hurts_only_its_own_lines() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let options = ["--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap()];
    let mut logged = Logged::in_dir(dir, &options);
    let talk = |logged: &Logged| {
        let mut stream = logged.connect();
        std::io::Write::write_all(&mut stream, b"stop").unwrap();
        assert_eq!(crate::support::read_all(&mut stream).unwrap(), b"stop");
    };
    talk(&logged);
    logged.lines(1);
    let memory = std::fs::read_dir(format!("/proc/{}/fd", logged.daemon.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("roundsman-access")))
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(memory).unwrap();
    assert!(file.set_len(0).is_err(), "it is sealed");
    for round in 0..50 {
        std::os::unix::fs::FileExt::write_all_at(&file, &random_bytes(round, 528_384), 0).unwrap();
        talk(&logged);
    }
    eventually("garbage is counted", seconds(20), || (logged.lost() > 0).then_some(()));
    // What comes from then on has its lines.
    let read = || std::fs::read_to_string(logged.path()).unwrap();
    eventually("a line again", seconds(20), || {
        let mut stream = logged.connect();
        let port = stream.local_addr().unwrap().port();
        std::io::Write::write_all(&mut stream, b"stop").unwrap();
        crate::support::read_all(&mut stream).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        read().contains(&format!("\"127.0.0.1:{port}\"")).then_some(())
    });
    for line in read().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    assert_eq!(logged.daemon.stop().code(), 0);
}

#[test]
fn without_an_access_log_there_is_neither_memory_nor_a_thread() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let words = ["-l", &listen, "--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &words, port);
    daemon.wait_online(1);
    assert!(daemon.ls()["services"][0].get("access_lost").is_none());
    let maps = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let worker = daemon.workers()[0];
    assert!(maps(worker).contains("roundsman-counters") && !maps(worker).contains("roundsman-access"));
    let pid = daemon.pid();
    assert!(!maps(pid as i32).contains("roundsman-access"));
    let names = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = names.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert!(!names.into_iter().any(|name| name == "access\n"));
}

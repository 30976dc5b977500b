//! The addresses behind a relay, well and unwell.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use crate::support::{Daemon, Upstream, eventually, free_port, install_dir, millis, read_all, reset, seconds};

/// An upstream that says who it is and closes.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| stream.write_all(name.as_bytes()))
}

fn ask(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(seconds(20)))?;
    Ok(String::from_utf8_lossy(&read_all(&mut stream)?).into_owned())
}

#[test]
fn several_take_turns() {
    let all = [named("a"), named("b"), named("c")];
    let [a, b, c] = all.each_ref().map(Upstream::arg);
    let daemon = Daemon::start(&["-i", "1", "-u", &a, "-u", &b, "-u", &c]);
    let order: String = (0..30).map(|_| ask(daemon.port).unwrap()).collect();
    assert!(order.contains("abcabcabcabc"), "{order}");
    assert!(all.iter().all(|upstream| (9..=11).contains(&upstream.count())), "{order}");
}

#[test]
fn fewest_open_comes_first() {
    let all = [Upstream::echo(), Upstream::echo()];
    let [a, b] = all.each_ref().map(Upstream::arg);
    let daemon = Daemon::start(&["-i", "1", "-u", &a, "-u", &b]);
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let kept: Vec<_> = (0..10).map(|_| connect()).collect();
    assert_eq!(all.each_ref().map(Upstream::count), [5, 5]);
    // Every second one ends: those of one upstream.
    let (even, odd): (Vec<_>, Vec<_>) = kept.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    drop(even);
    eventually("they are gone", seconds(5), || (daemon.total("open") == 5).then_some(()));
    let _more: Vec<_> = (0..5).map(|_| connect()).collect();
    let mut counts = all.each_ref().map(Upstream::count);
    counts.sort();
    assert_eq!(counts, [5, 10], "all five went to the emptier one");
    drop(odd);
}

#[test]
fn one_that_refuses_costs_no_client_anything() {
    let good = named("good");
    let refusing = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["-i", "2", "-u", &refusing, "-u", &good.arg()]);
    for _ in 0..200 {
        assert_eq!(ask(daemon.port).unwrap(), "good");
    }
    daemon.wait_for("upstream down");
    // It comes up: it gets its share again, after its skip.
    let late = TcpListener::bind(&refusing).unwrap();
    std::thread::spawn(move || {
        for mut stream in late.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"late");
        }
    });
    eventually("it is used", seconds(20), || (ask(daemon.port).unwrap() == "late").then_some(()));
    daemon.wait_for("upstream up again");
}

#[test]
fn first_bytes_reach_the_next_upstream_when_the_first_refuses() {
    let good = Upstream::echo();
    let refusing = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["-i", "1", "-u", &refusing, "-u", &good.arg()]);
    for _ in 0..20 {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"first bytes").unwrap();
        let mut word = [0; 11];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"first bytes");
    }
}

#[test]
fn when_all_refuse_clients_are_reset_after_the_connect_timeout() {
    let refusing = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["-i", "1", "-u", &refusing, "--connect-timeout", "500ms"]);
    let begin = Instant::now();
    let error = ask(daemon.port).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!((millis(400)..seconds(3)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    eventually("nothing is left", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn a_black_hole_is_given_up_after_the_connect_timeout_for_the_next() {
    // A listener whose backlog is full drops every SYN: nothing comes back.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let hole = socket.local_addr().unwrap().as_socket().unwrap();
    let filling: Vec<_> = (0..3)
        .map(|_| {
            let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&hole.into());
            client
        })
        .collect();
    let full = || std::net::TcpStream::connect_timeout(&hole, millis(100)).is_err();
    eventually("its backlog is full", seconds(10), || full().then_some(()));
    let good = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &hole.to_string(), "-u", &good.arg(), "--connect-timeout", "400ms"]);
    for _ in 0..4 {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert!(begin.elapsed() < seconds(2), "{:?}", begin.elapsed());
    }
    daemon.wait_for("timed out");
    drop(filling);
}

#[test]
fn one_that_resets_at_once_resets_its_clients_and_nothing_else() {
    let resetting = Upstream::start(|stream| {
        reset(stream);
        Ok(())
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &resetting.arg()]);
    for _ in 0..100 {
        let error = ask(daemon.port).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    eventually("nothing is left", seconds(5), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.total("restarts"), 0);
}

/// The largest receive buffer that the kernel gives a TCP socket by itself, in bytes.
fn largest_buffer() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rmem").unwrap();
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn one_that_never_reads_holds_up_only_its_own_clients() {
    let deaf = Upstream::start(|stream| {
        std::thread::sleep(seconds(3600));
        drop(stream);
        Ok(())
    });
    let good = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &deaf.arg(), "-u", &good.arg()]);
    let mut stuck = 0;
    for _ in 0..10 {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_write_timeout(Some(millis(200))).unwrap();
        stream.set_read_timeout(Some(seconds(10))).unwrap();
        let chunk = vec![0; 1 << 20];
        // More than all buffers on the way can take: the kernel may let each of four grow to tcp_rmem's largest.
        let chunks = 16 + 4 * (largest_buffer() >> 20);
        let reader = stream.try_clone().unwrap();
        std::thread::spawn(move || io::copy(&mut { reader }, &mut io::sink()));
        stuck += usize::from((0..chunks).any(|_| stream.write_all(&chunk).is_err()));
    }
    assert_eq!(stuck, 5);
}

#[test]
fn unix_sockets_and_names() {
    let dir = install_dir();
    let path = dir.path().join("up");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        }
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &format!("unix:{}", path.display())]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(&[5; 300_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stream).unwrap(), vec![5; 300_000]);

    let named = named("by name");
    let daemon = Daemon::start(&["-i", "1", "-u", &format!("localhost:{}", named.address.port())]);
    for _ in 0..20 {
        assert_eq!(ask(daemon.port).unwrap(), "by name");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_a_warning_and_is_asked_for_again() {
    let daemon = Daemon::start(&["-i", "1", "-u", "no-such-host.invalid:80", "--connect-timeout", "300ms"]);
    daemon.wait_for("does not resolve yet");
    assert_eq!(ask(daemon.port).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_name_is_resolved_anew_when_connecting_fails() {
    let dir = install_dir();
    let (moved, port) = (named("moved"), free_port());
    let hosts = crate::support::write_file(dir.path(), "hosts", "127.0.0.2 app.test\n");
    let mut command = std::process::Command::new("unshare");
    // A table of names of its own.
    let line = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    command.args(["-m", "sh", "-c", &line, env!("CARGO_BIN_EXE_roundsman")]);
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("app.test:{}", moved.address.port()));
    let daemon =
        Daemon::launch(command, &["-l", &listen, "-i", "1", "-u", &upstream, "--connect-timeout", "300ms"], port);
    daemon.wait_for("worker online");
    assert_eq!(ask(port).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    std::fs::write(&hosts, "127.0.0.1 app.test\n").unwrap();
    eventually("the new address is used", seconds(10), || (ask(port).ok()? == "moved").then_some(()));
}

#[test]
fn source_addresses_rotate_when_ports_run_out() {
    // A network namespace with 60 ephemeral ports in all, and 300 connections at once through one worker.
    let script = "
import socket, subprocess, sys, threading, time, os
open('/proc/sys/net/ipv4/ip_local_port_range', 'w').write('40000 40059')
up = socket.socket(); up.bind(('127.0.0.1', 8000)); up.listen(4096)
seen, kept = set(), []
def serve():
    while True:
        s, peer = up.accept(); seen.add(peer[0]); kept.append(s); s.sendall(s.recv(5))
threading.Thread(target=serve, daemon=True).start()
d = subprocess.Popen([sys.argv[1], '-l', '127.0.0.1:9000', '-i', '1', '-u', '127.0.0.1:8000', '--control', sys.argv[2]])
clients = []
try:
    for n in range(300):
        for attempt in range(500):
            s = socket.socket()
            s.bind(('127.0.%d.%d' % (1 + n // 50, 1 + n % 50), 0))
            try: s.connect(('127.0.0.1', 9000)); break
            except ConnectionRefusedError: s.close(); time.sleep(0.02)
        s.settimeout(10); s.sendall(b'hello'); assert s.recv(5) == b'hello', n
        clients.append(s)
    assert len(seen) > 4, seen
finally:
    d.terminate()
    for s in clients + kept: s.close()
    d.wait(15)
assert d.returncode == 0
";
    let dir = install_dir();
    let output = std::process::Command::new("unshare")
        .args(["-n", "sh", "-c", "ip link set lo up && exec python3 -c \"$0\" \"$@\"", script])
        .args([env!("CARGO_BIN_EXE_roundsman"), dir.path().join("c").join("c.sock").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! Where clients come in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::support::{Daemon, Upstream, free_port, install_dir, roundsman};

fn echoes(mut stream: impl Read + Write) {
    stream.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

fn launch(listen: &[&str], upstream: &Upstream, policy: &str) -> Daemon {
    let mut arguments = Vec::new();
    for address in listen {
        arguments.extend(["-l", address]);
    }
    let to = upstream.arg();
    arguments.extend(["-i", "2", "-p", policy, "-u", &to]);
    let daemon = Daemon::launch(roundsman(), &arguments, 0);
    daemon.wait_for_count("listening", listen.len());
    daemon
}

#[test]
fn several_at_once_of_every_kind() {
    let (upstream, dir) = (Upstream::echo(), install_dir());
    for policy in ["rr", "none"] {
        let [a, b, c] = [free_port(), free_port(), free_port()];
        let path = dir.path().join("s");
        let unix = format!("unix:{}", path.display());
        let daemon =
            launch(&[&format!("127.0.0.1:{a}"), &format!("[::1]:{b}"), &format!("[::]:{c}"), &unix], &upstream, policy);
        for _ in 0..20 {
            echoes(TcpStream::connect(("127.0.0.1", a)).unwrap());
            echoes(TcpStream::connect(("::1", b)).unwrap());
            echoes(TcpStream::connect(("::1", c)).unwrap());
            echoes(TcpStream::connect(("127.0.0.1", c)).unwrap());
            echoes(UnixStream::connect(&path).unwrap());
        }
        assert!(TcpStream::connect(("127.0.0.1", b)).is_err(), "[::1] is IPv6 only");
        let listen = daemon.ls()["services"][0]["listen"].clone();
        assert_eq!(listen.as_array().unwrap().len(), 4);
        assert_eq!((listen[0]["from"].as_str(), listen[0]["workers"].as_u64()), (Some("flag"), Some(2)));
    }
}

#[test]
fn a_bare_port_is_both_families() {
    let (upstream, port) = (Upstream::echo(), free_port());
    let daemon = launch(&[&port.to_string()], &upstream, "rr");
    echoes(TcpStream::connect(("127.0.0.1", port)).unwrap());
    echoes(TcpStream::connect(("::1", port)).unwrap());
    assert_eq!(daemon.ls()["services"][0]["listen"][0]["addr"], format!("[::]:{port}"));
}

#[test]
fn a_stale_socket_file_is_replaced_a_live_one_refused_and_another_file_left_alone() {
    let (upstream, dir) = (Upstream::echo(), install_dir());
    let path = dir.path().join("s");
    let unix = format!("unix:{}", path.display());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale file");
    let mut daemon = launch(&[&unix], &upstream, "rr");
    echoes(UnixStream::connect(&path).unwrap());
    let refused = roundsman().args(["-l", &unix, "-u", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(71));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"));
    echoes(UnixStream::connect(&path).unwrap());
    assert_eq!(daemon.stop().code(), 0);
    assert!(!path.exists(), "removed at the end");
    std::fs::write(&path, "precious").unwrap();
    let refused = roundsman().args(["-l", &unix, "-u", "127.0.0.1:1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Passes a listening socket as systemd does: descriptor 3, LISTEN_FDS, LISTEN_PID.
fn activated(kind: &str, arguments: &[&str]) -> (Daemon, u16) {
    let port = free_port();
    let code = format!(
        "import os, socket, sys
s = socket.socket(socket.AF_INET, socket.{kind}); s.bind(('127.0.0.1', {port}))
if '{kind}' == 'SOCK_STREAM': s.listen(50)
os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ['LISTEN_FDS'] = '1'; os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])"
    );
    let mut command = std::process::Command::new("python3");
    command.args(["-c", &code, env!("CARGO_BIN_EXE_roundsman")]);
    (Daemon::launch(command, arguments, port), port)
}

#[test]
fn inherited_sockets_are_adopted() {
    let upstream = Upstream::echo();
    let (daemon, port) = activated("SOCK_STREAM", &["-i", "1", "-u", &upstream.arg()]);
    // Connected before the daemon is there: systemd's socket listens all the time.
    daemon.wait_for("listening");
    echoes(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let environment = std::fs::read(format!("/proc/{}/environ", daemon.workers()[0])).unwrap();
    assert!(!environment.is_empty() && !String::from_utf8_lossy(&environment).contains("LISTEN_FDS"));
}

#[test]
fn inherited_sockets_are_matched_to_listen_and_nonsense_is_refused() {
    let upstream = Upstream::echo();
    let port = free_port();
    let second = format!("127.0.0.1:{port}");
    let (daemon, inherited) = activated("SOCK_STREAM", &["-i", "1", "-l", &second, "-u", &upstream.arg()]);
    daemon.wait_for_count("listening", 2);
    echoes(TcpStream::connect(("127.0.0.1", port)).unwrap());
    echoes(TcpStream::connect(("127.0.0.1", inherited)).unwrap());
    let (mut daemon, _) = activated("SOCK_DGRAM", &["-i", "1", "-u", &upstream.arg()]);
    let end = daemon.finish(crate::support::seconds(10));
    assert_eq!(end.code(), 2);
    assert!(end.log.contains("not a stream socket"), "{}", end.log);
}

#[test]
fn the_port_can_be_bound_again_at_once() {
    let upstream = Upstream::echo();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    for _ in 0..3 {
        let mut daemon = launch(&[&address], &upstream, "rr");
        // Closed by our side first: TIME_WAIT on our port.
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        echoes(&stream);
        daemon.signal(nix::sys::signal::Signal::SIGQUIT);
        daemon.finish(crate::support::seconds(5));
    }
}

#[test]
fn the_backlog_is_deep() {
    let upstream = Upstream::echo();
    let daemon = launch(&[&format!("127.0.0.1:{}", free_port())], &upstream, "rr");
    let address = daemon.ls()["services"][0]["listen"][0]["addr"].as_str().unwrap().to_owned();
    let port = address.rsplit(':').next().unwrap();
    let output = std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let wanted = somaxconn.trim().parse::<u32>().unwrap().min(4096).to_string();
    assert_eq!(line.split_whitespace().nth(2), Some(wanted.as_str()), "{line}");
}

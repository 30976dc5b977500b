//! Direct delivery to servers that come by their listening socket, and accept from it, in unusual ways.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::Command;

use crate::support::direct::{ask, start, start_with};
use crate::support::table::Client;
use crate::support::{
    Daemon, c_server, eventually, free_port, get, http_get, install_dir, musl_server, roundsman, seconds, servers,
    source, unsaid, write_file,
};

/// The C server in one of its modes under rr: every request is served and knows its client, in turns.
fn serves(program: &str, mode: &str, requests: usize) {
    let port = free_port();
    let mut daemon = start(port, "2", &[program.to_owned(), mode.to_owned(), port.to_string()]);
    let answers: Vec<_> = (0..requests).map(|_| ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{mode}: the client's address");
    if mode == "modes" {
        // Each mode takes a client, and may not have had one yet.
        eventually("every mode was tried", seconds(20), || {
            assert!(ask(port).1, "{mode}: the client's address");
            (daemon.log().matches("every mode was tried").count() == 2).then_some(())
        });
    }
    let out = answers.windows(2).filter(|pair| pair[0].0 == pair[1].0).count() as u64;
    let rescued = daemon.total("rescued");
    // A server that closes its listener and opens it again is passed over in between.
    assert!(
        mode == "ranges" || out <= rescued.min(1) * requests as u64 / 2,
        "{mode}: {out} out of turn, {rescued} rescued"
    );
    eventually(&format!("{mode}: open is back to 0"), seconds(5), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.total("restarts"), 0, "{mode}: {}", daemon.log());
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{mode}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn registered_with_epoll_before_bind() {
    [c_server(), musl_server()].iter().for_each(|program| serves(program, "asio", 60));
}

#[test]
fn several_processes_on_one_socket_and_on_sockets_of_their_own() {
    serves(c_server(), "prefork", 60);
    serves(musl_server(), "prefork", 60);
    serves(c_server(), "reuseport", 60);
}

#[test]
fn a_listening_socket_that_goes_to_another_image() {
    for program in [c_server(), musl_server()] {
        serves(program, "exec", 60);
        serves(program, "message", 60);
    }
}

#[test]
fn one_port_twice_and_a_listener_closed_and_opened_again() {
    serves(c_server(), "twice", 300);
    let port = free_port();
    let daemon = start(port, "2", &[c_server().to_owned(), "reopen".to_owned(), port.to_string()]);
    assert!((0..400).all(|_| ask(port).1));
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn blocking_modes_and_ranges() {
    serves(c_server(), "modes", 60);
    serves(musl_server(), "modes", 60);
    serves(c_server(), "ranges", 60);
    let port = free_port();
    let daemon = start_with(
        port,
        "2",
        &["--via", "direct", "-p", "none"],
        &[c_server().to_owned(), "modes".to_owned(), port.to_string()],
    );
    assert!((0..60).all(|_| ask(port).1));
    daemon.wait_for("every mode was tried");
}

#[test]
fn shutdown_wakes_who_waits_in_accept() {
    let port = free_port();
    let daemon = start(port, "1", &[c_server().to_owned(), "shut".to_owned(), port.to_string()]);
    assert!(ask(port).1 && ask(port).1);
    daemon.wait_for("accept woke up");
    assert!((0..20).all(|_| ask(port).1));
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn both_families_on_one_socket() {
    let port = free_port();
    let _daemon = start(port, "2", &[c_server().to_owned(), "dual".to_owned(), port.to_string()]);
    assert!((0..20).all(|_| ask(port).1));
    for _ in 0..20 {
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        let own = stream.local_addr().unwrap().port();
        assert!(http_get(&mut stream).unwrap().ends_with(&format!("peer {own}")));
    }
}

/// Tells for each connection what it looks like.
const LOOKS: &str = "
import os, socket, sys
family = socket.AF_INET6 if sys.argv[2] == '6' else socket.AF_INET
s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[3], int(sys.argv[1]))); s.listen()
while True:
    c, peer = s.accept()
    c.sendall(f'{int(c.family)} {peer[0]} {c.getpeername()[0]} {c.getsockname()[0]} {c.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)} {s.getsockname()[0]} {s.getsockname()[1]}'.encode())
    c.close()
";

fn looks(listen: &str, client: (std::net::IpAddr, u16), family: &str, bind: &str, app_port: u16) -> String {
    let dir = install_dir();
    let script = write_file(dir.path(), "looks.py", LOOKS);
    let command = ["python3", script.to_str().unwrap(), &app_port.to_string(), family, bind].map(str::to_owned);
    let _daemon = start_with(client.1, "1", &["--via", "direct", "-l", listen], &command);
    let mut text = String::new();
    TcpStream::connect(client).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn addresses_have_the_family_that_the_server_knows() {
    let port = free_port();
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    // A listener for both families, a server for IPv4.
    let text = looks(&port.to_string(), (v4, port), "4", "0.0.0.0", port);
    assert_eq!(text, format!("2 127.0.0.1 127.0.0.1 127.0.0.1 2 0.0.0.0 {port}"));
    let text = looks(&port.to_string(), (v6, port), "4", "127.0.0.1", port);
    assert_eq!(text, format!("2 0.0.0.0 0.0.0.0 0.0.0.0 2 127.0.0.1 {port}"), "an IPv6 client has no IPv4 address");
    // A listener for IPv4, a server for both.
    let text = looks(&format!("127.0.0.1:{port}"), (v4, port), "6", "::", port);
    assert_eq!(text, format!("10 ::ffff:127.0.0.1 ::ffff:127.0.0.1 ::ffff:127.0.0.1 10 :: {port}"));
    // The server insists on a port of its own.
    let app = free_port();
    let text = looks(&format!("127.0.0.1:{port}={app}"), (v4, port), "4", "127.0.0.1", app);
    assert_eq!(text, format!("2 127.0.0.1 127.0.0.1 127.0.0.1 2 127.0.0.1 {app}"));
}

#[test]
fn a_server_on_several_ports_is_online_when_all_listen() {
    let (dir, ports) = (install_dir(), [free_port(), free_port()]);
    let script = write_file(
        dir.path(),
        "two.js",
        "for (const port of process.argv.slice(2)) setTimeout(() => require('http').createServer((request, response) =>
           response.end(`slot ${process.env.ROUNDSMAN_SLOT} peer ${request.socket.remotePort}`)).listen(port, '127.0.0.1'),
           port == process.argv[2] ? 0 : 300);",
    );
    let words = ports.map(|port| port.to_string());
    let command = ["node", script.to_str().unwrap(), &words[0], &words[1]].map(str::to_owned);
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let daemon = start_with(ports[0], "2", &["--via", "direct", "-l", &listen[0], "-l", &listen[1]], &command);
    for port in ports {
        let answers: Vec<_> = (0..20).map(|_| ask(port)).collect();
        assert!(answers.iter().all(|(_, known)| *known));
        let first = answers.iter().filter(|(slot, _)| slot == "slot 0").count();
        assert!((8..=12).contains(&first), "{first} of 20 at slot 0");
    }
    // And where the server decides: what it listens on later is served, too.
    drop(daemon);
    let daemon = start(ports[0], "2", &command);
    assert!((0..10).all(|_| ask(ports[0]).1));
    eventually("the second port", seconds(5), || TcpStream::connect(("127.0.0.1", ports[1])).ok());
    assert!((0..10).all(|_| ask(ports[1]).1));
    assert_eq!(daemon.ls()["services"][0]["listen"].as_array().unwrap().len(), 2);
}

#[test]
fn a_socket_bound_to_a_port_can_still_connect() {
    let (dir, port, source_port) = (install_dir(), free_port(), free_port());
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = write_file(
        dir.path(),
        "client.py",
        "
import socket, sys
c = socket.socket(); c.bind(('127.0.0.1', int(sys.argv[2]))); c.settimeout(5)
c.connect(('127.0.0.1', int(sys.argv[3]))); c.sendall(str(c.getsockname()[1]).encode())
s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()
while True: s.accept()[0].close()
",
    );
    let words = [port, source_port, upstream.local_addr().unwrap().port()].map(|port| port.to_string());
    let command = ["python3", script.to_str().unwrap(), &words[0], &words[1], &words[2]].map(str::to_owned);
    let daemon = start(port, "1", &command);
    let (mut client, from) = upstream.accept().unwrap();
    assert_eq!(from.port(), source_port);
    let mut said = [0; 5];
    client.read_exact(&mut said).unwrap();
    assert_eq!(said, source_port.to_string().as_bytes());
    let listen = daemon.ls()["services"][0]["listen"].clone();
    assert_eq!(listen.as_array().unwrap().len(), 1, "{listen}");
}

#[test]
fn gunicorn_goes_on_in_another_process() {
    let (dir, port) = (install_dir(), free_port());
    let pidfile = dir.path().join("pid");
    let app = source("wsgi.py");
    let command = [
        servers().join("venv/bin/gunicorn").to_str().unwrap(),
        "--chdir",
        std::path::Path::new(&app).parent().unwrap().to_str().unwrap(),
        "-b",
        &format!("127.0.0.1:{port}"),
        "-w",
        "2",
        "--pid",
        pidfile.to_str().unwrap(),
        "wsgi:app",
    ]
    .map(str::to_owned);
    let mut daemon = start(port, "1", &command);
    assert!((0..20).all(|_| ask(port).1));
    let old = daemon.workers()[0];
    let signal = |pid: i32, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    signal(old, nix::sys::signal::Signal::SIGUSR2);
    let new = eventually("the new master", seconds(20), || {
        let text = std::fs::read_to_string(dir.path().join("pid.2")).ok()?;
        text.trim().parse::<i32>().ok().filter(|&pid| pid != old)
    });
    eventually("its workers", seconds(20), || {
        daemon.log().contains(&format!("[{new}] [INFO] Listening")).then_some(())
    });
    assert!((0..20).all(|_| ask(port).1));
    signal(old, nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for("the server goes on in another process");
    assert!((0..20).all(|_| ask(port).1));
    assert_eq!((daemon.total("restarts"), daemon.workers()[0]), (0, new), "{}", daemon.log());
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn five_thousand_connections_at_once() {
    let (dir, port) = (install_dir(), free_port());
    let server = crate::support::table::table(dir.path(), port).swap_remove(0);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 19000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_roundsman")]);
    let mut all = vec!["-i", "2", "--"];
    all.extend(server.command.iter().map(String::as_str));
    let daemon = Daemon::launch(command, &all, port);
    daemon.wait_online(2);
    let mut clients: Vec<_> = (0..5_000)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for stream in &mut clients {
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    assert_eq!(daemon.total("open"), 5_000);
    drop(clients);
    eventually("open is back to 0", seconds(10), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn a_command_is_direct_by_itself_and_says_why() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["-l", &listen, "-i", "2", "--", c_server(), "threads", "{port}"];
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    daemon.wait_online(2);
    assert!((0..10).all(|_| Client::Http.ask(port).1));
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((service["via"].as_str(), service["listen"][0]["from"].as_str()), (Some("direct"), Some("flag")));
    assert!(service["via_reason"].as_str().unwrap().contains("can be preloaded"), "{service}");
    assert!(get(port).is_ok());
}

#[test]
fn nodes_own_cluster_runs_as_a_worker() {
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "cluster.js",
        "const c = require('cluster'), http = require('http');
         if (process.argv[3] === 'none') c.schedulingPolicy = c.SCHED_NONE;
         if (c.isPrimary) { c.fork(); c.fork(); }
         else http.createServer((request, response) => response.end(`slot ${process.env.ROUNDSMAN_SLOT} peer ${request.socket.remotePort}`))
           .listen(Number(process.argv[2]), '127.0.0.1');",
    );
    for policy in ["rr", "none"] {
        for own in ["rr", "none"] {
            let port = free_port();
            let command = ["node", script.to_str().unwrap(), &port.to_string(), own].map(str::to_owned);
            let mut daemon = start_with(port, "2", &["--via", "direct", "-p", policy, "--node-ipc", "plain"], &command);
            assert!((0..60).all(|_| ask(port).1), "{policy}/{own}");
            assert_eq!(daemon.total("connections"), 60, "{policy}/{own}");
            eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
            let end = daemon.stop();
            assert_eq!(end.code(), 0, "{policy}/{own}: {}", end.log);
            unsaid(&end.log, &["did not end"]);
        }
    }
}

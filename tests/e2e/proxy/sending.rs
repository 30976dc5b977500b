//! Servers behind a relay learn of the client by a PROXY header.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use super::{CLIENT, DESTINATION, ask, connect, own, v1, v2};
use crate::support::{Daemon, Process, eventually, free_port, install_dir, roundsman, seconds, write_file};

const VERSIONS: [&str; 2] = ["v1", "v2"];

/// The header of a connection from this client to 127.0.0.1 at a port.
fn expected(version: &str, client: &TcpStream, port: u16) -> Vec<u8> {
    let from = own(client).port();
    match version {
        "v1" => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {port}\r\n").into_bytes(),
        _ => {
            let ports = [from.to_be_bytes(), port.to_be_bytes()].concat();
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..], &ports].concat()
        }
    }
}

fn relay(version: &str, upstreams: &[u16]) -> Daemon {
    let upstreams: Vec<_> = upstreams.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut words = vec!["-i", "1", "--send-proxy", version];
    upstreams.iter().for_each(|upstream| words.extend(["-u", upstream]));
    Daemon::start(&words)
}

fn accept(upstream: &TcpListener) -> TcpStream {
    let stream = upstream.accept().unwrap().0;
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream
}

#[test]
fn the_header_comes_first_whatever_the_client_does() {
    for version in VERSIONS {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let daemon = relay(version, &[upstream.local_addr().unwrap().port()]);
        for data in [&b""[..], b"hello", &[b'x'; 300_000]] {
            for ends in [false, true] {
                let mut client = connect(daemon.port);
                let mut header = expected(version, &client, daemon.port);
                let mut writer = client.try_clone().unwrap();
                let body = data.to_vec();
                let writing = std::thread::spawn(move || {
                    writer.write_all(&body).unwrap();
                    if ends {
                        writer.shutdown(Shutdown::Write).unwrap();
                    }
                });
                let mut server = accept(&upstream);
                let mut came = vec![0; header.len() + data.len()];
                server.read_exact(&mut came).unwrap();
                header.extend(data);
                assert!(came == header, "{version}, {} bytes, ends {ends}", data.len());
                writing.join().unwrap();
                // A server that speaks first, and hears nothing more.
                server.write_all(b"answer").unwrap();
                client.read_exact(&mut [0; 6]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(server.read(&mut [0]).unwrap(), 0, "{version}");
            }
        }
        let counted = || daemon.ls()["services"][0]["upstreams"][0]["bytes_in"] == 2 * 300_005;
        eventually("the header is not the client's", seconds(5), || counted().then_some(()));
    }
}

#[test]
fn what_the_client_has_sent_travels_with_the_header() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = relay("v1", &[upstream.local_addr().unwrap().port()]);
    let pid = daemon.workers()[0];
    crate::support::freeze(pid);
    let mut client = connect(daemon.port);
    client.write_all(b"hello").unwrap();
    let header = expected("v1", &client, daemon.port);
    eventually("it is handed over", seconds(10), || (daemon.total("pending") == 1).then_some(()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGCONT).unwrap();
    let mut server = accept(&upstream);
    let mut came = [0; 200];
    let length = server.read(&mut came).unwrap();
    assert_eq!(came[..length], [&header[..], b"hello"].concat());
}

#[test]
fn an_upstream_that_takes_over_gets_one_header() {
    for version in VERSIONS {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let daemon = relay(version, &[free_port(), upstream.local_addr().unwrap().port()]);
        for _ in 0..4 {
            let mut client = connect(daemon.port);
            client.write_all(b"hello").unwrap();
            let mut header = expected(version, &client, daemon.port);
            client.shutdown(Shutdown::Write).unwrap();
            header.extend(b"hello");
            let mut came = Vec::new();
            accept(&upstream).read_to_end(&mut came).unwrap();
            assert_eq!(came, header, "{version}");
        }
    }
}

/// A balancer on the same machine, which connects to a Unix listener.
#[test]
fn a_unix_listener_takes_headers_where_it_is_named() {
    let (dir, upstream) = (install_dir(), TcpListener::bind("127.0.0.1:0").unwrap());
    let to = upstream.local_addr().unwrap().to_string();
    for (from, header) in [("unix", v1(CLIENT, DESTINATION)), ("127.0.0.1", b"PROXY UNKNOWN\r\n".to_vec())] {
        let (port, path) = (free_port(), dir.path().join(format!("{from}.sock")));
        let (tcp, unix) = (format!("127.0.0.1:{port}"), format!("unix:{}", path.display()));
        let words = ["-i", "1", "-l", &tcp, "-l", &unix, "--proxy-from", from, "--send-proxy", "v1", "-u", &to];
        let daemon = Daemon::launch(roundsman(), &words, port);
        daemon.wait_online(1);
        let mut client = UnixStream::connect(&path).unwrap();
        let sent = [&v1(CLIENT, DESTINATION)[..], b"hello"].concat();
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut came = Vec::new();
        accept(&upstream).read_to_end(&mut came).unwrap();
        // Where it is not named, all is data.
        let data = if from == "unix" { b"hello" } else { &sent[..] };
        assert_eq!(came, [&header[..], data].concat(), "{from}");
    }
    let (port, path) = (free_port(), dir.path().join("wrong.sock"));
    let (tcp, unix) = (format!("127.0.0.1:{port}"), format!("unix:{}", path.display()));
    let daemon =
        Daemon::launch(roundsman(), &["-i", "1", "-l", &tcp, "-l", &unix, "--proxy-from", "unix", "-u", &to], port);
    daemon.wait_online(1);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let _ = client.read_to_end(&mut Vec::new());
    let refused = || daemon.ls()["services"][0]["intake"]["refused"]["proxy-invalid"] == 1;
    eventually("it is refused", seconds(10), || refused().then_some(()));
}

/// nginx answers with the addresses that the header names.
fn nginx(dir: &std::path::Path) -> Process {
    let (port, dir_name) = (free_port(), dir.display());
    let conf = format!(
        "daemon off; worker_processes 1; error_log stderr; pid {dir_name}/nginx.pid; events {{ }}
         http {{ access_log off; client_body_temp_path {dir_name}/b; proxy_temp_path {dir_name}/p;
           fastcgi_temp_path {dir_name}/f; uwsgi_temp_path {dir_name}/u; scgi_temp_path {dir_name}/s;
           server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ return 200
             \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\"; }} }} }}"
    );
    let conf = write_file(dir, "sends.conf", &conf);
    Process::start("nginx", &["-c", conf.to_str().unwrap()], port)
}

#[test]
fn nginx_knows_the_client_also_of_a_balancer_in_front() {
    let dir = install_dir();
    let nginx = nginx(dir.path());
    let upstream = format!("127.0.0.1:{}", nginx.port);
    for version in VERSIONS {
        let port = free_port();
        let listeners = [format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
        let [four, six] = &listeners;
        let words = ["-i", "1", "--send-proxy", version, "-u", &upstream, "-l", four, "-l", six];
        let mut own = Daemon::launch(roundsman(), &words, port);
        own.wait_online(1);
        for (host, ip) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let mut client = TcpStream::connect((host, port)).unwrap();
            let from = super::own(&client).port();
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            assert_eq!(super::body(&mut client).unwrap(), format!("{ip} {from} {ip} {port}"), "{version}");
        }
        assert_eq!(own.stop().code(), 0);
        let daemon = Daemon::start(&["-i", "1", "--send-proxy", version, "--proxy-from", "127.0.0.1", "-u", &upstream]);
        let (client6, destination6) = ("2001:db8::7", "2001:db8::1");
        for (header, answer) in [
            (v1(CLIENT, DESTINATION), format!("{CLIENT} 56324 {DESTINATION} 443")),
            (v2(client6, destination6, &[]), format!("{client6} 56324 {destination6} 443")),
        ] {
            assert_eq!(ask(daemon.port, &header, "/").unwrap(), answer, "{version}");
        }
    }
}

/// Answers with the first line that it gets.
const LINE: &str = "
import os, socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        first = self.rfile.readline()
        while self.rfile.readline().strip(): pass
        self.wfile.write(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + first)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

#[test]
fn a_command_gets_its_connections_by_relay_with_a_header() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "line.py", LINE);
    let listen = format!("127.0.0.1:{port}");
    let words = ["-i", "2", "--send-proxy", "v1", "-l", &listen, "--", "python3", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &words, port);
    daemon.wait_online(2);
    let service = &daemon.ls()["services"][0];
    assert_eq!((service["via"].as_str(), service["via_reason"].as_str()), (Some("relay"), Some("--send-proxy")));
    for _ in 0..4 {
        let mut client = connect(port);
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let header = expected("v1", &client, port);
        assert_eq!(super::body(&mut client).unwrap().into_bytes(), header);
    }
}

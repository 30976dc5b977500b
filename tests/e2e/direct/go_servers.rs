//! Caddy and node_exporter, as the distribution packages them, under direct delivery by the keeper.

use std::io::{self, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::clients::Clients;
use crate::support::direct::{ask, start_with};
use crate::support::table::Client;
use crate::support::{
    Daemon, answers, certificate, eventually, free_port, get, install_dir, seconds, unsaid, write_file,
};

/// Over TLS: the answer's body.
fn get_by_tls(port: u16) -> io::Result<String> {
    let address = format!("https://127.0.0.1:{port}/");
    let output = Command::new("curl").args(["-sSk", "--http2", "-m", "20", &address]).output()?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(7) => Err(io::ErrorKind::ConnectionRefused.into()),
        Some(28) => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// Caddy with a site for HTTP and one for TLS, or its admin endpoint somewhere.
fn caddy(dir: &Path, ports: [u16; 2], admin: &str) -> Vec<String> {
    certificate(dir);
    let dir_name = dir.to_str().unwrap();
    // Of HTTP/3's UDP port there can only be one.
    let text = format!(
        "{{
  admin {admin}
  auto_https off
  storage file_system {dir_name}
  servers {{
    protocols h1 h2
  }}
}}
(answer) {{
  bind 127.0.0.1
  log {{
    output file {dir_name}/access-{{$ROUNDSMAN_SLOT}}.log
  }}
  respond \"slot {{$ROUNDSMAN_SLOT}} peer {{http.request.remote.port}}\"
}}
http://:{} {{
  import answer
}}
https://:{} {{
  tls {dir_name}/cert.pem {dir_name}/key.pem
  import answer
}}
",
        ports[0], ports[1]
    );
    let file = write_file(dir, "Caddyfile", &text);
    let words = ["caddy", "run", "--config", file.to_str().unwrap(), "--adapter", "caddyfile"];
    words.map(str::to_owned).to_vec()
}

fn both_slots() -> std::collections::BTreeSet<String> {
    ["slot 0", "slot 1"].map(str::to_owned).into()
}

fn by_keeper(daemon: &Daemon) {
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()));
}

#[test]
#[ignore = "needs Caddy: tests/run --all"]
fn caddy_by_http_and_tls_through_reloads_and_kills() {
    let (dir, ports) = (install_dir(), [free_port(), free_port()]);
    let command = caddy(dir.path(), ports, "off");
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let mut daemon = start_with(ports[0], "2", &["--via", "direct", "-l", &listen[0], "-l", &listen[1]], &command);
    by_keeper(&daemon);
    for client in [Client::Http, Client::Curl("--http1.1"), Client::Curl("--http2")] {
        let port = if matches!(client, Client::Http) { ports[0] } else { ports[1] };
        assert!((0..20).all(|_| client.ask(port).1), "the client's address");
        answers(&both_slots(), || client.ask(port).0);
    }
    // Its access log has it, too.
    let mut stream = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    stream.write_all(b"GET /logged HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let own = format!("\"remote_ip\":\"127.0.0.1\",\"remote_port\":\"{}\"", stream.local_addr().unwrap().port());
    eventually("it is in the access log", seconds(10), || {
        let log = |slot| std::fs::read_to_string(dir.path().join(format!("access-{slot}.log"))).unwrap_or_default();
        let lines = log(0) + &log(1);
        let line = lines.lines().find(|line| line.contains("/logged")).map(str::to_owned);
        line.map(|line| assert!(line.contains(&own), "{line}"))
    });
    drop(stream);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["did not end"]);
    let options = ["-l", &listen[0], "-l", &listen[1]];
    for (port, count, ask) in [(ports[0], 50, get as fn(u16) -> _), (ports[1], 8, get_by_tls)] {
        let clients = Clients { command: &command, port, count, ask, options: &options };
        clients.through_reloads(10);
        clients.through_kills(20);
    }
}

/// The admin endpoint is a second port: with --listen each process has it to itself, without it is shared like the sites.
#[test]
#[ignore = "needs Caddy: tests/run --all"]
fn the_admin_endpoint_of_caddy() {
    let (dir, ports, admin) = (install_dir(), [free_port(), free_port()], free_port());
    let command = caddy(dir.path(), ports, &format!("localhost:{admin}"));
    let of_slot = || {
        let address = format!("http://localhost:{admin}/config/");
        let output = Command::new("curl").args(["-sS", "-m", "10", &address]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let slot = text.find("slot ").unwrap_or_else(|| panic!("{text:?} {output:?}"));
        text[slot..slot + 6].to_owned()
    };
    let listeners = || {
        let filter = format!("sport = :{admin}");
        let output = Command::new("ss").args(["-Htlnp", &filter]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let mut daemon = start_with(ports[0], "2", &["--via", "direct", "-l", &listen[0], "-l", &listen[1]], &command);
    by_keeper(&daemon);
    assert_eq!(listeners().matches("\"caddy\"").count(), 2, "{}", listeners());
    answers(&both_slots(), of_slot);
    assert!((0..10).all(|_| ask(ports[0]).1));
    assert_eq!(daemon.stop().code(), 0);

    let mut daemon = start_with(ports[0], "2", &["--via", "direct"], &command);
    by_keeper(&daemon);
    let listeners = listeners();
    assert!(listeners.lines().count() == 1 && !listeners.contains("\"caddy\""), "{listeners}");
    assert!(daemon.ls()["services"][0]["listen"].to_string().contains(&admin.to_string()), "{}", daemon.ls());
    answers(&both_slots(), of_slot);
    assert!((0..10).all(|_| ask(ports[0]).1));
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
#[ignore = "needs node_exporter: tests/run --all"]
fn node_exporter_through_reloads_and_kills() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let bind = format!("--web.listen-address={address}");
    let words = ["prometheus-node-exporter", &bind, "--collector.disable-defaults", "--log.level=error"];
    let command = words.map(str::to_owned);
    let mut daemon = start_with(port, "2", &["--via", "direct", "-l", &address], &command);
    by_keeper(&daemon);
    eventually("both slots serve", seconds(10), || {
        assert!(get(port).unwrap().contains("/metrics"));
        daemon.slots().iter().all(|slot| slot["connections"].as_u64() > Some(4)).then_some(())
    });
    // It names no client; its sockets are the clients' own.
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let filter = format!("sport = :{port} and dport = :{}", stream.local_addr().unwrap().port());
    eventually("a worker has the client's connection", seconds(10), || {
        let output = Command::new("ss").args(["-Htnp", &filter]).output().unwrap();
        let sockets = String::from_utf8(output.stdout).unwrap();
        daemon.workers().iter().any(|pid| sockets.contains(&format!("pid={pid},"))).then_some(())
    });
    drop(stream);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["did not end"]);
    let clients = Clients { command: &command, port, count: 50, ask: get, options: &["-l", &address] };
    clients.through_reloads(10);
    clients.through_kills(20);
}

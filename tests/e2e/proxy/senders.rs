//! Real balancers in front of real servers: each server names the client that connected to the balancer.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use super::own;
use super::servers::{Server, all};
use crate::support::direct::start_with;
use crate::support::{Process, certificate, free_port, install_dir, seconds, write_file};

/// Addresses that servers bind, and from where clients connect.
const FAMILIES: [(&str, &str); 2] = [("0.0.0.0", "127.0.0.1"), ("::", "::1")];

/// Servers that a default run asks, too.
const OFTEN: [&str; 2] = ["node", "redis"];

/// Asks over a connection to a balancer.
#[track_caller]
fn ask(server: &Server, balancer: SocketAddr) {
    let mut client = TcpStream::connect(balancer).unwrap();
    client.set_read_timeout(Some(seconds(20))).unwrap();
    client.write_all(server.question()).unwrap();
    let own = own(&client);
    server.names(&mut client, own, balancer).unwrap();
}

/// HAProxy with a listener for each form of the header, on this address.
fn haproxy(dir: &Path, host: &str, to: u16) -> (Process, Vec<u16>) {
    let forms = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2-ssl-cn",
        "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c,unique-id",
    ];
    let ports = forms.map(|_| free_port());
    let listeners: String = forms
        .iter()
        .zip(ports)
        .map(|(form, port)| format!("listen l{port}\n bind {host}:{port}\n server app {host}:{to} {form}\n"))
        .collect();
    (haproxy_with(dir, &listeners, &format!("{host}:{to}")), ports.to_vec())
}

fn haproxy_with(dir: &Path, listeners: &str, to: &str) -> Process {
    let alive = free_port();
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n unique-id-format %ci\n\
         {listeners}listen alive\n bind 127.0.0.1:{alive}\n server app {to}\n"
    );
    let file = write_file(dir, "haproxy.cfg", &text);
    Process::start("haproxy", &["-db", "-f", file.to_str().unwrap()], alive)
}

/// All forms from HAProxy in front of servers.
fn behind_haproxy(wanted: impl Fn(&Server) -> bool) {
    for (host, from) in FAMILIES {
        let dir = install_dir();
        let port = free_port();
        let bind = if from.contains(':') { "[::1]" } else { from };
        let (_haproxy, forms) = haproxy(dir.path(), bind, port);
        for server in all(dir.path(), host, port).iter().filter(|server| wanted(server)) {
            let daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1,::1"], &server.command);
            for form in &forms {
                ask(server, SocketAddr::new(from.parse().unwrap(), *form));
            }
            assert_eq!(daemon.ls()["services"][0]["intake"]["proxy_headers"], forms.len(), "{}", server.name);
        }
    }
}

#[test]
fn haproxy_before_node_and_redis() {
    behind_haproxy(|server| OFTEN.contains(&server.name));
}

#[test]
#[ignore = "long"]
fn haproxy_before_all_servers() {
    behind_haproxy(|server| !OFTEN.contains(&server.name));
}

/// The client has a certificate, and HAProxy says so in attachments.
#[test]
fn haproxy_that_ends_tls_sends_the_certificates_name_along() {
    let dir = install_dir();
    certificate(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (key, cert) = (file("key.pem"), file("cert.pem"));
    let both = std::fs::read_to_string(&cert).unwrap() + &std::fs::read_to_string(&key).unwrap();
    let pem = write_file(dir.path(), "both.pem", &both).display().to_string();
    let (port, front) = (free_port(), free_port());
    let listener = format!(
        "listen tls\n bind 127.0.0.1:{front} ssl crt {pem} ca-file {cert} verify required\n \
         server app 127.0.0.1:{port} send-proxy-v2-ssl-cn proxy-v2-options crc32c\n"
    );
    let _haproxy = haproxy_with(dir.path(), &listener, &format!("127.0.0.1:{port}"));
    let server = all(dir.path(), "0.0.0.0", port).swap_remove(0);
    let _daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1"], &server.command);
    let curl = Command::new("curl")
        .args(["-sk", "--max-time", "20", "--cert", &cert, "--key", &key, "-w", " from %{local_ip} %{local_port}"])
        .arg(format!("https://127.0.0.1:{front}/"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&curl.stdout).into_owned();
    let (known, own) = said.split_once(" from ").unwrap_or_default();
    assert!(!own.is_empty() && known == own, "{said:?} {}", String::from_utf8_lossy(&curl.stderr));
}

#[test]
#[ignore = "long"]
fn nginx_before_all_servers() {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    for (host, from) in FAMILIES {
        let dir = install_dir();
        let (port, front, alive) = (free_port(), free_port(), free_port());
        let bind = if from.contains(':') { "[::1]" } else { from };
        let text = format!(
            "{load} daemon off; error_log stderr; pid {}/front.pid; events {{ }}
             stream {{ server {{ listen {bind}:{front}; proxy_pass {bind}:{port}; proxy_protocol on; }}
               server {{ listen 127.0.0.1:{alive}; proxy_pass 127.0.0.1:{port}; }} }}",
            dir.path().display()
        );
        let file = write_file(dir.path(), "front.conf", &text);
        let _nginx = Process::start("nginx", &["-c", file.to_str().unwrap()], alive);
        for server in all(dir.path(), host, port) {
            let _daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1,::1"], &server.command);
            ask(&server, SocketAddr::new(from.parse().unwrap(), front));
        }
    }
}

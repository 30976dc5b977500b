//! Several sockets of one server on one port: other addresses, both families.
//! Mostly waits: tests/run runs it beside others.

use std::net::{TcpStream, ToSocketAddrs};

use crate::support::direct::start_with;
use crate::support::{free_port, http_get, install_dir, seconds, write_file};

/// Binds and listens on one address after the other, as nginx and Go do.
const SEVERAL: &str = "
import socket, select, sys
sockets = []
for word in sys.argv[2:]:
    s = socket.socket(socket.AF_INET6 if ':' in word else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    host, _, scope = word.partition('%')
    if s.family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((host, int(sys.argv[1]), 0, int(scope or 0)) if ':' in word else (host, int(sys.argv[1])))
    s.listen(); sockets.append(s)
while True:
    for s in select.select(sockets, [], [])[0]:
        # On a machine that stands still the other worker may have taken it since.
        try: c, _ = s.accept()
        except ConnectionAbortedError: continue
        c.recv(1000); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nserved'); c.close()
";

fn ask(host: &str, port: u16) -> String {
    let to = (host, port).to_socket_addrs().unwrap().next().unwrap();
    let mut client = TcpStream::connect_timeout(&to, seconds(5)).unwrap();
    client.set_read_timeout(Some(seconds(10))).unwrap();
    http_get(&mut client).unwrap()
}

fn serves(instances: &str, listen: bool, addresses: &[&str], hosts: &[&str]) {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "several.py", SEVERAL);
    let text = port.to_string();
    let command: Vec<String> = ["python3", script.to_str().unwrap(), &text]
        .into_iter()
        .chain(addresses.iter().copied())
        .map(str::to_owned)
        .collect();
    let more = if listen { vec!["--via", "direct", "-l", &text] } else { vec!["--via", "direct"] };
    let daemon = start_with(port, instances, &more, &command);
    for host in hosts.iter().cycle().take(8) {
        assert_eq!(ask(host, port), "served", "{host}\n{}", daemon.log());
    }
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
fn both_families_of_a_port_are_two_sockets() {
    // `listen 80; listen [::]:80;` of every nginx on Debian.
    serves("2", true, &["0.0.0.0", "::"], &["127.0.0.1", "::1"]);
    serves("2", false, &["0.0.0.0", "::"], &["127.0.0.1", "::1"]);
}

#[test]
fn two_addresses_of_a_port_are_two_sockets() {
    serves("2", true, &["127.0.0.1", "127.0.0.2"], &["127.0.0.1", "127.0.0.2"]);
    serves("2", false, &["127.0.0.1", "127.0.0.2"], &["127.0.0.1", "127.0.0.2"]);
}

#[test]
fn a_scope_that_the_kernel_forgets_is_no_other_address() {
    // Java gives ::1 the scope of its interface.
    serves("2", false, &["::1%1"], &["::1"]);
}

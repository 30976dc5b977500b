//! The same key reaches the same worker, wherever it stands and however the connection comes.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::net::UnixStream;

use super::{answer, intake, relay, request, send};
use crate::proxy::{body, connect, v1};
use crate::support::direct::start_with;
use crate::support::{eventually, free_port, install_dir, seconds, slot_of, source};

#[test]
fn a_cookie_decides_with_direct_delivery() {
    let port = free_port();
    let command = ["node", &source("app.js"), "http", &port.to_string()].map(str::to_owned);
    let options = ["--policy", "hash", "--hash-on", "cookie:route", "--hash-wait", "15s"];
    let daemon = start_with(port, "3", &options, &command);
    let slot = |header: &str| {
        let mut stream = connect(port);
        stream.write_all(request("/", header).as_bytes()).unwrap();
        body(&mut stream).unwrap().split(" peer").next().unwrap().to_owned()
    };
    let all = || (0..20).map(|n| slot(&format!("Cookie: a=b; route=\"{n}\"\r\n"))).collect::<Vec<_>>();
    let first = all();
    assert_eq!(all(), first, "a key keeps its worker");
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "keys are spread: {first:?}");
    assert_eq!(slot("Cookie: route=0\r\n"), first[0], "quotes are no part of it");
    // A worker that still has some of them is passed over.
    eventually("all are closed", seconds(10), || (daemon.total("open") == 0).then_some(()));
    let without: BTreeSet<_> = (0..12).map(|_| slot("Cookie: Route=0\r\n")).collect();
    assert_eq!(without.len(), 3, "without a key in turn");
    let service = &daemon.ls()["services"][0];
    assert_eq!((&service["policy"], &service["hash_on"]), (&"hash".into(), &"cookie:route".into()));
    assert_eq!((intake(&daemon)["keys"].as_u64(), intake(&daemon)["no_key"]["absent"].as_u64()), (Some(41), Some(12)));
}

#[test]
fn a_parameter_decides_and_so_does_the_address() {
    let daemon = relay(&["-i", "4", "--hash-on", "query:tenant"]);
    let slot = |target: &str| {
        let mut stream = connect(daemon.port);
        stream.write_all(request(target, "").as_bytes()).unwrap();
        answer(&mut stream)
    };
    let all = |way: &str| (0..20).map(|n| slot(&format!("{way}?a=b&tenant={n}"))).collect::<Vec<_>>();
    let first = all("/");
    assert_eq!(all("http://example.org/x"), first);
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 2, "{first:?}");
    drop(daemon);
    let daemon = relay(&["-i", "4"]);
    let slots: BTreeSet<_> = (0..8).map(|n| answer(&mut send(daemon.port, &n.to_string()))).collect();
    assert_eq!(slots.len(), 1, "without --hash-on the address: {slots:?}");
    assert!(intake(&daemon).is_null());
}

/// The key is the same behind a PROXY header, by IPv6 and by a Unix socket.
#[test]
fn a_key_comes_in_every_way() {
    let (dir, port) = (install_dir(), free_port());
    let path = dir.path().join("in");
    let unix = format!("unix:{}", path.display());
    let v6 = format!("[::1]:{port}");
    let ways = ["-l", &v6, "-l", &unix, "--proxy-from", "127.0.0.1"];
    let daemon = relay(&[&["-i", "4", "--hash-on", "header:x-key"], &ways[..]].concat());
    for key in ["a", "b", "c", "d", "e"] {
        let request = request("/", &format!("x-key: {key}\r\n"));
        let mut slots = Vec::new();
        let mut stream = connect(daemon.port);
        for byte in v1("192.0.2.7", "203.0.113.1").chunks(1).chain(request.as_bytes().chunks(1)) {
            stream.write_all(byte).unwrap();
        }
        slots.push(answer(&mut stream));
        let mut stream = std::net::TcpStream::connect(("::1", port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        slots.push(answer(&mut stream));
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        slots.push(slot_of(&body(&mut stream).unwrap()));
        assert_eq!(slots, [slots[0]; 3], "{key}");
    }
    assert_eq!(intake(&daemon)["proxy_headers"], 5);
}

#[test]
fn with_worker_conns_a_client_waits_for_the_worker_of_its_key() {
    let limits = ["--worker-conns", "1", "--hash-wait", "20s", "--hash-on", "header:X-Key"];
    let daemon = relay(&[&["-i", "3"], &limits[..]].concat());
    let own = answer(&mut send(daemon.port, "a"));
    let mut first = connect(daemon.port);
    // Not all of a request's end: the server waits for more.
    first.write_all(b"GET / HTTP/1.1\r\nX-Key: a\r\n\r\n").unwrap();
    eventually("it is open", seconds(10), || (daemon.slot(own, "open") == 1).then_some(()));
    let mut second = send(daemon.port, "a");
    eventually("it waits", seconds(10), || (daemon.ls()["services"][0]["held"] == 1).then_some(()));
    drop(first);
    assert_eq!(answer(&mut second), own);
}

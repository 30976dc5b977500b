//! A server that gives the daemon what it was not asked for.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use super::clients::answer;
use super::{launch, reload};
use crate::support::{Daemon, eventually, seconds};

fn ask(daemon: &Daemon, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    stream
}

fn text(stream: &mut TcpStream) -> String {
    String::from_utf8(answer(stream).unwrap()).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

#[test]
fn what_no_leaving_worker_may_give_goes_nowhere() {
    let gives = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/gives.py");
    let daemon = launch(1, &[], &["python3", gives.to_str().unwrap()]);
    assert!(text(&mut ask(&daemon, "/first")).ends_with(" /first"));
    let before = descriptors(&daemon);
    // It is not told to.
    assert_eq!(ask(&daemon, "/give").read(&mut [0]).unwrap(), 0);
    let mut flood = ask(&daemon, "/flood");
    assert!(text(&mut flood).ends_with(" /flood"), "{}", daemon.log());
    drop(flood);
    assert_eq!(daemon.total("moved"), 0, "{}", daemon.log());
    eventually("no descriptor is left", seconds(20), || (descriptors(&daemon) <= before + 2).then_some(()));
    // Now it is: of all that it gives, one connection is what it should be, which it gives again and again.
    let mut kept = ask(&daemon, "/keep");
    let old = text(&mut kept);
    reload(&daemon);
    assert!(text(&mut ask(&daemon, "/after")).ends_with(" /after"));
    assert_ne!(text(&mut ask(&daemon, "/keep")), old);
    drop(kept);
    eventually("no descriptor is left", seconds(20), || (descriptors(&daemon) <= before + 8).then_some(()));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn a_connection_whose_close_would_wait_for_its_client_holds_up_nothing() {
    let gives = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/gives.py");
    // Its end closes its own copies, which the kernel waits for: it is killed.
    let daemon = launch(1, &["--drain-timeout", "1s", "--kill-timeout", "1s"], &["python3", gives.to_str().unwrap()]);
    let lingering: Vec<_> = (0..20).map(|_| ask(&daemon, "/linger")).collect();
    let old = text(&mut ask(&daemon, "/before"));
    let began = Instant::now();
    reload(&daemon);
    let new = text(&mut ask(&daemon, "/before"));
    assert!(old != new && began.elapsed() < seconds(30), "{old}, {new}, {:?}", began.elapsed());
    assert_eq!(daemon.total("moved"), 0);
    drop(lingering);
}

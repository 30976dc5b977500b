//! A server that reads a few bytes at a time and closes connections at any moment: its successor never sees a request that no
//! client has sent, whatever the bodies look like.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::clients::answer;
use super::{keeps, launch, reload};
use crate::support::{Random, eventually, install_dir, millis, seconds};

/// Bodies of whole requests, sent in pieces of any length, on connections that stay.
fn client(port: u16, seed: u64, number: &AtomicUsize, over: &AtomicBool, sent: &Mutex<BTreeMap<String, usize>>) {
    let mut random = Random(seed);
    let mut below = |n: usize| random.below(n as u64) as usize;
    while !over.load(SeqCst) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        stream.set_nodelay(true).unwrap();
        while !over.load(SeqCst) {
            let path = format!("/sent-{}", number.fetch_add(1, SeqCst));
            let evil = "POST /evil HTTP/1.1\r\nContent-Length: 0\r\n\r\n".repeat(1 + below(4));
            let body = &evil[below(3).min(1) * below(evil.len())..];
            sent.lock().unwrap().insert(path.clone(), body.len());
            let request = format!("POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let mut rest = request.as_bytes();
            let mut written = Ok(());
            while !rest.is_empty() && written.is_ok() {
                let (part, behind) = rest.split_at(1 + below(rest.len()));
                written = stream.write_all(part);
                rest = behind;
                std::thread::sleep(millis(below(3) as u64));
            }
            if written.is_err() || answer(&mut stream).is_err() {
                break;
            }
            // Some are idle when the server looks at them.
            std::thread::sleep(millis(below(60) as u64));
        }
    }
}

fn no_request_is_made_up(via: &str, reloads: usize) {
    let dir = install_dir();
    let out = dir.path().join("out");
    let options = ["--via", via, "--env", "KEEPS=random", "--out", out.to_str().unwrap()];
    let daemon = launch(2, &options, &["python3", &keeps()]);
    let (number, over, sent) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for seed in 1..=12 {
            let (port, number, over, sent) = (daemon.port, &number, &over, &sent);
            scope.spawn(move || client(port, seed, number, over, sent));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..reloads {
                reload(&daemon);
            }
        }));
        over.store(true, SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let moved = daemon.total("moved");
    let sent = sent.into_inner().unwrap();
    let ran = eventually("the servers' lines", seconds(10), || {
        std::fs::read_to_string(&out).ok().filter(|text| !text.is_empty())
    });
    let mut seen = BTreeSet::new();
    for line in ran.lines().filter_map(|line| line.strip_prefix("ran ")) {
        let (path, len) = line.split_once(' ').unwrap();
        assert_eq!(sent.get(path).map(usize::to_string).as_deref(), Some(len), "{line}");
        assert!(seen.insert(path.to_owned()), "twice: {line}");
    }
    println!("{} sent, {} ran, {moved} moved", sent.len(), seen.len());
    assert!(seen.len() > 50 && moved > 0, "{} sent, {} ran, {moved} moved\n{}", sent.len(), seen.len(), daemon.log());
}

#[test]
fn no_successor_sees_a_request_that_no_client_has_sent() {
    no_request_is_made_up("direct", 2);
}

#[test]
fn nor_by_relay() {
    no_request_is_made_up("relay", 2);
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn nor_in_a_hundred_reloads() {
    no_request_is_made_up("direct", 100);
    no_request_is_made_up("relay", 20);
}

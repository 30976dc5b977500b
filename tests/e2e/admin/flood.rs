//! Probes come through, whatever other clients of `--admin` do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Daemon, eventually, free_port, millis, roundsman, seconds};

const ASK: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Whether the status is 200, within a second from the connect on.
fn probe(admin: u16, path: &str) -> Result<(), String> {
    let begin = std::time::Instant::now();
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], admin).into(), seconds(1))?;
        stream.set_read_timeout(Some(seconds(1)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n").as_bytes())?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().map_err(|error| format!("{path}: {error} after {:?}", begin.elapsed()))?;
    match answer == "HTTP/1.1 200 OK" && begin.elapsed() < seconds(1) {
        true => Ok(()),
        false => Err(format!("{path}: {answer} after {:?}", begin.elapsed())),
    }
}

/// A client that says so much and then holds on; a fresh one when it was closed.
fn hold(client: &mut Option<TcpStream>, admin: u16, words: &[u8]) {
    let mut buffer = [0; 1024];
    let is_open = |client: &mut TcpStream| match client.read(&mut buffer) {
        Ok(n) => n > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    if client.as_mut().is_some_and(is_open) {
        return;
    }
    *client = TcpStream::connect_timeout(&([127, 0, 0, 1], admin).into(), millis(500)).ok();
    if let Some(client) = client {
        let _ = client.write_all(words);
        client.set_nonblocking(true).unwrap();
    }
}

#[test]
fn probes_are_answered_within_a_second_beside_thousands_of_clients_that_hold_on() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (admin, listen) = (free_port(), free_port().to_string());
    let address = admin.to_string();
    let all = ["-l", &listen, "--via", "relay", "-i", "1", "--admin", &address, "--name", "shop"];
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let daemon = Daemon::launch(roundsman(), &[&all[..], &server].concat(), 0);
    daemon.wait_online(1);
    eventually("ready", seconds(10), || probe(admin, "/readyz").ok());
    let over = Arc::new(AtomicBool::new(false));
    let flood = |count: usize, words: &'static [u8], again: bool| {
        let (over, ready) = (over.clone(), Arc::new(AtomicBool::new(false)));
        let all_there = ready.clone();
        let thread = std::thread::spawn(move || {
            let mut clients: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
            while !over.load(Ordering::Relaxed) {
                for client in &mut clients {
                    hold(client, admin, words);
                    if let Some(client) = client.as_mut().filter(|_| again) {
                        let _ = client.write_all(words);
                    }
                    if all_there.load(Ordering::Relaxed) {
                        // Some hundred connects a second: more would only show how busy the machine is.
                        std::thread::sleep(millis(10));
                    }
                }
                all_there.store(true, Ordering::Relaxed);
            }
        });
        (thread, ready)
    };
    let floods = [flood(2000, b"", false), flood(2000, b"GET /livez HTTP/1.1\r\nHo", false), flood(200, ASK, true)];
    for (_, ready) in &floods {
        eventually("all clients are there", seconds(60), || ready.load(Ordering::Relaxed).then_some(()));
    }
    // On a busy machine, what came at once is still being accepted.
    eventually("an answer", seconds(10), || probe(admin, "/livez").ok());
    let mut failed = Vec::new();
    for n in 0..20 {
        failed.extend(probe(admin, if n % 2 == 0 { "/livez" } else { "/readyz" }).err());
        std::thread::sleep(millis(100));
    }
    over.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|(thread, _)| thread.join().unwrap());
    assert!(failed.is_empty(), "{failed:?}");
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 40 << 20, "{rss}");
}

#[test]
fn healthz_is_about_the_services_and_not_about_a_stop() {
    let (admin, listen) = (free_port(), free_port().to_string());
    let address = admin.to_string();
    let all = ["-l", &listen, "--via", "relay", "-i", "1", "--admin", &address, "--stop-delay", "30s"];
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let daemon = Daemon::launch(roundsman(), &[&all[..], &server].concat(), 0);
    daemon.wait_online(1);
    eventually("healthy", seconds(10), || probe(admin, "/healthz").ok());
    let verb = |verb: &str| roundsman().arg(verb).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(verb("stop").status.success());
    eventually("ill", seconds(10), || probe(admin, "/healthz").err());
    assert!(verb("start").status.success());
    eventually("healthy again", seconds(10), || probe(admin, "/healthz").ok());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("not ready", seconds(10), || probe(admin, "/readyz").err().filter(|why| why.contains("503")));
    eventually("healthy all the same", seconds(10), || probe(admin, "/healthz").ok());
}

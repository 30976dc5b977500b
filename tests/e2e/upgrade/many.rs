//! Ten thousand open connections through twenty upgrades.

use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{answer, descriptors, resident, upgraded};
use crate::support::{Daemon, eventually, free_port, get, install_dir, millis, roundsman, seconds, write_file};

const CONNECTIONS: usize = 10_000;
const UPGRADES: usize = 20;

/// Keeps connections for ever.
const SERVER: &str = "const s = require('http').createServer((q, r) => { q.resume(); r.end(String(process.pid)); });
s.keepAliveTimeout = s.headersTimeout = s.requestTimeout = s.timeout = 0;
s.listen(process.env.PORT, '127.0.0.1');
";

/// A request on each, before an answer of any is read.
fn ask_all(streams: &mut [TcpStream]) {
    use std::io::Write;
    for some in streams.chunks_mut(200) {
        for stream in &mut *some {
            stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody").unwrap();
        }
        for stream in some {
            answer(stream).unwrap();
        }
    }
}

/// Ends the clients, also when an assertion fails: they would be waited for.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn stay(via: &str) {
    let (dir, port) = (install_dir(), free_port());
    write_file(dir.path(), "server.js", SERVER);
    let mut command = roundsman();
    command.current_dir(dir.path());
    let listen = format!("127.0.0.1:{port}");
    let daemon = Daemon::launch(
        command,
        &["-n", "web", "-l", &listen, "-i", "4", "--via", via, "--", "node", "server.js"],
        port,
    );
    daemon.wait_online(4);
    let mut streams: Vec<TcpStream> = Vec::new();
    while streams.len() < CONNECTIONS {
        let some = (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap());
        let mut some: Vec<_> = some.collect();
        some.iter().for_each(|stream| stream.set_read_timeout(Some(seconds(30))).unwrap());
        ask_all(&mut some);
        streams.append(&mut some);
    }
    let workers = daemon.workers();
    let (stop, times) = (AtomicBool::new(false), Mutex::new(Vec::<Duration>::new()));
    let (flat, mut memory) = (descriptors(&daemon), 0);
    std::thread::scope(|scope| {
        let _stop = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let start = Instant::now();
                get(port).unwrap();
                times.lock().unwrap().push(start.elapsed());
                std::thread::sleep(millis(1));
            }
        });
        for (round, some) in streams.chunks_mut(CONNECTIONS / UPGRADES).enumerate() {
            let (start, before) = (Instant::now(), times.lock().unwrap().len());
            upgraded(&daemon);
            let took = start.elapsed();
            eventually("requests", seconds(20), || (times.lock().unwrap().len() > before + 5).then_some(()));
            let longest = times.lock().unwrap()[before..].iter().max().copied();
            ask_all(some);
            eventually(&format!("{flat} descriptors"), seconds(20), || {
                (descriptors(&daemon) <= flat + 10).then_some(())
            });
            let (open, bytes) = (descriptors(&daemon), resident(&daemon));
            eprintln!("{via} {round}: {took:?}, longest request {longest:?}, {} KiB, {open} descriptors", bytes >> 10);
            if round == 2 {
                memory = bytes;
            }
        }
    });
    let grown = resident(&daemon).saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes more than after the third");
    eventually("only those that stay", seconds(20), || (daemon.total("open") == CONNECTIONS as u64).then_some(()));
    assert_eq!(daemon.total("connections"), (CONNECTIONS + times.into_inner().unwrap().len()) as u64);
    assert_eq!((daemon.workers(), daemon.total("restarts")), (workers, 0), "the same servers");
    ask_all(&mut streams);
}

#[test]
#[ignore = "long"]
fn ten_thousand_open_connections_stay_through_twenty_upgrades() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > CONNECTIONS as u64 + 1000, "{hard} descriptors are not enough");
    stay("direct");
    stay("relay");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

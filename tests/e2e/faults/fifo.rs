//! How long clients wait with `--worker-conns 1`, beside an ideal queue with the same arrivals and service times.

#[path = "../../../bench/load/src/fifo.rs"]
mod ideal;

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::direct::start_with;
use crate::support::{Random, free_port, install_dir, read_all, seconds, write_file};
use ideal::{ideal_waits, mean_and_p99};

/// Accepts all at once and serves one after the other, each for as many microseconds as it asks for; answers with the
/// nanoseconds that it took.
const SERVER: &str = "
import queue, socket, sys, threading, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(1000)
line = queue.SimpleQueue()
def serve():
    while True:
        c = line.get(); begin = time.monotonic_ns()
        time.sleep(int(c.recv(100)) / 1e6)
        c.sendall(b'%d' % (time.monotonic_ns() - begin)); c.close()
threading.Thread(target=serve, daemon=True).start()
while True: line.put(s.accept()[0])
";

const SERVERS: usize = 8;
const MEAN_MS: f64 = 20.0;

/// Exponential, from a fixed seed.
fn exponential(random: &mut Random, mean: f64) -> f64 {
    let uniform = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
    -mean * (1.0 - uniform).ln()
}

/// Mean and p99 of the waits beyond those of an ideal queue, in milliseconds.
fn beyond_ideal(options: &[&str], arrivals: usize) -> (f64, f64) {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "sleeper.py", SERVER);
    let command = ["python3", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let daemon = start_with(port, &SERVERS.to_string(), options, &command);
    daemon.wait_online(SERVERS);
    let mut random = Random(16);
    let (sender, receiver) = mpsc::channel();
    let (start, mut due) = (Instant::now(), 0.0);
    for _ in 0..arrivals {
        // 80 % of what the servers can do.
        due += exponential(&mut random, MEAN_MS / 1e3 / (SERVERS as f64 * 0.8));
        let service = format!("{:.0}", exponential(&mut random, MEAN_MS) * 1e3);
        thread::sleep((start + Duration::from_secs_f64(due)).saturating_duration_since(Instant::now()));
        let sender = sender.clone();
        thread::spawn(move || {
            let began = start.elapsed().as_nanos() as u64;
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(seconds(30))).unwrap();
            stream.write_all(service.as_bytes()).unwrap();
            let answer = String::from_utf8(read_all(&mut stream).unwrap()).unwrap();
            let (took, service) = (start.elapsed().as_nanos() as u64 - began, answer.parse::<u64>().unwrap());
            sender.send((began, service, took.saturating_sub(service))).unwrap();
        });
    }
    drop(sender);
    let mut seen: Vec<_> = receiver.iter().collect();
    assert_eq!(seen.len(), arrivals, "lost: {}", daemon.log());
    seen.sort_unstable();
    let recorded: Vec<_> = seen.iter().map(|&(began, service, _)| (began, service)).collect();
    let ideal = mean_and_p99(&ideal_waits(SERVERS, &recorded));
    let real = mean_and_p99(&seen.iter().map(|&(.., waited)| waited).collect::<Vec<_>>());
    println!(
        "waited {:.2} ms, p99 {:.1}; ideal {:.2}, {:.1}",
        real.0 / 1e6,
        real.1 / 1e6,
        ideal.0 / 1e6,
        ideal.1 / 1e6
    );
    ((real.0 - ideal.0) / 1e6, (real.1 - ideal.1) / 1e6)
}

#[test]
#[ignore = "timed; run by --all"]
fn one_connection_each_waits_as_in_an_ideal_queue() {
    let (mean, p99) = beyond_ideal(&["--worker-conns", "1"], 4_000);
    // Wide, for machines with other things to do; bench/run fifo has the figures. Without the queue it is 30 and 170 ms.
    assert!(mean <= 5.0 && p99 <= 20.0, "{mean:.2} ms and {p99:.1} ms beyond the ideal queue");
}

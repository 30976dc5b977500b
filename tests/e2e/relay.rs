//! Bytes: all of them, in order, with the end that they had.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::support::{Daemon, Upstream, eventually, millis, read_all, reset, seconds};

/// Numbers that depend on a seed only: a failing case is named by it and can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// How one side of a connection behaves.
#[derive(Debug, Clone, Copy)]
struct Script {
    seed: u64,
    bytes: u64,
    write: Pace,
    read: Pace,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Fast,
    /// Small pieces.
    Small,
    /// One byte at a time.
    Bytes,
    /// With pauses.
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// FIN after the last byte, reading on.
    HalfClose,
    /// Reset once all that was sent has arrived at the other side's kernel.
    Reset,
}

/// What one side received: how many bytes, their digest, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    bytes: u64,
    digest: [u8; 32],
    reset: bool,
}

fn fill(random: &mut Random, buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
}

/// Writes what a script says; the digest of what was written, and whether the other side's reset cut it short (the
/// kernel tells of a reset once: to a write or to a read).
fn send(mut stream: &TcpStream, script: Script) -> ([u8; 32], bool) {
    let (mut random, mut hash, mut left) = (Random(script.seed), Sha256::new(), script.bytes);
    let piece = match script.write {
        Pace::Fast | Pace::Slow => 64 * 1024,
        Pace::Small => 100,
        Pace::Bytes => 1,
    };
    let mut buffer = vec![0; piece];
    while left > 0 {
        let n = left.min(piece as u64) as usize;
        fill(&mut random, &mut buffer[..n]);
        if stream.write_all(&buffer[..n]).is_err() {
            return (hash.finalize().into(), true);
        }
        hash.update(&buffer[..n]);
        left -= n as u64;
        if script.write == Pace::Slow {
            std::thread::sleep(millis(1));
        }
    }
    (hash.finalize().into(), false)
}

fn receive(mut stream: &TcpStream, pace: Pace) -> Got {
    let (mut hash, mut bytes, mut reset) = (Sha256::new(), 0, false);
    let mut buffer = vec![0; if pace == Pace::Bytes { 7 } else { 64 * 1024 }];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
                reset = true;
                break;
            }
        }
        if pace == Pace::Slow {
            std::thread::sleep(millis(1));
        }
    }
    Got { bytes, digest: hash.finalize().into(), reset }
}

/// Plays one side to its end: (digest of what it sent, what it received).
fn play(stream: TcpStream, script: Script) -> ([u8; 32], Option<Got>) {
    stream.set_read_timeout(Some(seconds(60))).unwrap();
    stream.set_write_timeout(Some(seconds(60))).unwrap();
    if script.end == End::Reset {
        let (sent, _) = send(&stream, script);
        // Until the relay's kernel has it: a reset drops what is still here, as it would without a relay.
        eventually("all is acknowledged", seconds(60), || {
            (roundsman::sys::sock::unacked_bytes(std::os::fd::AsFd::as_fd(&stream)).unwrap() == 0).then_some(())
        });
        reset(stream);
        return (sent, None);
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| receive(&stream, script.read));
        let (sent, cut) = send(&stream, script);
        let _ = stream.shutdown(Shutdown::Write);
        let mut got = reader.join().unwrap();
        got.reset |= cut;
        (sent, Some(got))
    })
}

/// The scripts of a case: client and server. At most one of them resets.
fn case(seed: u64) -> (Script, Script) {
    let mut random = Random(seed);
    let mut side = |salt: u64, end: End| {
        let write = [Pace::Fast, Pace::Fast, Pace::Small, Pace::Bytes, Pace::Slow][random.below(5) as usize];
        let read = [Pace::Fast, Pace::Fast, Pace::Fast, Pace::Bytes, Pace::Slow][random.below(5) as usize];
        let most = match (write, read) {
            (Pace::Bytes, _) => 3_000,
            (Pace::Small, _) => 100_000,
            (Pace::Slow, _) => 4 << 20,
            // A few as large as it gets.
            _ if seed.is_multiple_of(100) => 64 << 20,
            _ => 1 << 20,
        };
        let bytes = match random.below(6) {
            0 => 0,
            1 => random.below(10),
            _ if seed.is_multiple_of(100) && write == Pace::Fast => most,
            _ => random.below(most + 1),
        };
        Script { seed: seed ^ salt, bytes, write, read, end }
    };
    let client = side(0x1111, if seed % 4 == 1 { End::Reset } else { End::HalfClose });
    let server = side(0x2222, if seed % 4 == 3 { End::Reset } else { End::HalfClose });
    (client, server)
}

/// Reads slowly only what is not huge.
fn tamed(mut script: Script, other: Script) -> Script {
    let too_long = match script.read {
        Pace::Fast | Pace::Small => false,
        Pace::Slow => other.bytes > 2 << 20,
        Pace::Bytes => other.bytes > 50_000,
    };
    if too_long {
        script.read = Pace::Fast;
    }
    script
}

fn thousand_cases(policy: &str, cases: std::ops::Range<u64>) {
    // What the server plays in a case, and where its result goes.
    let plays = Arc::new(Mutex::new(HashMap::new()));
    let announced: Arc<Mutex<HashMap<u64, mpsc::Sender<_>>>> = Arc::new(Mutex::new(HashMap::new()));
    let (scripts, results) = (plays.clone(), announced.clone());
    let upstream = Upstream::start(move |mut stream| {
        // The first eight bytes name the case.
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let seed = u64::from_le_bytes(head);
        let script: Script = scripts.lock().unwrap().remove(&seed).unwrap();
        let result = play(stream, script);
        if let Some(sender) = results.lock().unwrap().remove(&seed) {
            let _ = sender.send(result);
        }
        Ok(())
    });
    let daemon = Daemon::start(&["-i", "2", "-p", policy, "-u", &upstream.arg()]);
    let next = AtomicUsize::new(cases.start as usize);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst) as u64;
                    if seed >= cases.end {
                        break;
                    }
                    let (client, server) = case(seed);
                    let (client, server) = (tamed(client, server), tamed(server, client));
                    let (sender, receiver) = mpsc::channel();
                    plays.lock().unwrap().insert(seed, server);
                    announced.lock().unwrap().insert(seed, sender);
                    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
                    stream.write_all(&seed.to_le_bytes()).unwrap();
                    let (client_sent, client_got) = play(stream, client);
                    let (server_sent, server_got) = receiver.recv_timeout(seconds(90)).unwrap_or_else(|_| {
                        panic!("case {seed}: the server's side does not end\n{client:?}\n{server:?}")
                    });
                    judge(seed, "server got", server_got, client, client_sent);
                    judge(seed, "client got", client_got, server, server_sent);
                }
            });
        }
    });
    eventually("open is back to 0", seconds(10), || (daemon.total("open") == 0).then_some(()));
}

/// A side that received to the end has every byte of the other, in order, and the same end.
fn judge(seed: u64, who: &str, got: Option<Got>, sender: Script, sent: [u8; 32]) {
    // A side that resets does not care for what it gets; one that is reset while it writes may miss its rest.
    let Some(got) = got else { return };
    assert_eq!(got.reset, sender.end == End::Reset, "case {seed}: {who} {got:?} of {sender:?}");
    assert_eq!((got.bytes, got.digest), (sender.bytes, sent), "case {seed}: {who} of {sender:?}");
}

#[test]
fn a_thousand_random_streams_arrive_whole_and_end_as_they_ended() {
    thousand_cases("rr", 0..1000);
}

#[test]
fn under_none_as_well() {
    thousand_cases("none", 5000..5200);
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    let upstream = Upstream::start(|mut stream| {
        let chunk = vec![7; 1 << 20];
        loop {
            stream.write_all(&chunk)?;
        }
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let rss = || daemon.slot(0, "rss_bytes").as_u64().unwrap();
    let before = rss();
    let mut clients: Vec<_> = (0..50).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    for client in &mut clients {
        client.read_exact(&mut [0; 100_000]).unwrap();
    }
    // As long as it takes for all buffers to be full.
    let mut last = 0;
    eventually("memory settles", seconds(20), || {
        std::thread::sleep(millis(200));
        let now = rss();
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let grown = last.saturating_sub(before);
    assert!(grown < 50 * 80 * 1024 + (1 << 20), "{grown} bytes for 50 clients that do not read");
}

#[test]
fn a_long_stream_is_spliced_and_small_messages_are_not() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let worker = daemon.workers()[0].to_string();
    let count = |work: &dyn Fn()| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace");
        let mut strace = std::process::Command::new("strace")
            .args(["-f", "-e", "trace=splice", "-o", file.to_str().unwrap(), "-p", &worker])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(strace.stderr.take().unwrap()), &mut String::new()).unwrap();
        work();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::Signal::SIGINT)
            .unwrap();
        strace.wait().unwrap();
        std::fs::read_to_string(file).unwrap().matches("splice(").count()
    };
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let ping = |mut stream: &TcpStream| {
        for _ in 0..50 {
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
        }
    };
    assert_eq!(count(&|| ping(&stream)), 0);
    let long = |stream: &TcpStream| {
        std::thread::scope(|scope| {
            scope.spawn(|| { stream }.write_all(&vec![1; 16 << 20]).unwrap());
            { stream }.read_exact(&mut vec![0; 16 << 20]).unwrap();
        });
    };
    assert!(count(&|| long(&stream)) > 20);
    ping(&stream);
    assert!(count(&|| ping(&stream)) < 30, "back to copying when idle");
    stream.write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stream).unwrap(), b"x");
}

#[test]
fn idle_connections_are_closed_after_the_idle_timeout_and_busy_ones_are_not() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg(), "--idle-timeout", "600ms"]);
    let mut idle = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let mut busy = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    idle.set_read_timeout(Some(seconds(10))).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0]).unwrap();
    let begin = Instant::now();
    let watcher = std::thread::spawn(move || (idle.read(&mut [0]).unwrap_or(0), begin.elapsed()));
    for _ in 0..40 {
        busy.write_all(b"y").unwrap();
        busy.read_exact(&mut [0]).unwrap();
        std::thread::sleep(millis(50));
    }
    let (n, after) = watcher.join().unwrap();
    assert_eq!(n, 0);
    assert!((millis(500)..seconds(3)).contains(&after), "closed after {after:?}");
}

#[test]
fn both_sides_have_tcp_keep_alive() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let timers = |filter: &str| {
        let output = std::process::Command::new("ss").args(["-Htno", filter]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let client_side = timers(&format!("sport = :{}", daemon.port));
    assert!(client_side.contains("keepalive"), "{client_side}");
    // The upstream's socket gets it when the connection turns out to last.
    eventually("keep-alive on the upstream's socket", seconds(30), || {
        timers(&format!("dport = :{}", upstream.address.port())).contains("keepalive").then_some(())
    });
}

#[test]
fn small_messages_are_not_held_back() {
    // Without TCP_NODELAY the second small write of a pair waits for a delayed acknowledgement: 40 ms.
    let upstream = Upstream::start(|mut stream| {
        stream.set_nodelay(true)?;
        let mut two = [0; 2];
        loop {
            stream.read_exact(&mut two)?;
            stream.write_all(&two[..1])?;
            std::thread::sleep(millis(1));
            stream.write_all(&two[1..])?;
        }
    });
    let daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    SockRef::from(&stream).set_tcp_nodelay(true).unwrap();
    let begin = Instant::now();
    for _ in 0..50 {
        stream.write_all(b"a").unwrap();
        std::thread::sleep(millis(1));
        stream.write_all(b"b").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_millis(50 * 20), "{:?} for 50 exchanges", begin.elapsed());
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let upstream = Upstream::start(|mut stream| stream.write_all(b"220 hello\r\n"));
    let daemon = Daemon::start(&["-i", "2", "-u", &upstream.arg()]);
    for _ in 0..100 {
        assert_eq!(read_all(&mut TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).unwrap(), b"220 hello\r\n");
    }
}

#[test]
fn a_listener_that_vanishes_between_connections_is_no_matter() {
    // A port that is bound by nobody in between: the client waits for the next server, not for an error.
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    let daemon = Daemon::start(&["-i", "1", "-u", &address.to_string()]);
    drop(first);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"kept").unwrap();
    std::thread::sleep(millis(300));
    let second = TcpListener::bind(address).unwrap();
    let (mut served, _) = second.accept().unwrap();
    let mut word = [0; 4];
    served.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"kept");
}

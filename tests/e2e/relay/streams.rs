//! Random streams in both directions, with every kind of pace and end, compared by their digests.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use sha2::{Digest, Sha256};

use crate::support::{Daemon, Random, Upstream, eventually, millis, reset, seconds};

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

/// Plays the cases of a range of seeds through the relay.
pub fn play_cases(policy: &str, cases: std::ops::Range<u64>) {
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

//! Connections with one request each.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;
use slab::Slab;

pub const REQUEST: &[u8] = b"GET /small HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
/// Nothing takes longer: what has no answer by then is an error.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond this a generator would measure itself.
const MAX_OPEN: usize = 12_000;

struct Waiting {
    stream: TcpStream,
    /// When it should have begun.
    scheduled: Instant,
    sent: bool,
    answered: bool,
}

struct Load {
    poll: Poll,
    waiting: Slab<Waiting>,
    histogram: Histogram<u64>,
    target: SocketAddr,
    errors: u64,
    /// The first bytes are the answer, and the connection over.
    once: bool,
}

impl Load {
    fn new(target: SocketAddr) -> io::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
        Ok(Self { poll: Poll::new()?, waiting: Slab::new(), histogram, target, errors: 0, once: false })
    }

    fn begin(&mut self, scheduled: Instant) {
        if self.waiting.len() >= MAX_OPEN {
            self.errors += 1;
            return;
        }
        let Ok(mut stream) = TcpStream::connect(self.target) else {
            self.errors += 1;
            return;
        };
        let entry = self.waiting.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().register(&mut stream, Token(entry.key()), interest) {
            Ok(()) => drop(entry.insert(Waiting { stream, scheduled, sent: false, answered: false })),
            Err(_) => self.errors += 1,
        }
    }

    /// Waits until something happens or that time has come. epoll_wait(2) counts milliseconds, ppoll(2) nanoseconds.
    fn wait(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        let mut descriptor = libc::pollfd { fd: self.poll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry and one timespec, which live through the call.
        unsafe { libc::ppoll(&raw mut descriptor, 1, &raw const timeout, std::ptr::null()) };
    }

    /// Takes what happened until then.
    fn turn(&mut self, events: &mut Events, until: Instant) -> io::Result<()> {
        self.wait(until);
        match self.poll.poll(events, Some(Duration::ZERO)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &*events {
            let Token(key) = event.token();
            let Some(waiting) = self.waiting.get_mut(key) else { continue };
            match waiting.step(self.once) {
                Ok(false) => {}
                Ok(true) => {
                    let took = waiting.scheduled.elapsed().as_nanos() as u64;
                    self.histogram.saturating_record(took);
                    self.waiting.remove(key);
                }
                Err(_) => {
                    self.errors += 1;
                    self.waiting.remove(key);
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, events: &mut Events) -> io::Result<()> {
        let end = Instant::now() + TIMEOUT;
        while !self.waiting.is_empty() && Instant::now() < end {
            self.turn(events, end)?;
        }
        self.errors += self.waiting.len() as u64;
        Ok(())
    }

    fn report(&self, took: Duration) {
        let at = |quantile| self.histogram.value_at_quantile(quantile) as f64 / 1e3;
        let line = json!({
            "served": self.histogram.len(), "errors": self.errors, "seconds": took.as_secs_f64(),
            "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": self.histogram.max() as f64 / 1e3,
        });
        println!("{line}");
    }
}

impl Waiting {
    /// Whether the answer is there, and the connection over.
    fn step(&mut self, once: bool) -> io::Result<bool> {
        if !self.sent {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            match self.stream.write(REQUEST) {
                Ok(_) => self.sent = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::NotConnected => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if self.answered => return Ok(true),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if once => return Ok(true),
                Ok(_) => self.answered = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

pub fn open(target: SocketAddr, rate: f64, seconds: f64) -> io::Result<()> {
    // Timers of ordinary processes may be 50 µs late.
    // SAFETY: it changes nothing but this thread's timer slack.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
    let mut load = Load::new(target)?;
    let mut events = Events::with_capacity(1024);
    let start = Instant::now();
    let total = (rate * seconds) as u64;
    for n in 0..total {
        let scheduled = start + Duration::from_secs_f64(n as f64 / rate);
        while Instant::now() < scheduled {
            load.turn(&mut events, scheduled)?;
        }
        load.begin(scheduled);
        if n % 16 == 0 {
            // Behind: answers are taken all the same.
            load.turn(&mut events, Instant::now())?;
        }
    }
    load.finish(&mut events)?;
    load.report(start.elapsed());
    Ok(())
}

pub fn burst(target: SocketAddr, connections: usize, once: bool) -> io::Result<()> {
    let mut load = Load::new(target)?;
    load.once = once;
    let start = Instant::now();
    for _ in 0..connections {
        load.begin(start);
    }
    load.finish(&mut Events::with_capacity(4096))?;
    load.report(start.elapsed());
    Ok(())
}

pub fn first(target: SocketAddr) -> io::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        let attempt = || -> io::Result<()> {
            let mut stream = std::net::TcpStream::connect(target)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(REQUEST)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
        };
        if attempt().is_ok() {
            println!("{}", json!({ "first_ms": begin.elapsed().as_secs_f64() * 1e3 }));
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Err(ErrorKind::TimedOut.into())
}

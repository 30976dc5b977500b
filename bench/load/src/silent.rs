//! Clients that ask beside others that connect and send nothing.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

use crate::hold::next;
use crate::paths::quantile;
use crate::request::ask_behind;

/// Those that are silent come over this time.
const COMING: Duration = Duration::from_secs(2);

pub struct Plan {
    pub silent: usize,
    pub clients: usize,
    pub pause_ms: f64,
    pub seconds: f64,
    pub proxy: bool,
}

/// Of the silent ones: how many are connected, and how often one was closed.
#[derive(Default)]
struct Crowd {
    open: AtomicUsize,
    closed: AtomicUsize,
}

/// Keeps so many connections open that send nothing, until the end.
fn keep_silent(target: SocketAddr, count: usize, crowd: &Crowd, end: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let connect = |poll: &Poll, at: usize| -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(target)?;
        poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        Ok(stream)
    };
    let begin = Instant::now();
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        // As clients do that know nothing of each other.
        let due = begin + COMING.mul_f64(at as f64 / count as f64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        all.push(connect(&poll, at)?);
    }
    let mut is_open = vec![false; count];
    let mut events = Events::with_capacity(1024);
    while !end.load(Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(50)))?;
        for event in &events {
            let Token(at) = event.token();
            let over = match all[at].read(&mut [0; 64]) {
                Ok(bytes) => bytes == 0,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected),
            };
            if over {
                crowd.closed.fetch_add(1, Relaxed);
                crowd.open.fetch_sub(usize::from(std::mem::take(&mut is_open[at])), Relaxed);
                all[at] = connect(&poll, at)?;
            } else if event.is_writable() && !std::mem::replace(&mut is_open[at], true) {
                crowd.open.fetch_add(1, Relaxed);
            }
        }
    }
    Ok(())
}

/// Asks now and then until the end; how long each took, in microseconds, and how many failed.
fn ask_now_and_then(target: SocketAddr, plan: &Plan, n: usize, end: &AtomicBool) -> (Vec<u64>, usize) {
    let port = target.port();
    let header = format!("PROXY TCP4 198.18.{}.{} 203.0.113.1 56324 {port}\r\n", n / 250, n % 250 + 1);
    let header = if plan.proxy { header.as_str() } else { "" };
    let (mut times, mut errors, mut seed) = (Vec::new(), 0, n as u64);
    loop {
        // From 0 to twice the mean.
        let part = next(&mut seed) as f64 / u64::MAX as f64;
        thread::sleep(Duration::from_secs_f64(2.0 * part * plan.pause_ms / 1e3));
        if end.load(Relaxed) {
            return (times, errors);
        }
        let begin = Instant::now();
        match ask_behind(header, target, "/", false) {
            Ok(_) => times.push(begin.elapsed().as_micros() as u64),
            Err(_) => errors += 1,
        }
    }
}

pub fn silent(target: SocketAddr, plan: &Plan) -> io::Result<()> {
    let (end, crowd) = (AtomicBool::new(false), Crowd::default());
    let begin = Instant::now();
    let (mut times, mut errors, open) = (Vec::new(), 0, AtomicUsize::new(0));
    thread::scope(|scope| {
        let keeping = scope.spawn(|| keep_silent(target, plan.silent, &crowd, &end));
        while crowd.open.load(Relaxed) < plan.silent && begin.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
        let (end, small) = (&end, || thread::Builder::new().stack_size(128 * 1024));
        let asking = |n| small().spawn_scoped(scope, move || ask_now_and_then(target, plan, n, end));
        let asking = (0..plan.clients).map(asking).collect::<io::Result<Vec<_>>>();
        thread::sleep(Duration::from_secs_f64(plan.seconds));
        open.store(crowd.open.load(Relaxed), Relaxed);
        end.store(true, Relaxed);
        for one in asking? {
            let (more, failed) = one.join().map_err(|_| io::Error::other("a client panicked"))?;
            times.extend(more);
            errors += failed;
        }
        keeping.join().map_err(|_| io::Error::other("a client panicked"))?
    })?;
    times.sort_unstable();
    let line = json!({
        "served": times.len(), "errors": errors, "silent": open.into_inner(), "closed": crowd.closed.into_inner(),
        "p50_us": quantile(&times, 0.5), "p99_us": quantile(&times, 0.99), "max_us": times.last(),
    });
    println!("{line}");
    Ok(())
}

//! Closed loops: clients on a slow path beside others on a fast one, one request per connection; and who answered.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::request::ask;

/// Asks one after the other until the end; how long each took, in microseconds, and how many failed.
fn in_circles(target: SocketAddr, path: &str, end: &AtomicBool) -> (Vec<u64>, usize) {
    let (mut times, mut errors) = (Vec::new(), 0);
    while !end.load(Relaxed) {
        let begin = Instant::now();
        match ask(target, path, false) {
            Ok(_) => times.push(begin.elapsed().as_micros() as u64),
            Err(_) => errors += 1,
        }
    }
    (times, errors)
}

pub fn quantile(sorted: &[u64], quantile: f64) -> u64 {
    let at = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}

pub fn beside(target: SocketAddr, slow: usize, fast: usize, seconds: f64) -> io::Result<()> {
    let end = AtomicBool::new(false);
    let begin = Instant::now();
    let (slow, fast) = thread::scope(|scope| {
        let run = |path: &'static str| {
            scope.spawn({
                let end = &end;
                move || in_circles(target, path, end)
            })
        };
        let slow: Vec<_> = (0..slow).map(|_| run("/slow")).collect();
        // The first slow request is under way before the fast ones begin.
        thread::sleep(Duration::from_millis(20));
        let fast: Vec<_> = (0..fast).map(|_| run("/fast")).collect();
        thread::sleep(Duration::from_secs_f64(seconds));
        end.store(true, Relaxed);
        let joined = |all: Vec<thread::ScopedJoinHandle<'_, (Vec<u64>, usize)>>| {
            let mut merged = (Vec::new(), 0);
            for one in all {
                let (times, errors) = one.join().map_err(|_| io::Error::other("a client panicked"))?;
                merged.0.extend(times);
                merged.1 += errors;
            }
            merged.0.sort_unstable();
            io::Result::Ok(merged)
        };
        io::Result::Ok((joined(slow)?, joined(fast)?))
    })?;
    let took = begin.elapsed().as_secs_f64();
    let line = json!({
        "served": fast.0.len() + slow.0.len(), "errors": fast.1 + slow.1, "rate": fast.0.len() as f64 / took,
        "p50_us": quantile(&fast.0, 0.5), "p99_us": quantile(&fast.0, 0.99), "max_us": fast.0.last(),
        "slow": slow.0.len(), "slow_p50_us": quantile(&slow.0, 0.5),
    });
    println!("{line}");
    Ok(())
}

/// How many connections each worker got, by the answers, which name it, and how long they took. With `keep` they stay open
/// until all are there.
pub fn who(target: SocketAddr, connections: usize, clients: usize, keep: bool) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let one = || {
        let (mut names, mut kept, mut times) = (Vec::new(), Vec::new(), Vec::new());
        while next.fetch_add(1, Relaxed) < connections {
            let begin = Instant::now();
            // Those that fail are not among the served.
            if let Ok((stream, name)) = ask(target, "/", keep) {
                times.push(begin.elapsed().as_micros() as u64);
                names.push(name);
                kept.extend(keep.then_some(stream));
            }
        }
        (names, kept, times)
    };
    let all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut counts = BTreeMap::new();
    all.iter().flat_map(|(names, ..)| names).for_each(|name| *counts.entry(name).or_insert(0_usize) += 1);
    let served: usize = counts.values().sum();
    let mut times: Vec<u64> = all.iter().flat_map(|(.., times)| times.iter().copied()).collect();
    times.sort_unstable();
    let line = json!({
        "served": served, "errors": connections - served, "counts": counts,
        "p50_us": quantile(&times, 0.5), "p99_us": quantile(&times, 0.99), "max_us": times.last(),
    });
    println!("{line}");
    Ok(())
}

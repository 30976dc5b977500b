//! Random arrivals at servers that do one thing at a time, and what an ideal queue would have made of them.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clock;
use crate::fifo::{ideal_waits, mean_and_p99};
use crate::hold::next;
use crate::request::ask;

/// One request: when it began, how long it waited until a server had it and no other one, and how long the server took for it.
/// Nanoseconds of the clock that all processes share.
struct Seen {
    began: u64,
    service: u64,
    waited: u64,
}

pub struct Plan {
    pub connections: usize,
    pub servers: usize,
    pub mean_ms: f64,
    pub load: f64,
    pub seed: u64,
}

fn exponential(seed: &mut u64, mean: f64) -> f64 {
    // 53 random bits: from 0 to less than 1.
    let uniform = (next(seed) >> 11) as f64 / (1_u64 << 53) as f64;
    -mean * (1.0 - uniform).ln()
}

pub fn poisson(target: SocketAddr, plan: &Plan) -> io::Result<()> {
    let mut seed = plan.seed;
    let pause = plan.mean_ms / 1e3 / (plan.servers as f64 * plan.load);
    let start = Instant::now();
    let (mut due, mut errors) = (0.0, 0);
    let (sender, receiver) = mpsc::channel();
    for _ in 0..plan.connections {
        due += exponential(&mut seed, pause);
        let path = format!("/{:.0}", exponential(&mut seed, plan.mean_ms) * 1e3);
        thread::sleep((start + Duration::from_secs_f64(due)).saturating_duration_since(Instant::now()));
        let request = move || {
            let began = clock::now();
            let (_, body) = ask(target, &path, false)?;
            let (at, service) = body.split_once(' ').ok_or_else(|| io::Error::other(body.clone()))?;
            let at: u64 = at.parse().map_err(io::Error::other)?;
            let service = service.parse().map_err(io::Error::other)?;
            io::Result::Ok(Seen { began, service, waited: at.saturating_sub(began) })
        };
        let sender = sender.clone();
        // Nobody joins it: its stack is free as soon as it ends.
        thread::Builder::new().stack_size(128 * 1024).spawn(move || sender.send(request()))?;
    }
    drop(sender);
    let mut seen = Vec::with_capacity(plan.connections);
    for one in receiver {
        match one {
            Ok(one) => seen.push(one),
            Err(_) => errors += 1,
        }
    }
    seen.sort_by_key(|one| one.began);
    let recorded: Vec<_> = seen.iter().map(|one| (one.began, one.service)).collect();
    let (ideal_mean, ideal_p99) = mean_and_p99(&ideal_waits(plan.servers, &recorded));
    let (mean, p99) = mean_and_p99(&seen.iter().map(|one| one.waited).collect::<Vec<_>>());
    let service = recorded.iter().map(|(_, service)| service).sum::<u64>() as f64 / recorded.len().max(1) as f64;
    let line = json!({
        "served": seen.len(), "errors": errors, "seconds": start.elapsed().as_secs_f64(), "service_ms": service / 1e6,
        "mean_ms": mean / 1e6, "p99_ms": p99 / 1e6, "ideal_mean_ms": ideal_mean / 1e6, "ideal_p99_ms": ideal_p99 / 1e6,
    });
    println!("{line}");
    Ok(())
}

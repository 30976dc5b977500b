//! Connections that stay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

const KEPT: &[u8] = b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n";

/// One connection that has had an answer.
fn answered(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(KEPT)?;
    if stream.read(&mut [0; 4096])? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(stream)
}

pub fn hold(target: SocketAddr, connections: usize) -> io::Result<()> {
    let mut kept = Vec::with_capacity(connections);
    for _ in 0..connections {
        kept.push(answered(target)?);
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// splitmix64: the same lifetimes in every run.
pub fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *seed;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

pub fn lifetimes(target: SocketAddr, connections: usize, rate: f64) -> io::Result<()> {
    let mut seed = 10_000;
    let mut ends = BinaryHeap::new();
    let mut kept: Vec<Option<TcpStream>> = Vec::with_capacity(connections);
    let (start, mut errors) = (Instant::now(), 0);
    for n in 0..connections {
        let at = start + Duration::from_secs_f64(n as f64 / rate);
        loop {
            let now = Instant::now();
            while let Some(&Reverse((end, which))) = ends.peek()
                && end <= now
            {
                ends.pop();
                kept[which] = None;
            }
            if now >= at {
                break;
            }
            std::thread::sleep(at.duration_since(now).min(Duration::from_millis(1)));
        }
        // One in ten lasts for 2 to 6 seconds, the others up to 200 ms.
        let (kind, length) = (next(&mut seed) % 10, next(&mut seed));
        let life = if kind == 0 { 2_000 + length % 4_000 } else { length % 200 };
        match answered(target) {
            Ok(stream) => {
                ends.push(Reverse((Instant::now() + Duration::from_millis(life), kept.len())));
                kept.push(Some(stream));
            }
            Err(_) => errors += 1,
        }
    }
    println!("{}", json!({ "served": kept.len(), "errors": errors, "seconds": start.elapsed().as_secs_f64() }));
    Ok(())
}

//! Workers that are replaced after a number of connections, under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::scene::LIMIT;
use crate::support::{Daemon, eventually, get, seconds};

/// 50 clients; the daemon's workers are replaced until so many have been. Every request must be answered.
fn recycled(workers: usize, options: &[&str]) {
    let mut all = vec!["-i", "4", "--min-uptime", "20ms", "--max-surge", "2"];
    all.extend(options);
    all.extend(["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    let daemon = Daemon::start(&all);
    daemon.wait_online(4);
    let (served, lost, end) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                while !end.load(Relaxed) {
                    match get(daemon.port) {
                        Ok(_) => served.fetch_add(1, Relaxed),
                        Err(_) => lost.fetch_add(1, Relaxed),
                    };
                }
            });
        }
        let generations = || daemon.total("generation") as usize - 4;
        eventually(&format!("{workers} workers replaced"), 5 * LIMIT, || {
            std::thread::sleep(seconds(1) / 10);
            (generations() >= workers || lost.load(Relaxed) > 0).then_some(())
        });
        end.store(true, Relaxed);
    });
    assert_eq!(lost.load(Relaxed), 0, "lost of {}: {}", served.load(Relaxed), daemon.log());
    assert_eq!(daemon.total("restarts"), 0, "{}", daemon.log());
}

#[test]
#[ignore = "long; run by --all"]
fn two_hundred_workers_replaced_under_load_lose_nothing() {
    recycled(200, &["--max-served", "200", "--recycle-jitter", "10%"]);
    recycled(50, &["--max-age", "300ms", "--recycle-jitter", "10%"]);
}

//! The table: many servers, unmodified, each under rr and none.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::direct::start_with;
use crate::support::table::{Client, Server, long_table, table};
use crate::support::{Daemon, eventually, free_port, install_dir, seconds, unsaid};

/// Connections per second that nobody has to exceed.
const MAX_RATE: f64 = 3000.0;

/// `total` connections by 20 at a time, not faster than `rate`; each served, each with the client's address known.
/// Returns how many per second it were.
fn load(client: Client, port: u16, total: usize, rate: Option<f64>, name: &str) -> f64 {
    let (next, begin) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, SeqCst);
                    if n >= total {
                        return;
                    }
                    if let Some(rate) = rate {
                        let due = begin + Duration::from_secs_f64(n as f64 / rate);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                    assert!(client.ask(port).1, "{name}: the client's address");
                }
            });
        }
    });
    total as f64 / begin.elapsed().as_secs_f64()
}

fn turns(server: &Server, port: u16, daemon: &Daemon) {
    let name = server.name;
    let few = if server.client == Client::Http { 400 } else { 40 };
    let answers: Vec<_> = (0..few).map(|_| server.client.ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{name}: the client's address");
    // A worker that the machine held up is passed over, as is one that has not closed its last connection yet although the
    // client has seen its end (shutdown(2) comes first in many servers).
    let rescued = daemon.total("rescued");
    let counts: Vec<_> = daemon.slots().iter().map(|slot| slot["connections"].as_u64().unwrap()).collect();
    assert!(counts[0].abs_diff(counts[1]) <= few / 2, "{name}: {counts:?}, {rescued} rescued");
    if server.names_slot {
        let out = answers.windows(2).filter(|pair| pair[0].0 == pair[1].0).count() as u64;
        assert!(out <= few / 2, "{name}: {out} out of turn, {rescued} rescued");
    }
}

fn works(policy: &str, at: usize, table: fn(&Path, u16) -> Vec<Server>) {
    let (dir, port) = (install_dir(), free_port());
    let server = table(dir.path(), port).swap_remove(at);
    let name = format!("{} under {policy}", server.name);
    let mut daemon = start_with(port, "2", &["-p", policy], &server.command);
    let state = daemon.ls();
    let service = &state["services"][0];
    assert_eq!((service["via"].as_str(), service["policy"].as_str()), (Some("direct"), Some(policy)), "{name}");
    assert_eq!(
        (&service["listen"][0]["addr"], &service["listen"][0]["from"], &service["listen"][0]["workers"]),
        (&format!("127.0.0.1:{port}").into(), &"server".into(), &2.into()),
        "{name}"
    );
    if policy == "rr" {
        turns(&server, port, &daemon);
    }
    let before = daemon.total("connections");
    let (first, paced) = if server.client == Client::Http { (1000, 1.0) } else { (40, 0.3) };
    let rate = (0.8 * load(server.client, port, first, None, &name)).min(MAX_RATE);
    let second = (rate * paced) as usize;
    load(server.client, port, second, Some(rate), &name);
    let counted = || (daemon.total("connections") - before == (first + second) as u64).then_some(());
    eventually(&format!("{name}: all are counted"), seconds(5), counted);
    assert_eq!(daemon.total("restarts"), 0, "{name}: {}", daemon.log());
    assert!(!daemon.log().contains("Traceback"), "{name}: {}", daemon.log());
    eventually(&format!("{name}: open is back to 0"), seconds(10), || (daemon.total("open") == 0).then_some(()));
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{name}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn turns_addresses_load_and_a_clean_stop_for_each_server_under_rr() {
    let dir = install_dir();
    (0..table(dir.path(), 1).len()).for_each(|at| works("rr", at, table));
}

#[test]
fn addresses_load_and_a_clean_stop_for_each_server_under_none() {
    let dir = install_dir();
    (0..table(dir.path(), 1).len()).for_each(|at| works("none", at, table));
}

#[test]
#[ignore = "long: tests/run --all"]
fn many_more_servers_under_rr_and_none() {
    let dir = install_dir();
    for at in 0..long_table(dir.path(), 1).len() {
        works("rr", at, long_table);
        works("none", at, long_table);
    }
}

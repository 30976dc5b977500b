//! `--slow-start`: the share of a new worker beside a warm one.
//! Mostly waits: tests/run runs it beside others.

use std::time::Instant;

use crate::support::{Daemon, eventually, get, roundsman, seconds, slot_of};

/// The part of 200 connections, one after the other, that slot 1 gets, in percent.
fn share(daemon: &Daemon) -> usize {
    (0..200).filter(|_| slot_of(&get(daemon.port).unwrap()) == 1).count() / 2
}

#[test]
fn a_new_worker_beside_a_warm_one_gets_a_growing_share() {
    const SLOW_START: u64 = 5;
    let server = env!("CARGO_BIN_EXE_roundsman");
    let slow_start = format!("{SLOW_START}s");
    let daemon = Daemon::start(
        &[
            &["-i", "2", "--name", "web", "--slow-start", &slow_start, "--min-uptime", "0s", "--drain-timeout", "0s"],
            &["--", server, "demo-server"][..],
        ]
        .concat(),
    );
    daemon.wait_online(2);
    assert_eq!(daemon.ls()["services"][0]["limits"]["slow_start_ms"], 1000 * SLOW_START);
    assert!((45..=55).contains(&share(&daemon)), "not applied when all are new");
    eventually("slot 0 is warm", seconds(20), || {
        (daemon.slot(0, "uptime_s").as_u64().unwrap() > SLOW_START).then_some(())
    });
    let begin = Instant::now();
    let reload = roundsman().args(["reload", "web/1"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    let cold = share(&daemon);
    // A share of x beside 1 is x / (1 + x) of all; a busy machine may have taken long for this.
    let grown = (0.1 + 0.9 * begin.elapsed().as_secs_f64() / SLOW_START as f64).min(1.0);
    let most = 100.0 * grown / (1.0 + grown) + 5.0;
    assert!(cold >= 4 && cold as f64 <= most, "{cold} % at the beginning, not 4 to {most:.0} %");
    eventually("slot 1 is warm", seconds(20), || {
        (daemon.slot(1, "uptime_s").as_u64().unwrap() > SLOW_START).then_some(())
    });
    let warm = share(&daemon);
    assert!((45..=55).contains(&warm), "{warm} % in the end");
    assert_eq!(daemon.total("restarts"), 0);
}

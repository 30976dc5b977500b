//! Instructions of the pure parts under callgrind. This program runs itself there, twice, with more and less to do.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::Command;

use roundsman::accept::hash::Key;
use roundsman::accept::policy::{Candidate, Policy, Turn, pick};
use roundsman::lines::Lines;

use crate::worker::number_behind;

const PART: &str = "GUARD_PART";
const TIMES: &str = "GUARD_TIMES";

/// So many choices among so many workers, the least loaded of which have that many connections.
fn choose(policy: Policy, workers: u32, least: u64, times: u32) {
    let worker = |slot| Candidate {
        slot,
        pending: 0,
        cap: 64,
        room: u32::MAX,
        open: least + u64::from(slot % 3),
        behind: false,
        stalled: false,
        young: false,
        newcomer: false,
        weight: 1,
        share: 100,
        credit: 0,
        owed: 0,
    };
    let mut workers: Vec<_> = (0..workers).map(worker).collect();
    let mut turn = Turn::default();
    for n in 0..times {
        let client = Key::Address(Ipv4Addr::from(0x0a00_0000 + n).into());
        if let Some(at) = black_box(pick(policy, &mut workers, &mut turn, Some(client))) {
            workers[at].pending = 0;
            turn.fell(&workers[at]);
        }
    }
}

fn take_lines(times: u32) {
    let mut lines = Lines::up_to(1 << 20);
    for _ in 0..times {
        lines.push(b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n{\"type\":\"broadcast\",\"data\":{\"flush\":true}}\n").unwrap();
        lines.by_ref().for_each(|line| drop(black_box(line)));
    }
}

/// What runs under callgrind; alone it does nothing.
#[test]
fn work() {
    let (Ok(part), Ok(times)) = (std::env::var(PART), std::env::var(TIMES)) else { return };
    let times = times.parse().unwrap();
    match part.as_str() {
        "rr-2" => choose(Policy::Rr, 2, 0, times),
        "rr-8" => choose(Policy::Rr, 8, 0, times),
        "rr-256" => choose(Policy::Rr, 256, 0, times),
        // As with keep-alive: none is free, and a third of the workers are the least loaded.
        "rr-2-loaded" => choose(Policy::Rr, 2, 1, times),
        "rr-8-loaded" => choose(Policy::Rr, 8, 1, times),
        "rr-256-loaded" => choose(Policy::Rr, 256, 1, times),
        "least-conn-8" => choose(Policy::LeastConn, 8, 0, times),
        "ip-hash-8" => choose(Policy::IpHash, 8, 0, times),
        "lines" => take_lines(times),
        other => panic!("no part {other}"),
    }
}

/// Instructions of one time more.
fn instructions(part: &str) -> f64 {
    let of = |times: u32| {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "pure::work", "--test-threads=1"]).env(PART, part).env(TIMES, times.to_string());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        number_behind(&text, "Collected")
    };
    let (few, many) = (2_000, 22_000);
    (of(many) - of(few)) / f64::from(many - few)
}

#[test]
fn the_pure_parts_take_no_more_instructions_than_they_did() {
    let mut wrong = Vec::new();
    let limits = [
        ("rr-2", 360.0),
        ("rr-8", 390.0),
        ("rr-256", 400.0),
        ("rr-2-loaded", 320.0),
        ("rr-8-loaded", 320.0),
        ("rr-256-loaded", 320.0),
        ("least-conn-8", 740.0),
        // Of it, 10 since a key may be another than an address.
        ("ip-hash-8", 2_190.0),
        ("lines", 1_480.0),
    ];
    for (part, limit) in limits {
        let count = instructions(part);
        println!("{part}: {count:.0} instructions");
        assert!(count > 10.0, "{part}: nothing was counted");
        if count > limit {
            wrong.push(format!("{part}: {count:.0} instructions, not {limit}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

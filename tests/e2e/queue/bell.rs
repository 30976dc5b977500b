//! While clients wait the master sleeps, until a worker rings.
//! Mostly waits: tests/run runs it beside others.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LONG, answered, ask, occupied, occupy, start, wait_held};
use crate::support::{App, eventually, freeze, millis, reset, seconds};

/// How often the threads of the master that have to do with connections have gone to sleep.
fn sleeps(app: &App) -> u64 {
    let of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        ["accept\n", "bell\n", "rescue\n"].contains(&name.as_str()).then(|| line.trim().parse::<u64>().unwrap())
    };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", app.daemon.pid())).unwrap();
    tasks.filter_map(|task| of(task.unwrap())).sum()
}

/// Why clients wait.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// All workers have as many connections as they may.
    Full,
    /// The same, and one has not received some of them.
    FullAndOverdue,
    /// One has room, but takes nothing.
    Stalled,
    /// The only one has room, but takes nothing of what is in its queue.
    AtItsCap,
    /// All take nothing.
    AllBehind,
}

use Scene::{AllBehind, AtItsCap, Full, FullAndOverdue, Stalled};

/// After a start: the clients that a worker keeps busy, those that wait, how many of these are in the master, and the workers
/// that are stopped.
fn rests(via: &str, scene: Scene) {
    let (workers, limit, stopped, long, short, held) = match scene {
        Full => ("1", "1", 0..0, 1, 3, 3),
        FullAndOverdue => ("1", "2", 0..1, 0, 4, 2),
        Stalled => ("2", "1", 1..2, 1, 3, 3),
        AtItsCap => ("1", "100", 0..1, 0, 80, if via == "direct" { 64 } else { 16 }),
        AllBehind => ("2", "1", 0..2, 0, 5, 3),
    };
    let app = start(&["-i", workers, "--via", via, "--worker-conns", limit]);
    let mut pids = app.daemon.workers();
    let busy: Vec<_> = (0..long).map(|_| ask(app.port, LONG)).collect();
    eventually("they are taken", seconds(10), || (app.daemon.total("open") == long).then_some(()));
    if app.daemon.slot(0, "open") == 0 {
        // A worker that is late on a busy machine loses its first client to the other one.
        pids.reverse();
    }
    pids[stopped.clone()].iter().for_each(|&pid| freeze(pid));
    let waiting: Vec<_> = (0..short).map(|_| ask(app.port, 0)).collect();
    // One more where a worker was late before the other had anything.
    eventually("they wait", seconds(20), || (super::held(&app) >= held).then_some(()));
    // What a turn does once.
    std::thread::sleep(millis(50));
    let before = sleeps(&app);
    std::thread::sleep(millis(1500));
    let woken = sleeps(&app) - before;
    assert!(woken <= 8, "{via} {scene:?}: {woken} wake-ups in 1.5 s");
    pids[stopped].iter().for_each(|&pid| kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap());
    busy.into_iter().for_each(reset);
    assert!(waiting.into_iter().all(answered), "{via} {scene:?}");
}

#[test]
fn nothing_is_polled_while_clients_wait() {
    for via in ["direct", "relay"] {
        std::thread::scope(|scope| {
            for scene in [Full, FullAndOverdue, Stalled, AtItsCap, AllBehind] {
                scope.spawn(move || rests(via, scene));
            }
        });
    }
}

/// A bell that did not ring would cost each of them up to a second.
#[test]
fn room_is_known_as_soon_as_a_connection_is_closed() {
    for via in ["direct", "relay"] {
        let (app, first) = occupied(&["--via", via]);
        let waiting: Vec<_> = (0..40).map(|_| ask(app.port, 0)).collect();
        wait_held(&app, 40);
        let begin = Instant::now();
        reset(first);
        assert!(waiting.into_iter().all(answered), "{via}");
        assert!(begin.elapsed() < seconds(10), "{via}: {:?}", begin.elapsed());
    }
}

/// A bell that did not ring would cost each of them up to a second.
#[test]
fn room_is_known_as_soon_as_a_worker_that_was_stopped_receives() {
    for via in ["direct", "relay"] {
        let app = start(&["--via", via, "--worker-conns", "1"]);
        let first = occupy(app.port);
        eventually("it is taken", seconds(10), || (app.daemon.total("open") == 1).then_some(()));
        let pid = app.daemon.workers()[usize::from(app.daemon.slot(0, "open") == 1)];
        let mut took = Duration::ZERO;
        for _ in 0..8 {
            freeze(pid);
            let waiting = [ask(app.port, 0), ask(app.port, 0)];
            wait_held(&app, 2);
            let begin = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
            assert!(waiting.into_iter().all(answered), "{via}");
            took += begin.elapsed();
        }
        assert!(took < seconds(2), "{via}: {took:?}");
        reset(first);
    }
}

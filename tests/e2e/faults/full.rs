//! Mostly waits: clients that wait while every worker has as many connections as it may (`--worker-conns`).

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scene::{LIMIT, Scene, Via};
use crate::support::{Crowd, Exit, Manner, Tally, eventually, freeze, seconds};

/// Of each of the two workers.
const CONNS: usize = 4;
const IN_WORK: usize = 2 * CONNS;
const FEW: usize = 500;
/// As many as the master holds at a limit of 20,000 descriptors, and most of a backlog.
const MANY: usize = 9_000;

/// A quarter of the master's descriptors, which are as many as ours.
fn most_held() -> usize {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    limit as usize / 4
}

/// Both workers are full, so many wait.
fn full(via: Via, count: usize, options: &[&str]) -> Scene {
    let mut all = vec!["--worker-conns", "4"];
    all.extend(options);
    let mut scene = Scene::start(via, &all);
    scene.crowd.join(IN_WORK, Manner::Asks);
    eventually("both workers are full", LIMIT, || (scene.daemon.total("open") as usize == IN_WORK).then_some(()));
    scene.crowd.join(count, Manner::Asks);
    scene.crowd.until("all are connected", LIMIT, |tally| tally.open == IN_WORK + count);
    scene.wait_held(count.min(most_held()));
    assert_eq!(scene.daemon.total("open") + scene.daemon.total("pending"), IN_WORK as u64);
    scene
}

/// What may happen while clients wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    ClientsLeave,
    Reload,
    WorkerKilled,
    WorkerStopped,
    ScaledUp,
    ScaledDown,
}

use Fault::{ClientsLeave, Nothing, Reload, ScaledDown, ScaledUp, WorkerKilled, WorkerStopped};

/// Waits until no more than `rest` clients have not ended. Thousands may take their time on a busy machine, as long as
/// hundreds end in a minute.
#[track_caller]
fn get_on(crowd: &mut Crowd, rest: usize) -> Tally {
    let left = |tally: &Tally| tally.open + tally.connecting;
    loop {
        let next = left(&crowd.tally()).saturating_sub(FEW).max(rest);
        let tally = crowd.until("clients get on", LIMIT, |tally| left(tally) <= next);
        if left(&tally) <= rest {
            return tally;
        }
    }
}

/// Whatever happens, every client gets its answer but those that a worker had in work when it died.
#[track_caller]
fn survives(via: Via, count: usize, fault: Fault) {
    println!("{via:?}, {count}: {fault:?}");
    let mut scene = full(via, count, &["--drain-timeout", "20s", "--queue-timeout", "5m"]);
    let all = IN_WORK + count;
    let workers = scene.daemon.workers();
    let signal = |at: usize, signal| kill(Pid::from_raw(workers[at]), signal).unwrap();
    let (mut lost, mut left) = (0, 0);
    match fault {
        Nothing => {}
        ClientsLeave => {
            left = count / 2;
            scene.crowd.leave(IN_WORK..IN_WORK + left / 2, Exit::Reset);
            scene.crowd.leave(IN_WORK + left / 2..IN_WORK + left, Exit::Close);
        }
        Reload => scene.begin(&["reload"]),
        WorkerKilled => {
            lost = CONNS;
            signal(0, Signal::SIGKILL);
        }
        WorkerStopped => freeze(workers[0]),
        ScaledUp => scene.begin(&["scale", "4"]),
        ScaledDown => scene.begin(&["scale", "1"]),
    }
    if fault == WorkerKilled {
        eventually("a successor is there", LIMIT, || (scene.daemon.slot(0, "generation") == 2).then_some(()));
        scene.daemon.wait_online(2);
    }
    scene.gate.open();
    if fault == WorkerStopped {
        // The other worker serves the rest.
        get_on(&mut scene.crowd, CONNS);
        signal(0, Signal::SIGCONT);
    }
    let tally = get_on(&mut scene.crowd, 0);
    assert_eq!(tally.left, left, "{tally:?}");
    assert_eq!(tally.answered, all - lost - left, "{tally:?}");
    assert_eq!(tally.reset + tally.closed + tally.cut, lost, "{tally:?}");
    scene.end_of_verb();
    if fault != ClientsLeave {
        assert_eq!(scene.shed(), 0);
    }
    if fault == ScaledUp {
        scene.ask(&["scale", "2"]);
    }
    if fault != ScaledDown {
        scene.as_before();
    }
}

#[test]
fn hundreds_that_wait_survive_by_relay() {
    for fault in [ClientsLeave, WorkerKilled, Reload] {
        survives(Via::Relay, FEW, fault);
    }
}

#[test]
fn hundreds_that_wait_survive_with_direct_delivery() {
    for fault in [Nothing, ClientsLeave, WorkerStopped] {
        survives(Via::Direct, FEW, fault);
    }
}

#[test]
#[ignore = "thousands of clients, every fault and delivery; run by --all"]
fn thousands_that_wait_survive_everything() {
    for fault in [Nothing, ClientsLeave, Reload, WorkerKilled, WorkerStopped, ScaledUp, ScaledDown] {
        survives(Via::Relay, MANY, fault);
    }
    for fault in [ClientsLeave, Reload, WorkerKilled] {
        survives(Via::Direct, MANY, fault);
    }
}

/// With a backlog that fills up beyond those that the master holds, too.
#[track_caller]
fn costs_nothing(count: usize) {
    for via in [Via::Relay, Via::Direct] {
        let mut scene = full(via, count, &["--stop-timeout", "2s"]);
        let before = scene.cpu();
        std::thread::sleep(seconds(1));
        let used = scene.cpu() - before;
        println!("{via:?}, {count}: {used:?} of CPU in a second");
        assert!(used < seconds(1) / 50, "{via:?}: {used:?} of CPU in a second of waiting");
        scene.daemon.signal(Signal::SIGTERM);
        let tally = scene.crowd.all_end(seconds(15));
        assert_eq!(tally.answered, 0, "{tally:?}");
        scene.daemon.finish(seconds(10));
    }
}

#[test]
fn while_all_are_full_the_master_rests_and_a_stop_ends_all() {
    costs_nothing(FEW);
}

#[test]
#[ignore = "thousands of clients; run by --all"]
fn while_thousands_wait_the_master_rests_and_a_stop_ends_all() {
    costs_nothing(MANY);
}

#[test]
fn a_stop_serves_those_that_wait_when_workers_can() {
    for via in [Via::Relay, Via::Direct] {
        let mut scene = full(via, FEW, &["--stop-timeout", "30s"]);
        scene.daemon.signal(Signal::SIGTERM);
        scene.daemon.wait_for("stopping");
        scene.gate.open();
        let tally = scene.crowd.all_end(LIMIT);
        assert_eq!(tally.answered, IN_WORK + FEW, "{via:?} {tally:?}");
        scene.daemon.finish(seconds(30));
    }
}

#[test]
fn the_queue_timeout_and_a_full_queue_shed() {
    let mut scene = full(Via::Relay, 100, &["--max-queue", "100", "--queue-timeout", "2s"]);
    scene.crowd.join(50, Manner::Asks);
    let tally = scene.crowd.until("those beyond are reset", LIMIT, |tally| tally.reset == 50);
    assert_eq!(tally.open, IN_WORK + 100, "{tally:?}");
    scene.crowd.until("the others, too, in their time", LIMIT, |tally| tally.reset == 150);
    eventually("all are counted", seconds(5), || (scene.shed() == 150).then_some(()));
    scene.gate.open();
    let tally = scene.crowd.all_end(LIMIT);
    assert_eq!((tally.answered, tally.reset), (IN_WORK, 150), "{tally:?}");
    scene.as_before();
}

/// Those that wait in the line would take every room before them.
#[test]
fn clients_on_their_way_to_a_stopped_worker_go_back_to_the_head_of_the_line() {
    for via in [Via::Relay, Via::Direct] {
        let mut scene = Scene::start(via, &["--worker-conns", "4"]);
        let stopped = scene.daemon.workers()[1];
        freeze(stopped);
        scene.crowd.join(100, Manner::Asks);
        scene.wait_held(100 - CONNS);
        let mark = scene.daemon.total("pending");
        assert!(mark <= 1, "{via:?}: nothing but the empty message is left: {mark}");
        scene.gate.open();
        let tally = scene.crowd.all_end(LIMIT);
        assert_eq!(tally.answered, 100, "{via:?} {tally:?}");
        kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
        scene.as_before();
    }
}

/// While they wait: a client that leaves makes room at once, one that only ends its side is served.
#[test]
fn a_client_that_leaves_is_dropped_and_a_half_closed_one_is_served() {
    for via in [Via::Relay, Via::Direct] {
        let mut scene = full(via, 0, &[]);
        let silent = scene.crowd.join(100, Manner::Silent);
        let asking = scene.crowd.join(100, Manner::Asks);
        scene.crowd.join(100, Manner::HalfCloses);
        scene.wait_held(300);
        scene.crowd.leave(silent, Exit::Close);
        scene.crowd.leave(asking.start..asking.start + 50, Exit::Reset);
        scene.wait_held(150);
        scene.gate.open();
        let tally = scene.crowd.all_end(LIMIT);
        assert_eq!((tally.answered, tally.left), (IN_WORK + 150, 150), "{via:?} {tally:?}");
        scene.as_before();
        assert_eq!(scene.served(), IN_WORK + 150, "{via:?}");
    }
}

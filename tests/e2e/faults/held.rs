//! Mostly waits: clients held while no worker is alive.

use nix::sys::signal::Signal;

use super::scene::{LIMIT, Scene};
use crate::support::{Exit, Manner, millis, seconds};

/// As many as are held, and many more, which wait in the backlog.
const FEW: usize = 500;
const MANY: usize = 5_000;

/// The most that are held while no worker is alive.
const MOST_HELD: usize = 1_024;

fn waiting(count: usize, options: &[&str]) -> Scene {
    let mut scene = Scene::without_workers(options);
    scene.crowd.join(count, Manner::Asks);
    scene.crowd.until("all are connected", LIMIT, |tally| tally.open == count);
    scene
}

fn some_leave_and_a_worker_comes(count: usize) {
    let mut scene = waiting(count, &[]);
    scene.wait_held(count.min(MOST_HELD));
    scene.crowd.leave(0..count / 4, Exit::Reset);
    scene.crowd.leave(count / 4..count / 2, Exit::Close);
    scene.ask(&["reload"]);
    let tally = scene.crowd.all_end(LIMIT);
    assert_eq!((tally.answered, tally.left), (count - count / 4 * 2, count / 4 * 2), "{tally:?}");
    assert_eq!(scene.shed(), 0);
    scene.as_before();
}

#[test]
fn held_clients_that_leave_cost_nobody_else() {
    some_leave_and_a_worker_comes(FEW);
}

#[test]
#[ignore = "thousands of clients; run by --all"]
fn thousands_of_clients_that_leave_cost_nobody_else() {
    some_leave_and_a_worker_comes(MANY);
}

#[test]
fn all_are_shed_at_the_queue_timeout() {
    let mut scene = waiting(FEW, &["--queue-timeout", "500ms"]);
    let tally = scene.crowd.all_end(seconds(10));
    assert_eq!(tally.reset, FEW, "{tally:?}");
    scene.as_before();
    assert_eq!(scene.shed(), FEW);
}

#[test]
fn while_nothing_happens_the_master_rests_and_a_stop_ends_all() {
    let mut scene = waiting(FEW, &["--stop-timeout", "2s"]);
    scene.wait_held(FEW);
    let before = scene.cpu();
    std::thread::sleep(millis(500));
    let used = scene.cpu() - before;
    assert!(used < millis(10), "{used:?} of CPU in half a second of waiting");
    scene.daemon.signal(Signal::SIGTERM);
    let tally = scene.crowd.all_end(seconds(10));
    assert_eq!(tally.reset + tally.closed, FEW, "{tally:?}");
    scene.daemon.finish(seconds(10));
}

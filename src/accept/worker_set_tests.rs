use super::*;
use crate::accept::worker::WorkerLimits;
use crate::handoff::page::CountersPage;

const WHOLE: Duration = Duration::from_secs(10);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn worker(slot: u32, generation: u64, now: Instant) -> Worker {
    let id = WorkerId { service: 0, slot, generation };
    let limits = WorkerLimits { cap: 16, connections: None, bell: false };
    Worker::new(id, Vec::new(), Arc::new(CountersPage::create().unwrap().0), Arc::default(), limits, now)
}

fn shares(set: &mut WorkerSet, now: Instant) -> Vec<u32> {
    set.refresh(Policy::Rr, WHOLE, now);
    set.views.iter().map(|view| view.share).collect()
}

#[test]
fn at_the_first_start_all_have_their_shares_at_once() {
    let (mut set, now) = (WorkerSet::default(), Instant::now());
    for slot in 0..3 {
        set.insert(worker(slot, 1, now + seconds(slot.into())), WHOLE, now + seconds(slot.into()));
    }
    assert_eq!(shares(&mut set, now + seconds(3)), [100; 3]);
    assert!(!set.turn.uneven);
    // One that crashes so early has nobody warm beside it.
    set.remove(WorkerId { service: 0, slot: 1, generation: 1 });
    set.insert(worker(1, 2, now + seconds(5)), WHOLE, now + seconds(5));
    assert_eq!(shares(&mut set, now + seconds(5)), [100; 3]);
}

#[test]
fn beside_warm_workers_a_new_one_starts_slowly_and_is_one_of_them_later() {
    let (mut set, begin) = (WorkerSet::default(), Instant::now());
    (0..2).for_each(|slot| set.insert(worker(slot, 1, begin), WHOLE, begin));
    set.set_weight(1, 3);
    let now = begin + WHOLE;
    // A reload: the successor comes before the old one goes.
    set.insert(worker(0, 2, now), WHOLE, now);
    assert_eq!(shares(&mut set, now), [100, 10, 300]);
    set.remove(WorkerId { service: 0, slot: 0, generation: 1 });
    assert_eq!(shares(&mut set, now + seconds(5)), [55, 300]);
    // The second slot follows; no other is warm any more, and they all grow.
    set.insert(worker(1, 2, now + seconds(5)), WHOLE, now + seconds(5));
    set.remove(WorkerId { service: 0, slot: 1, generation: 1 });
    assert_eq!(shares(&mut set, now + seconds(5)), [55, 30]);
    assert!(set.turn.uneven);
    assert_eq!(shares(&mut set, now + seconds(15)), [100, 300]);
    assert!(!set.shares.any_warming());
    set.set_weight(1, 1);
    assert!(!set.turn.uneven);
    assert_eq!(shares(&mut set, now + seconds(15)), [100, 100]);
    // Without slow start.
    set.insert(worker(2, 1, now + seconds(30)), Duration::ZERO, now + seconds(30));
    assert_eq!(shares(&mut set, now + seconds(30)), [100; 3]);
}

#[test]
fn a_slow_start_that_is_switched_off_is_over() {
    let (mut set, begin) = (WorkerSet::default(), Instant::now());
    set.insert(worker(0, 1, begin), WHOLE, begin);
    set.insert(worker(1, 1, begin + WHOLE), WHOLE, begin + WHOLE);
    assert_eq!(shares(&mut set, begin + WHOLE), [100, 10]);
    set.refresh(Policy::Rr, Duration::ZERO, begin + WHOLE);
    assert_eq!(shares(&mut set, begin + WHOLE), [100, 100]);
}

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

use crate::accept::hash::home;

fn worker(slot: u32) -> Candidate {
    Candidate {
        slot,
        pending: 0,
        cap: 64,
        room: u32::MAX,
        open: 0,
        behind: false,
        stalled: false,
        young: false,
        newcomer: false,
        weight: 1,
        share: 100,
        credit: 0,
        owed: 0,
    }
}

fn workers(n: u32) -> Vec<Candidate> {
    (0..n).map(worker).collect()
}

fn client(n: u32) -> Option<Key> {
    Some(Key::Address(Ipv4Addr::from(0x0a00_0000 + n).into()))
}

#[test]
fn rr_takes_strict_turns() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    let order: Vec<_> = (0..7).map(|_| pick(Policy::Rr, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0].map(Some));
}

/// The next choices of `rr` while every connection is over before the next one comes.
fn over_at_once(workers: &mut [Candidate], turn: &mut Turn, count: usize) -> Vec<usize> {
    let one = |_| {
        turn.loads_changed();
        let chosen = pick(Policy::Rr, workers, turn, None).unwrap_or(usize::MAX);
        workers[chosen].pending -= 1;
        turn.fell(&workers[chosen]);
        chosen
    };
    (0..count).map(one).collect()
}

#[test]
fn rr_passes_over_who_is_behind_but_not_when_all_are() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    workers[1].behind = true;
    assert_eq!(over_at_once(&mut workers, &mut turn, 4), [0, 2, 0, 2]);
    assert_eq!(workers[1].owed, 2);
    workers[1].behind = false;
    let order = over_at_once(&mut workers, &mut turn, 9);
    assert_eq!(order, [0, 1, 1, 2, 0, 1, 1, 2, 0], "it gets its turns back, two in a row at most");
    for (at, pending) in [(0, 5), (1, 3), (2, 4)] {
        workers[at].behind = true;
        workers[at].pending = pending;
    }
    workers[0].owed = 0;
    assert_eq!(pick(Policy::Rr, &mut workers, &mut turn, None), Some(1), "fewest pending");
}

#[test]
fn rr_passes_over_who_has_more_in_hand_and_owes_no_turn_for_it() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    workers[1].open = 1;
    assert_eq!(over_at_once(&mut workers, &mut turn, 5), [0, 2, 0, 2, 0], "pending or open, a free one goes first");
    assert_eq!(workers.iter().map(|worker| worker.owed).max(), Some(0));
    workers[1].open = 0;
    assert_eq!(over_at_once(&mut workers, &mut turn, 5), [1, 2, 0, 1, 2], "no turns given back");
    (workers[0].pending, workers[1].open, workers[2].open) = (7, 7, 7);
    assert_eq!(over_at_once(&mut workers, &mut turn, 4), [0, 1, 2, 0], "equal loads, however many");
}

#[test]
fn rr_gives_turns_back_only_as_far_as_loads_allow() {
    let (mut workers, mut turn) = (workers(2), Turn::default());
    workers[0].owed = 5;
    let order: Vec<_> = (0..6).map(|_| pick(Policy::Rr, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [0, 1, 0, 0, 1, 0].map(Some), "all stay open: a free one first, then one or two more");
}

#[test]
fn rr_does_not_flood_a_newcomer() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    workers[0].open = 50;
    workers[1].open = 50;
    workers[2].newcomer = true;
    let mut got = [0; 3];
    for _ in 0..31 {
        if let Some(at) = pick(Policy::Rr, &mut workers, &mut turn, None) {
            got[at] += 1;
        }
    }
    assert!(got.iter().all(|count| (10..=11).contains(count)), "its turn and no more: {got:?}");
    assert!(workers[2].newcomer);
    (workers[0].open, workers[0].pending) = (0, 0);
    assert_eq!(pick(Policy::Rr, &mut workers, &mut turn, None), Some(0), "but it is never before one that is free");
    turn = Turn { next: 1, ..Turn::default() };
    assert_eq!(pick(Policy::Rr, &mut workers, &mut turn, None), Some(0), "nor before the least loaded");
}

#[test]
fn rr_where_all_are_new_takes_the_least_loaded() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    for (worker, open) in workers.iter_mut().zip([9, 2, 5]) {
        (worker.open, worker.newcomer) = (open, true);
    }
    assert_eq!(pick(Policy::Rr, &mut workers, &mut turn, None), Some(1));
    assert!(workers.iter().all(|worker| !worker.newcomer));
}

#[test]
fn nobody_gets_more_than_the_cap_and_a_stalled_worker_gets_nothing() {
    let (mut workers, mut turn) = (workers(2), Turn::default());
    workers[0].pending = 64;
    workers[1].stalled = true;
    for policy in [Policy::Rr, Policy::LeastConn, Policy::IpHash, Policy::Hash, Policy::None] {
        assert_eq!(pick(policy, &mut workers, &mut turn, client(1)), None);
    }
}

#[test]
fn weight_0_gets_nothing_and_is_owed_nothing() {
    for policy in [Policy::Rr, Policy::LeastConn, Policy::IpHash, Policy::Hash, Policy::None] {
        let (mut workers, mut turn) = (workers(3), Turn::default());
        workers[1].weight = 0;
        for n in 0..60 {
            assert_ne!(pick(policy, &mut workers, &mut turn, client(n)), Some(1), "{policy}");
            assert_ne!(client(n).and_then(|client| home(&workers, &turn, client)), Some(1));
        }
        assert_eq!((workers[1].pending, workers[1].owed), (0, 0), "{policy}");
        workers[0].weight = 0;
        workers[2].weight = 0;
        assert_eq!(pick(policy, &mut workers, &mut turn, client(1)), None);
    }
}

#[test]
fn no_worker_is_no_choice() {
    assert_eq!(pick(Policy::Rr, &mut [], &mut Turn::default(), None), None);
    assert_eq!(pick(Policy::LeastConn, &mut [], &mut Turn::default(), None), None);
    assert_eq!(pick(Policy::IpHash, &mut [], &mut Turn::default(), client(1)), None);
}

#[test]
fn least_conn_counts_open_and_pending_and_passes_over_who_is_behind() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    workers[0].open = 4;
    workers[1].open = 2;
    workers[2].open = 2;
    let order: Vec<_> = (0..7).map(|_| pick(Policy::LeastConn, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [1, 2, 1, 2, 0, 1, 2].map(Some));
    workers[1].behind = true;
    workers[2].behind = true;
    assert_eq!(pick(Policy::LeastConn, &mut workers, &mut turn, None), Some(0));
    assert_eq!(pick(Policy::LeastConn, &mut workers, &mut turn, None), Some(0));
}

#[test]
fn least_conn_does_not_flood_a_newcomer() {
    let (mut workers, mut turn) = (workers(2), Turn::default());
    workers[0].open = 10;
    workers[1].open = 100;
    workers.push(Candidate { young: true, ..worker(2) });
    assert_eq!(pick(Policy::LeastConn, &mut workers, &mut turn, None), Some(0), "the newcomer counts the mean, 36");
}

#[test]
fn keys_stay_and_only_those_of_a_lost_slot_move() {
    let digest = |n: u32| Some(Key::Digest(crate::affinity::digest(n.to_string().as_bytes())));
    for (policy, key) in [(Policy::IpHash, client as fn(u32) -> _), (Policy::Hash, client), (Policy::Hash, digest)] {
        let all = workers(8);
        let home = |workers: &[Candidate], n| {
            let at = pick(policy, &mut workers.to_vec(), &mut Turn::default(), key(n)).unwrap_or(usize::MAX);
            workers[at].slot
        };
        let before: Vec<_> = (0..2000).map(|n| home(&all, n)).collect();
        let mut fewer = all.clone();
        fewer.remove(3);
        for (n, &slot) in before.iter().enumerate() {
            if slot != 3 {
                assert_eq!(home(&fewer, n as u32), slot);
            }
        }
        for slot in 0..8 {
            let share = before.iter().filter(|&&s| s == slot).count();
            assert!((180..=320).contains(&share), "slot {slot} has {share} of 2000");
        }
    }
}

/// Clients stay where they are when the program is replaced by a newer one.
#[test]
fn the_hash_is_the_same_in_every_version() {
    let workers = workers(8);
    let homes = |key: fn(u32) -> Option<Key>| {
        let home = |n| key(n).and_then(|key| home(&workers, &Turn::default(), key)).unwrap_or(usize::MAX);
        (0..8).map(home).collect::<Vec<_>>()
    };
    assert_eq!(homes(client), [2, 7, 3, 4, 2, 1, 3, 3]);
    assert_eq!(homes(|n| Some(Key::Digest(crate::affinity::digest(&[n as u8])))), [6, 0, 7, 6, 0, 1, 0, 4]);
}

#[test]
fn without_a_key_or_its_worker_they_take_turns() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    let mut next = |key| pick(Policy::Hash, &mut workers, &mut turn, key);
    assert_eq!([next(None), next(None), next(None), next(None)], [0, 1, 2, 0].map(Some));
    assert_eq!([next(Some(Key::Worker(2))), next(Some(Key::Worker(2)))], [Some(2); 2]);
    assert_eq!(next(Some(Key::Worker(9))), Some(1), "the worker is gone");
    workers[1].weight = 0;
    assert_ne!(pick(Policy::Hash, &mut workers, &mut turn, Some(Key::Worker(1))), Some(1), "the slot is drained");
}

#[test]
fn a_session_stays_with_its_worker_whatever_that_is_busy_with_and_leaves_its_drained_slot() {
    let mut workers = workers(3);
    let of = |workers: &[Candidate]| home(workers, &Turn::default(), Key::Worker(1));
    (workers[1].stalled, workers[1].behind, workers[1].pending, workers[1].room) = (true, true, 64, 0);
    assert_eq!(of(&workers), Some(1));
    assert_eq!(pick(Policy::Hash, &mut workers.clone(), &mut Turn::default(), Some(Key::Worker(1))), Some(0));
    workers[1].weight = 0;
    assert_eq!(of(&workers), None);
    assert_eq!(of(&workers[..1]), None, "the worker is gone");
}

#[test]
fn a_client_stays_with_a_worker_that_is_full_and_leaves_one_that_is_stalled() {
    let mut workers = workers(4);
    for n in 0..100 {
        let of = |workers: &[Candidate]| {
            client(n).and_then(|client| home(workers, &Turn::default(), client)).unwrap_or(usize::MAX)
        };
        let own = of(&workers);
        for policy in [Policy::IpHash, Policy::Hash] {
            assert_eq!(pick(policy, &mut workers.clone(), &mut Turn::default(), client(n)), Some(own));
        }
        workers[own].pending = 64;
        assert_eq!(of(&workers), own);
        workers[own].stalled = true;
        let next = pick(Policy::IpHash, &mut workers.clone(), &mut Turn::default(), client(n));
        assert_eq!(Some(of(&workers)), next, "the next in hash order");
        workers[own] = worker(own as u32);
    }
}

proptest! {
    #[test]
    fn whoever_is_picked_may_be_picked_and_someone_is_if_anyone_may(
        facts in proptest::collection::vec((0u32..4, 0u64..9, any::<(bool, bool, bool)>()), 0..9),
        start in 0usize..20,
        policy in prop_oneof![Just(Policy::Rr), Just(Policy::LeastConn), Just(Policy::IpHash), Just(Policy::Hash)],
    ) {
        let mut turn = Turn { next: start, ..Turn::default() };
        let mut workers: Vec<_> = facts.iter().enumerate().map(|(slot, &(pending, open, (behind, stalled, young)))| {
            Candidate { pending, cap: 3, open, behind, stalled, young, ..worker(slot as u32) }
        }).collect();
        let before = workers.clone();
        let eligible = |worker: &Candidate| !worker.stalled && worker.pending < worker.cap;
        match pick(policy, &mut workers, &mut turn, client(7)) {
            Some(at) => prop_assert!(eligible(&before[at])),
            None => prop_assert!(!before.iter().any(eligible)),
        }
    }

    #[test]
    fn rr_is_even_over_any_number_of_turns(n in 1u32..40, rounds in 1usize..400, each in 0u64..5) {
        let (mut workers, mut turn) = (workers(n), Turn::default());
        workers.iter_mut().for_each(|worker| worker.open = each);
        let order = over_at_once(&mut workers, &mut turn, rounds);
        prop_assert!(order.iter().enumerate().all(|(nth, &at)| at == nth % n as usize), "strict turns: {:?}", order);
    }

    /// Connections that come and end at random: the load rule at every choice, and what follows from it.
    #[test]
    fn rr_takes_the_least_loaded_and_starves_none(
        n in 2usize..12,
        steps in proptest::collection::vec((any::<bool>(), 0usize..64), 0..400),
        newcomer in 0usize..12,
    ) {
        let (mut workers, mut turn) = (workers(n as u32), Turn::default());
        if let Some(worker) = workers.get_mut(newcomer) {
            worker.newcomer = true;
        }
        let mut since = vec![0; n];
        for (comes, which) in steps {
            let before = workers.clone();
            if !comes {
                let worker = &mut workers[which % n];
                worker.open = worker.open.saturating_sub(1);
                turn.fell(worker);
                continue;
            }
            let chosen = pick(Policy::Rr, &mut workers, &mut turn, None).unwrap_or(usize::MAX);
            workers[chosen].pending = 0;
            workers[chosen].open += 1;
            prop_assert!(workers.iter().all(|worker| worker.owed == 0));
            let load = before[chosen].load();
            let least = before.iter().filter(|worker| !worker.newcomer).map(Candidate::load).min().unwrap_or(0);
            let free = before.iter().any(|worker| worker.load() == 0);
            prop_assert!(load <= least + least.isqrt() && (load == 0 || !free), "{:?} {}", before, chosen);
            // A worker that has no more than the one chosen has its turn within a round.
            for (at, missed) in since.iter_mut().enumerate() {
                *missed = if at == chosen || before[at].load() > load { 0 } else { *missed + 1 };
                prop_assert!(*missed < n, "{} of {:?}", at, before);
            }
        }
    }

    /// Without an end, all that come are spread evenly.
    #[test]
    fn rr_keeps_open_connections_even(n in 1u32..40, opens in 0u64..400, start in 0usize..40) {
        let (mut workers, mut turn) = (workers(n), Turn { next: start, ..Turn::default() });
        for _ in 0..opens {
            let chosen = pick(Policy::Rr, &mut workers, &mut turn, None).unwrap_or(usize::MAX);
            (workers[chosen].pending, workers[chosen].open) = (0, workers[chosen].open + 1);
        }
        let (least, most) = (workers.iter().map(Candidate::load).min(), workers.iter().map(Candidate::load).max());
        prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
    }
}

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn worker(slot: u32) -> Candidate {
    Candidate { slot, pending: 0, cap: 64, open: 0, behind: false, stalled: false, young: false, weight: 1, owed: 0 }
}

fn workers(n: u32) -> Vec<Candidate> {
    (0..n).map(worker).collect()
}

fn client(n: u32) -> Option<IpAddr> {
    Some(Ipv4Addr::from(0x0a00_0000 + n).into())
}

#[test]
fn rr_takes_strict_turns() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    let order: Vec<_> = (0..7).map(|_| pick(Policy::Rr, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0].map(Some));
}

#[test]
fn rr_passes_over_who_is_behind_but_not_when_all_are() {
    let (mut workers, mut turn) = (workers(3), Turn::default());
    workers[1].behind = true;
    let order: Vec<_> = (0..4).map(|_| pick(Policy::Rr, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [0, 2, 0, 2].map(Some));
    assert_eq!(workers[1].owed, 2);
    workers[1].behind = false;
    let order: Vec<_> = (0..9).map(|_| pick(Policy::Rr, &mut workers, &mut turn, None)).collect();
    assert_eq!(order, [0, 1, 1, 2, 0, 1, 1, 2, 0].map(Some), "it gets its turns back, two in a row at most");
    for (at, pending) in [(0, 5), (1, 3), (2, 4)] {
        workers[at].behind = true;
        workers[at].pending = pending;
    }
    workers[0].owed = 0;
    assert_eq!(pick(Policy::Rr, &mut workers, &mut turn, None), Some(1), "fewest pending");
}

#[test]
fn nobody_gets_more_than_the_cap_and_a_stalled_worker_gets_nothing() {
    let (mut workers, mut turn) = (workers(2), Turn::default());
    workers[0].pending = 64;
    workers[1].stalled = true;
    for policy in [Policy::Rr, Policy::LeastConn, Policy::IpHash, Policy::None] {
        assert_eq!(pick(policy, &mut workers, &mut turn, client(1)), None);
    }
}

#[test]
fn weight_0_gets_nothing_and_is_owed_nothing() {
    for policy in [Policy::Rr, Policy::LeastConn, Policy::IpHash, Policy::None] {
        let (mut workers, mut turn) = (workers(3), Turn::default());
        workers[1].weight = 0;
        for n in 0..60 {
            assert_ne!(pick(policy, &mut workers, &mut turn, client(n)), Some(1), "{policy}");
            assert_ne!(client(n).and_then(|client| home(&workers, client)), Some(1));
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
fn ip_hash_keeps_clients_and_moves_only_those_of_a_lost_slot() {
    let all = workers(8);
    let home = |workers: &[Candidate], n| {
        let at = pick(Policy::IpHash, &mut workers.to_vec(), &mut Turn::default(), client(n)).unwrap_or(usize::MAX);
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

#[test]
fn a_client_stays_with_a_worker_that_is_full_and_leaves_one_that_is_stalled() {
    let mut workers = workers(4);
    for n in 0..100 {
        let of = |workers: &[Candidate]| client(n).and_then(|client| home(workers, client)).unwrap_or(usize::MAX);
        let own = of(&workers);
        assert_eq!(pick(Policy::IpHash, &mut workers.clone(), &mut Turn::default(), client(n)), Some(own));
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
        policy in prop_oneof![Just(Policy::Rr), Just(Policy::LeastConn), Just(Policy::IpHash)],
    ) {
        let mut turn = Turn { next: start, last: None };
        let mut workers: Vec<_> = facts.iter().enumerate().map(|(slot, &(pending, open, (behind, stalled, young)))| {
            Candidate { slot: slot as u32, pending, cap: 3, open, behind, stalled, young, weight: 1, owed: 0 }
        }).collect();
        let before = workers.clone();
        let eligible = |worker: &Candidate| !worker.stalled && worker.pending < worker.cap;
        match pick(policy, &mut workers, &mut turn, client(7)) {
            Some(at) => prop_assert!(eligible(&before[at])),
            None => prop_assert!(!before.iter().any(eligible)),
        }
    }

    #[test]
    fn rr_is_even_over_any_number_of_turns(n in 1u32..40, rounds in 1usize..400) {
        let (mut workers, mut turn) = (workers(n), Turn::default());
        let mut counts = vec![0usize; n as usize];
        for _ in 0..rounds {
            workers.iter_mut().for_each(|worker| worker.pending = 0);
            if let Some(at) = pick(Policy::Rr, &mut workers, &mut turn, None) { counts[at] += 1; }
        }
        let (least, most) = (counts.iter().min(), counts.iter().max());
        prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
    }
}

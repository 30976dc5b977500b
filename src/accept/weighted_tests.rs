use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::accept::hash::{Key, home};
use crate::accept::policy::{Policy, Turn, pick};
use crate::accept::shares::share;

fn workers(weights: &[u16]) -> Vec<Candidate> {
    let worker = |(slot, &weight): (u32, &u16)| Candidate {
        slot,
        pending: 0,
        cap: 64,
        room: u32::MAX,
        open: 0,
        behind: false,
        stalled: false,
        young: false,
        newcomer: false,
        weight,
        share: u32::from(weight) * FULL,
        credit: 0,
        owed: 0,
    };
    (0..).zip(weights).map(worker).collect()
}

fn uneven() -> Turn {
    let mut turn = Turn::default();
    turn.uneven = true;
    turn
}

/// Who gets `total` connections that end at once.
fn turns(policy: Policy, workers: &mut [Candidate], total: usize) -> Vec<usize> {
    let mut turn = uneven();
    let mut next = || {
        let at = pick(policy, workers, &mut turn, None).unwrap();
        workers[at].pending = 0;
        at
    };
    (0..total).map(|_| next()).collect()
}

fn counts(order: &[usize], workers: usize) -> Vec<usize> {
    (0..workers).map(|at| order.iter().filter(|&&chosen| chosen == at).count()).collect()
}

#[test]
fn turns_are_smooth() {
    let order = turns(Policy::Rr, &mut workers(&[5, 1, 1]), 14);
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(turns(Policy::Rr, &mut workers(&[1, 1, 1]), 6), [0, 1, 2, 0, 1, 2]);
    assert_eq!(counts(&turns(Policy::Rr, &mut workers(&[1, 256, 0]), 514), 3), [2, 512, 0]);
}

/// What each of the workers gets of `total` connections, `at_once` of which are open at any time; the oldest ends.
fn loaded(policy: Policy, weights: &[u16], at_once: usize, total: usize) -> Vec<usize> {
    let (mut workers, mut turn, mut open) = (workers(weights), uneven(), std::collections::VecDeque::new());
    let mut order = Vec::new();
    for _ in 0..total {
        if open.len() == at_once {
            let at: usize = open.pop_front().unwrap();
            workers[at].open -= 1;
        }
        let at = pick(policy, &mut workers, &mut turn, None).unwrap();
        workers[at].pending = 0;
        workers[at].open += 1;
        open.push_back(at);
        order.push(at);
    }
    counts(&order, weights.len())
}

#[test]
fn counts_go_by_the_weights_however_many_are_open() {
    for policy in [Policy::Rr, Policy::LeastConn] {
        for weights in [&[1, 3][..], &[1, 256], &[5, 1, 1], &[1, 2, 0, 4], &[100, 99], &[1, 1, 2]] {
            for at_once in [1, 2, 3, 10, 300] {
                let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
                let rounds = 4000 / sum + 4;
                let counts = loaded(policy, weights, at_once, rounds * sum);
                for (&weight, &count) in weights.iter().zip(&counts) {
                    let ideal = usize::from(weight) * rounds;
                    let tolerance = if weight == 0 { 0 } else { 2 + ideal / 20 };
                    assert!(count.abs_diff(ideal) <= tolerance, "{policy} {weights:?} {at_once}: {counts:?}");
                }
            }
        }
    }
}

#[test]
fn a_worker_that_is_busy_for_its_weight_is_passed_over_and_not_flooded_later() {
    for policy in [Policy::Rr, Policy::LeastConn] {
        let (mut workers, mut turn) = (workers(&[1, 3]), uneven());
        workers[1].open = 300;
        let mut next = |workers: &mut [Candidate]| {
            let at = pick(policy, workers, &mut turn, None).unwrap();
            workers[at].pending = 0;
            at
        };
        assert!((0..50).all(|_| next(&mut workers) == 0), "{policy}");
        workers[1].open = 0;
        let order: Vec<_> = (0..40).map(|_| next(&mut workers)).collect();
        assert!(counts(&order[..8], 2)[1] <= 7 && counts(&order, 2)[1] <= 31, "{policy}: {order:?}");
        workers[0].behind = true;
        assert!((0..9).all(|_| next(&mut workers) == 1), "{policy}: one that does not keep up is passed over");
    }
}

#[test]
fn under_ip_hash_clients_go_by_the_weights_and_only_those_of_the_slot_that_changes_move() {
    let client = |n: u32| Key::Address(Ipv4Addr::from(0x0a00_0000 + n).into());
    let homes = |weights: &[u16]| {
        let workers = workers(weights);
        let even = weights.iter().all(|&weight| weight == 1);
        let mut turn = uneven();
        turn.uneven = !even;
        (0..4000).map(|n| home(&workers, &turn, client(n)).unwrap()).collect::<Vec<_>>()
    };
    let before = homes(&[1, 1, 1, 1]);
    for weight in [0, 2, 3, 256] {
        let after = homes(&[1, 1, weight, 1]);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(&before, &after)| if weight == 0 { before == 2 } else { after == 2 }));
        let ideal = 4000 * usize::from(weight) / (3 + usize::from(weight));
        let count = counts(&after, 4)[2];
        assert!(count.abs_diff(ideal) <= 120, "weight {weight}: {count} of {ideal}");
    }
    assert_eq!(homes(&[1, 1, 1, 1]), before);
    assert_eq!(homes(&[7, 7, 7, 7]), before, "only the proportion counts");
}

#[test]
fn a_slow_start_grows_from_a_tenth() {
    for policy in [Policy::Rr, Policy::LeastConn] {
        let (mut workers, mut turn) = (workers(&[2, 2, 2]), uneven());
        let (begin, whole) = (Instant::now(), Duration::from_secs(15));
        let mut shares = Vec::new();
        for second in 0..16 {
            let age = (begin + Duration::from_secs(second)).duration_since(begin);
            workers[1].share = 2 * share(age, whole);
            let mut count = 0;
            for _ in 0..300 {
                let at = pick(policy, &mut workers, &mut turn, None).unwrap();
                workers[at].pending = 0;
                count += usize::from(at == 1);
            }
            shares.push(count);
        }
        assert!((13..=16).contains(&shares[0]), "a tenth of that of each other: {shares:?}");
        assert!((98..=102).contains(&shares[15]), "{shares:?}");
        assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]), "{shares:?}");
    }
}

proptest! {
    #[test]
    fn every_window_of_turns_is_near_the_weights(
        weights in proptest::collection::vec(0u16..20, 2..8),
        from in 0usize..200,
        len in 1usize..200,
    ) {
        let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
        prop_assume!(sum > 0);
        let order = turns(Policy::Rr, &mut workers(&weights), from + len.max(sum));
        let ideal = |len: usize, weight: u16| len as f64 * f64::from(weight) / sum as f64;
        for (at, &weight) in weights.iter().enumerate() {
            let of = |range: std::ops::Range<usize>| counts(&order[range], weights.len())[at] as f64;
            prop_assert!((of(0..len) - ideal(len, weight)).abs() <= 1.0 + 1e-9, "{weights:?} {order:?}");
            prop_assert!((of(from..from + len) - ideal(len, weight)).abs() <= 2.0 + 1e-9, "{weights:?} {order:?}");
            prop_assert_eq!(of(from..from + sum), f64::from(weight), "a whole round, from anywhere");
        }
    }

    #[test]
    fn whoever_is_picked_may_be_picked_and_someone_is_if_anyone_may(
        facts in proptest::collection::vec((0u32..4, 0u64..9, any::<(bool, bool, bool, bool)>(), 0u16..4), 0..9),
        policy in prop_oneof![Just(Policy::Rr), Just(Policy::LeastConn), Just(Policy::IpHash), Just(Policy::Hash)],
    ) {
        let weights: Vec<_> = facts.iter().map(|fact| fact.3).collect();
        let mut workers = workers(&weights);
        for (worker, &(pending, open, (behind, stalled, young, newcomer), _)) in workers.iter_mut().zip(&facts) {
            *worker = Candidate { pending, cap: 3, open, behind, stalled, young, newcomer, ..*worker };
        }
        let before = workers.clone();
        match pick(policy, &mut workers, &mut uneven(), Some(Key::Address(Ipv4Addr::LOCALHOST.into()))) {
            Some(at) => prop_assert!(before[at].eligible()),
            None => prop_assert!(!before.iter().any(Candidate::eligible)),
        }
    }
}

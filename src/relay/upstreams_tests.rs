use super::*;
use crate::handoff::upstreams::MAX_SKIP;

fn of(resolved: Vec<Resolved>) -> Upstreams {
    let page = Rc::new(CountersPage::create().unwrap().0);
    Upstreams::new(resolved, UpstreamTable::own(), page, (Instant::now(), 1_000_000_000))
}

fn refused() -> io::Error {
    io::Error::from_raw_os_error(libc::ECONNREFUSED)
}

fn upstreams(n: u16) -> Upstreams {
    let one = |port| Resolved {
        upstream: Upstream::Host { host: "127.0.0.1".into(), port },
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        weight: 1,
        backup: false,
    };
    of((1..=n).map(one).collect())
}

#[test]
fn several_take_turns_and_the_one_with_fewest_open_comes_first() {
    let (mut all, now) = (upstreams(3), Instant::now());
    let order: Vec<_> = (0..6).map(|_| all.pick(now).unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    all.closed(1);
    assert_eq!(all.pick(now), Some(1));
}

#[test]
fn one_that_fails_is_skipped_for_a_growing_time() {
    let (mut all, mut now) = (upstreams(2), Instant::now());
    assert_eq!(all.pick(now), Some(0));
    assert_eq!(all.failed(0, now, &refused()), Change::Turned);
    assert!((0..10).all(|_| all.pick(now) == Some(1)), "the other gets everything");
    let mut gaps = Vec::new();
    for _ in 0..9 {
        let begin = now;
        let back = loop {
            now += Duration::from_millis(50);
            if all.pick(now) == Some(0) {
                break now;
            }
        };
        gaps.push(back.duration_since(begin));
        assert_eq!(all.failed(0, now, &refused()), Change::None);
    }
    assert!(gaps.windows(2).all(|pair| pair[0] <= pair[1]), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= MAX_SKIP), "{gaps:?}");
    now += MAX_SKIP;
    assert_eq!(all.pick(now), Some(0));
    assert_eq!(all.succeeded(0), Change::Turned);
}

#[test]
fn when_all_fail_the_longest_rested_is_tried_again_soon() {
    let (mut all, now) = (upstreams(2), Instant::now());
    for _ in 0..2 {
        let at = all.pick(now).unwrap();
        all.failed(at, now, &refused());
    }
    assert_eq!(all.pick(now), None);
    let later = now + LAST_RESORT;
    assert!(all.pick(later).is_some());
}

#[test]
fn a_name_that_resolves_anew_changes_the_targets_but_an_empty_answer_does_not() {
    let host = Upstream::Host { host: "app".into(), port: 1 };
    let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, 1)));
    let mut all = of(vec![Resolved { upstream: host, addresses: vec![], weight: 1, backup: false }]);
    let now = Instant::now();
    assert_eq!(all.pick(now), None);
    assert_eq!(all.unresolved().len(), 1);
    all.update(0, &[a], now);
    assert_eq!(all.pick(now), Some(0));
    all.update(0, &[], now);
    assert_eq!(all.pick(now), Some(0));
    all.update(0, &[b], now);
    let at = all.pick(now).unwrap();
    assert_eq!(all.address(at).unwrap().to_string(), "10.0.0.2:1");
}

#[test]
fn two_workers_take_turns_and_share_what_is_down_and_open() {
    let (_master, fd) = UpstreamTable::create().unwrap();
    let (now, start) = (Instant::now(), (Instant::now(), 1_000_000_000));
    let one = |port| Resolved {
        upstream: Upstream::Host { host: "127.0.0.1".into(), port },
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        weight: 1,
        backup: false,
    };
    let worker = || {
        use std::os::fd::AsFd;
        let table = UpstreamTable::attach(fd.as_fd()).unwrap();
        Upstreams::new(vec![one(1), one(2)], table, Rc::new(CountersPage::create().unwrap().0), start)
    };
    let [mut a, mut b] = [worker(), worker()];
    for _ in 0..3 {
        for (worker, wanted) in [(&mut a, 0), (&mut b, 1)] {
            assert_eq!(worker.pick(now), Some(wanted));
            worker.closed(wanted);
        }
    }
    let kept = [(); 3].map(|()| a.pick(now).unwrap());
    assert_eq!(kept, [0, 1, 0]);
    a.closed(1);
    assert_eq!([b.pick(now), b.pick(now)], [Some(1), Some(1)], "the other worker's connections count");
    assert_eq!(a.failed(0, now, &refused()), Change::Turned);
    assert!((0..10).all(|_| b.pick(now) == Some(1)), "it is not tried again by another worker");
    assert_eq!(b.succeeded(0), Change::Turned);
    assert_eq!(a.succeeded(0), Change::None);
}

#[test]
fn a_name_is_down_when_all_its_addresses_are() {
    let [a, b] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 1)));
    let mut all = of(vec![Resolved {
        upstream: Upstream::Host { host: "app".into(), port: 1 },
        addresses: vec![a, b],
        weight: 1,
        backup: false,
    }]);
    let now = Instant::now();
    let [first, second] = [all.pick(now).unwrap(), all.pick(now).unwrap()];
    assert_ne!(first, second, "fewest open among its addresses");
    assert_eq!(all.failed(first, now, &refused()), Change::None);
    assert_eq!(all.pick(now), Some(second), "only the failed one is skipped");
    assert_eq!(all.failed(second, now, &refused()), Change::Turned);
    assert_eq!(all.pick(now), None);
    assert_eq!(all.succeeded(first), Change::Turned);
    assert_eq!(all.pick(now), Some(first));
}

#[test]
fn another_address_of_a_name_that_is_down_is_tried_at_once() {
    let [a, b] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 1)));
    let host = |host: &str, address| Resolved {
        upstream: Upstream::Host { host: host.into(), port: 1 },
        addresses: vec![address],
        weight: 1,
        backup: false,
    };
    let mut all = of(vec![host("app", a), host("10.0.0.9", SocketAddr::from(([10, 0, 0, 9], 1)))]);
    let now = Instant::now();
    assert_eq!(all.pick(now), Some(0));
    all.failed(0, now, &refused());
    assert_eq!([all.pick(now), all.pick(now)], [Some(1); 2]);
    all.update(0, &[b], now);
    let at = all.pick(now).unwrap();
    assert_eq!(all.address(at).unwrap().to_string(), "10.0.0.2:1");
}

/// Upstreams of these weights, for each of `workers` relay workers that share a table.
fn weighted(weights: &[(u16, bool)], workers: usize) -> Vec<Upstreams> {
    use std::os::fd::AsFd;
    let (_master, fd) = UpstreamTable::create().unwrap();
    let start = (Instant::now(), 1_000_000_000);
    let all = || {
        (1..).zip(weights).map(|(port, &(weight, backup))| Resolved {
            upstream: Upstream::Host { host: "127.0.0.1".into(), port },
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
            weight,
            backup,
        })
    };
    let worker = || {
        let (table, page) = (UpstreamTable::attach(fd.as_fd()).unwrap(), CountersPage::create().unwrap().0);
        Upstreams::new(all().collect(), table, Rc::new(page), start)
    };
    (0..workers).map(|_| worker()).collect()
}

/// What each upstream got of `total` connections over all workers, `at_once` of which are open at any time; the oldest ends.
fn shares(weights: &[u16], workers: usize, at_once: usize, total: usize) -> Vec<usize> {
    let weights: Vec<_> = weights.iter().map(|&weight| (weight, false)).collect();
    let (mut all, now) = (weighted(&weights, workers), Instant::now());
    let mut open = std::collections::VecDeque::new();
    let mut counts = vec![0; weights.len()];
    for n in 0..total {
        if open.len() == at_once {
            let (worker, at): (usize, usize) = open.pop_front().unwrap();
            all[worker].closed(at);
        }
        let worker = n % workers;
        let at = all[worker].pick(now).unwrap();
        counts[at] += 1;
        open.push_back((worker, at));
    }
    counts
}

#[test]
fn counts_go_by_the_weights_however_many_are_open_and_over_several_workers() {
    for weights in [&[1, 3][..], &[3, 1], &[1, 256], &[5, 1, 1], &[1, 2, 0, 4], &[100, 99]] {
        for workers in [1, 3] {
            for at_once in [1, 2, 3, 10, 300] {
                let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
                let rounds = 4000 / sum + 4;
                let counts = shares(weights, workers, at_once, rounds * sum);
                for (&weight, &count) in weights.iter().zip(&counts) {
                    let ideal = usize::from(weight) * rounds;
                    let tolerance = if weight == 0 { 0 } else { 2 + ideal / 20 };
                    assert!(count.abs_diff(ideal) <= tolerance, "{weights:?} {workers} {at_once}: {counts:?}");
                }
            }
        }
    }
}

#[test]
fn with_one_connection_at_a_time_every_round_is_exact_and_smooth() {
    assert_eq!(shares(&[1, 3], 2, 1, 4), [1, 3]);
    assert_eq!(shares(&[1, 3], 2, 1, 400), [100, 300]);
    assert_eq!(shares(&[5, 1, 1], 1, 1, 7 * 20), [100, 20, 20]);
    let (mut all, now) = (weighted(&[(5, false), (1, false), (1, false)], 1), Instant::now());
    let order: Vec<_> = (0..70)
        .map(|_| {
            let at = all[0].pick(now).unwrap();
            all[0].closed(at);
            at
        })
        .collect();
    for at in 1..3 {
        let turns: Vec<_> = order.iter().enumerate().filter(|(_, chosen)| **chosen == at).map(|(n, _)| n).collect();
        assert!(turns.windows(2).all(|pair| pair[1] - pair[0] == 7), "evenly spread: {order:?}");
    }
}

#[test]
fn a_loaded_upstream_is_passed_over_by_its_weight() {
    let (mut all, now) = (weighted(&[(1, false), (3, false)], 1), Instant::now());
    let all = &mut all[0];
    for _ in 0..40 {
        all.pick(now).unwrap();
    }
    assert_eq!([all.table.open(0), all.table.open(1)], [10, 30]);
    (0..12).for_each(|_| all.closed(1));
    let next: Vec<_> = (0..12).map(|_| all.pick(now).unwrap()).collect();
    assert_eq!(next, [1; 12], "those that ended are made up for first");
}

#[test]
fn one_that_was_down_is_not_flooded_when_it_is_back() {
    let (mut all, mut now) = (weighted(&[(2, false), (3, false)], 1), Instant::now());
    let all = &mut all[0];
    while all.pick(now) != Some(0) {
        all.closed(1);
    }
    all.failed(0, now, &refused());
    for _ in 0..500 {
        assert_eq!(all.pick(now), Some(1));
        all.closed(1);
    }
    now += MAX_SKIP;
    while all.pick(now) != Some(0) {
        all.closed(1);
    }
    all.established(0);
    all.closed(0);
    let order: Vec<_> = (0..50)
        .map(|_| {
            let at = all.pick(now).unwrap();
            all.closed(at);
            at
        })
        .collect();
    assert!(order[..8].iter().filter(|&&at| at == 0).count() <= 5, "{order:?}");
    let count = order.iter().filter(|&&at| at == 0).count();
    assert!((20..=22).contains(&count), "{count}: {order:?}");
}

#[test]
fn a_backup_is_used_only_while_no_other_is_up() {
    let (mut all, mut now) = (weighted(&[(1, true), (1, false), (0, false)], 1), Instant::now());
    let all = &mut all[0];
    assert!((0..5).all(|_| all.pick(now) == Some(1)));
    assert_eq!(all.failed(1, now, &refused()), Change::Turned);
    assert!((0..5).all(|_| all.pick(now) == Some(0)));
    // One client tries the other one, at the end of its skip.
    now += Duration::from_millis(100);
    assert_eq!([all.pick(now), all.pick(now)], [Some(1), Some(0)]);
    assert_eq!(all.established(1), Change::Turned);
    assert!((0..5).all(|_| all.pick(now) == Some(1)));
}

#[test]
fn a_weight_changes_while_it_runs_and_0_everywhere_is_nobody() {
    let (mut all, now) = (weighted(&[(1, false), (1, false)], 2), Instant::now());
    let count = |all: &mut Vec<Upstreams>, n: usize| {
        let mut counts = [0; 2];
        for n in 0..n {
            let at = all[n % 2].pick(now).unwrap();
            all[n % 2].closed(at);
            counts[at] += 1;
        }
        counts
    };
    assert_eq!(count(&mut all, 20), [10, 10]);
    all[0].table.set_weight(0, 4);
    assert_eq!(count(&mut all, 50), [40, 10]);
    all[0].table.set_weight(0, 0);
    assert_eq!(count(&mut all, 50), [0, 50]);
    all[0].table.set_weight(0, 1);
    assert_eq!(count(&mut all, 50), [25, 25]);
    (0..2).for_each(|at| all[0].table.set_weight(at, 0));
    assert_eq!((all[0].pick(now), all[1].pick(now)), (None, None));
}

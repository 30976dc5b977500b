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
    let mut all = of(vec![Resolved { upstream: host, addresses: vec![] }]);
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
    let mut all =
        of(vec![Resolved { upstream: Upstream::Host { host: "app".into(), port: 1 }, addresses: vec![a, b] }]);
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

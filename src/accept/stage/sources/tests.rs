use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};

use super::*;

/// Stands in for the kernel.
#[derive(Default)]
struct World {
    /// Ports of those that are over.
    closed: HashSet<u16>,
    /// Connections that were asked about, without the present one.
    looks: usize,
    knows_none: bool,
}

impl World {
    fn open(&mut self, asked: &[Ends]) -> io::Result<[bool; BATCH]> {
        assert!(asked.len() <= BATCH);
        self.looks += asked.len() - 1;
        let mut open = [false; BATCH];
        for (open, ends) in open.iter_mut().zip(asked) {
            *open = !self.knows_none && !self.closed.iter().any(|port| *ends == self::ends(*port));
        }
        Ok(open)
    }
}

fn ends(port: u16) -> Ends {
    let own = SocketAddr::from(([127, 0, 0, 1], 80)).into();
    Ends::new(&own, &SocketAddr::from(([192, 0, 2, 1], port)).into(), [0; 8]).unwrap()
}

fn source(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

const CONNS: SourceLimits = SourceLimits { conns: Some(10), rate: None };

struct Scene {
    sources: Sources,
    world: World,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let start = Instant::now();
        Self { sources: Sources::new(start), world: World::default(), start }
    }

    fn comes(&mut self, ip: IpAddr, port: u16, limits: SourceLimits, ms: u64) -> Option<Reached> {
        let now = self.start + Duration::from_millis(ms);
        let world = &mut self.world;
        self.sources.comes(ip, Some(ends(port)), limits, now, &mut |asked| world.open(asked)).unwrap()
    }

    /// Connections noted, counted and as the sources have them.
    fn noted(&self) -> usize {
        let noted = self.sources.sets.iter().flatten().map(|source| source.noted.len()).sum();
        assert_eq!(self.sources.noted, noted);
        noted
    }
}

#[test]
fn a_source_has_as_many_as_it_may_and_a_place_that_is_free_is_found() {
    let mut scene = Scene::new();
    for port in 0..10 {
        assert_eq!(scene.comes(source(1), port, CONNS, 0), None);
    }
    assert_eq!(scene.world.looks, 0, "below the limit nothing is asked");
    assert_eq!(scene.comes(source(1), 10, CONNS, 0), Some(Reached::Conns));
    assert_eq!(scene.comes(source(2), 11, CONNS, 0), None);
    // Whichever ends.
    for (round, port) in [0, 4, 9, 10, 13].into_iter().enumerate() {
        scene.world.closed.insert(port);
        let next = 12 + u16::try_from(round).unwrap();
        let expected = if port == 10 { Some(Reached::Conns) } else { None };
        assert_eq!(scene.comes(source(1), next, CONNS, 200 * round as u64), expected, "{port}");
    }
    assert_eq!(scene.noted(), 11);
}

#[test]
fn what_churns_costs_few_looks_and_is_never_refused_below_its_limit() {
    let limits = SourceLimits { conns: Some(100), rate: None };
    for keeps in [0, 50, 99] {
        let mut scene = Scene::new();
        for port in 0..keeps {
            scene.comes(source(1), port, limits, 0);
        }
        for port in 1000..3000 {
            assert_eq!(scene.comes(source(1), port, limits, 0), None, "{keeps} {port}");
            scene.world.closed.insert(port);
            scene.world.closed.remove(&(port - 300));
        }
        assert!(scene.world.looks <= 2000 * 9, "{keeps}: {}", scene.world.looks);
        assert!(scene.noted() <= 100);
    }
}

#[test]
fn those_that_keep_all_and_try_on_are_looked_at_ten_times_a_second_and_not_all_at_once() {
    let mut scene = Scene::new();
    for number in 0..400 {
        for port in 0..10 {
            assert_eq!(scene.comes(source(number), port, CONNS, 0), None);
        }
    }
    let all_try = |ms: u64, scene: &mut Scene| {
        (0..400).for_each(|number| assert_eq!(scene.comes(source(number), 10, CONNS, ms), Some(Reached::Conns)));
    };
    // What each has paid for.
    (0..15).for_each(|_| all_try(200, &mut scene));
    scene.world.looks = 0;
    (20..120).for_each(|ms| all_try(10 * ms, &mut scene));
    assert!((15_000..25_000).contains(&scene.world.looks), "{}", scene.world.looks);
    // One alone is checked soon after it has a place.
    let mut scene = Scene::new();
    for port in 0..10 {
        scene.comes(source(1), port, CONNS, 0);
    }
    (0..1000).for_each(|_| assert_eq!(scene.comes(source(1), 10, CONNS, 0), Some(Reached::Conns)));
    assert!(scene.world.looks <= 100, "{}", scene.world.looks);
    scene.world.closed.insert(3);
    assert_eq!(scene.comes(source(1), 10, CONNS, 101), None);
}

#[test]
fn one_that_the_kernel_does_not_know_says_nothing_of_the_others() {
    let mut scene = Scene::new();
    for port in 0..10 {
        scene.comes(source(1), port, CONNS, 0);
    }
    scene.world.knows_none = true;
    let world = &mut scene.world;
    let answer = scene.sources.comes(source(1), Some(ends(10)), CONNS, scene.start, &mut |asked| world.open(asked));
    assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(scene.noted(), 10);
    scene.world.knows_none = false;
    assert_eq!(scene.comes(source(1), 11, CONNS, 0), Some(Reached::Conns));
}

/// Whichever are over, those and only those are taken out, and the others stay once each.
#[test]
fn those_that_are_over_are_taken_out_wherever_they_are() {
    let limits = SourceLimits { conns: Some(150), rate: None };
    for step in [2, 3, 7, 31, 149] {
        for first in [0, 1, 60, 141, 149] {
            let mut scene = Scene::new();
            (0..150).for_each(|port| assert_eq!(scene.comes(source(1), port, limits, 0), None));
            let over: HashSet<_> = (first..150).step_by(step).collect();
            scene.world.closed = over.clone();
            let mut came = 150;
            // The look at the others stops where there is little to find: each further one looks on.
            for round in 1..20 {
                while scene.comes(source(1), came, limits, 200 * round).is_none() {
                    came += 1;
                }
            }
            assert_eq!(usize::from(came - 150), over.len(), "{first} {step}");
            let noted = &scene.sources.sets.iter().flatten().next().unwrap().noted;
            let ports: Vec<_> = (0..came).filter(|port| noted.contains(&ends(*port))).collect();
            assert_eq!(ports, (0..came).filter(|port| !over.contains(port)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_source_is_an_ipv4_address_or_a_64_of_ipv6() {
    let limits = SourceLimits { conns: Some(2), rate: None };
    for (first, same, other) in [
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::ffff:0:0:2", "2001:db8:0:1::1"),
        ("::1", "::2", "0.0.0.1"),
    ] {
        let mut scene = Scene::new();
        let mut comes = |text: &str, port| scene.comes(text.parse().unwrap(), port, limits, 0);
        let seen = [comes(first, 1), comes(same, 2), comes(first, 3), comes(same, 4), comes(other, 5)];
        assert_eq!(seen, [None, None, Some(Reached::Conns), Some(Reached::Conns), None], "{first}");
    }
}

#[test]
fn connections_come_at_the_rate_and_as_many_at_once_as_in_a_second() {
    for rate in [1, 7, 50, 1000] {
        let limits = SourceLimits { conns: None, rate: Some(rate) };
        let mut scene = Scene::new();
        let mut in_ten_seconds = 0;
        for ms in 0..10_000 {
            let came = (0..if ms == 0 { 2000 } else { 3 }).filter(|_| scene.comes(source(1), 1, limits, ms).is_none());
            let came = u32::try_from(came.count()).unwrap();
            if ms == 0 {
                assert_eq!(came, rate, "at once");
            }
            in_ten_seconds += came;
        }
        assert!((rate * 11 - 2..=rate * 11).contains(&in_ten_seconds), "{rate}: {in_ten_seconds}");
        assert_eq!(scene.comes(source(2), 1, limits, 10_000), None);
        // After a pause it is as at first.
        let again = (0..2000).filter(|_| scene.comes(source(1), 1, limits, 60_000).is_none()).count();
        assert_eq!(again, rate as usize);
    }
}

#[test]
fn a_full_table_forgets_the_smallest_and_refuses_nobody_for_that() {
    let mut scene = Scene::new();
    scene.sources = Sources::bounded(64, MAX_NOTED, scene.start);
    let limits = SourceLimits { conns: Some(3), rate: None };
    let greedy = source(u32::MAX >> 8);
    for port in 0..3 {
        assert_eq!(scene.comes(greedy, port, limits, 0), None);
    }
    for number in 0..10_000 {
        assert_eq!(scene.comes(source(number), 1, limits, 1), None);
        assert_eq!(scene.comes(source(number), 2, limits, 1), None);
    }
    assert!(scene.sources.sets.iter().all(|set| set.len() == WAYS));
    assert!(scene.sources.sets.iter().all(|set| set.len() <= WAYS && set.capacity() <= 2 * WAYS));
    assert_eq!(scene.comes(greedy, 3, limits, 1), Some(Reached::Conns), "it is the greatest");
    // Nobody of it has come for long: it counts as small by then.
    for number in 0..10_000 {
        scene.comes(source(50_000 + number), 1, limits, 300_000);
    }
    assert_eq!(scene.comes(greedy, 4, limits, 300_000), None);
    scene.noted();
}

#[test]
fn connections_noted_are_bounded_for_all_sources_together() {
    let mut scene = Scene::new();
    scene.sources = Sources::bounded(64, 2000, scene.start);
    let limits = SourceLimits { conns: Some(100), rate: None };
    for number in 0..60 {
        for port in 0..100 {
            assert_eq!(scene.comes(source(number), port, limits, u64::from(number)), None);
        }
        assert!(scene.sources.noted <= 2000);
    }
    assert!(scene.noted() > 1500);
    assert_eq!(scene.comes(source(59), 100, limits, 60), Some(Reached::Conns), "the one that came last is known");
}

/// What docs/reference.md says that the sources of a service take, at most: 28 MB, with what the allocator adds.
#[test]
fn memory_is_bounded_and_given_back() {
    let table = SETS * (size_of::<Vec<Source>>() + WAYS * size_of::<Source>());
    let notes = MAX_NOTED * 3 / 2 * size_of::<Ends>();
    assert!(table + notes <= 27_000_000, "{table} {notes}");
    let limits = SourceLimits { conns: Some(100), rate: None };
    let mut scene = Scene::new();
    let mut port = 0;
    for (round, stay) in [0, 1, 7, 50, 99, 3].into_iter().enumerate() {
        let begin = port;
        while scene.comes(source(1), port, limits, 1000 * round as u64).is_none() {
            let noted = &scene.sources.sets.iter().flatten().next().unwrap().noted;
            assert!(noted.capacity() <= noted.len() * 3 / 2, "{} of {}", noted.len(), noted.capacity());
            port += 1;
        }
        scene.world.closed = (0..begin).chain(begin + stay..port).collect();
    }
    assert!(port > 300);
}

/// Hundreds of sources keep all that they may have and try on; those of another one end.
#[test]
fn nobody_goes_without_looks_because_others_want_more() {
    let limits = SourceLimits { conns: Some(100), rate: None };
    let mut scene = Scene::new();
    let one = source(1000);
    let come = |scene: &mut Scene, ip, ms| scene.comes(ip, 200, limits, ms);
    for ip in (0..400).map(source).chain([one]) {
        (0..100).for_each(|port| assert_eq!(scene.comes(ip, port, limits, 0), None));
    }
    // Until what each has paid for is spent.
    for ms in 0..12 {
        (0..400).map(source).chain([one]).for_each(|ip| assert_eq!(come(&mut scene, ip, ms), Some(Reached::Conns)));
    }
    let closed: HashSet<u16> = (0..50).collect();
    // The others come more often, and before it. All those of theirs stay open, and have the same numbers here.
    let free = (20..2000).step_by(10).find(|ms| {
        (0..400).for_each(|number| assert_eq!(come(&mut scene, source(number), *ms), Some(Reached::Conns)));
        scene.world.closed.clone_from(&closed);
        let is_free = ms % 200 == 0 && come(&mut scene, one, *ms).is_none();
        scene.world.closed.clear();
        is_free
    });
    assert!(free.is_some(), "{} looks", scene.world.looks);
}

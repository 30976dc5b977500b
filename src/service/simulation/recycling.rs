//! Recycling over days of simulated time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Simulation;
use crate::events::Registry;
use crate::launch::Launcher;
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;

const HOUR: Duration = Duration::from_secs(3600);

/// A service of 1 to 5 slots, all online.
fn online(seed: u64, launcher: &Launcher, max_age: Duration) -> Simulation {
    let poll = mio::Poll::new().unwrap();
    let mut simulation = Simulation::new(seed, launcher.again().unwrap(), Registry::new(poll.registry()).unwrap());
    simulation.world.kind = true;
    simulation.turn();
    simulation.settle();
    simulation.service.config.limits.max_age = Some(max_age);
    simulation.turn();
    simulation
}

fn run(simulation: &mut Simulation, time: Duration, mut look: impl FnMut(&Simulation)) {
    let end = simulation.now + time;
    while simulation.now < end {
        simulation.advance(end);
        look(simulation);
    }
}

#[test]
fn every_worker_is_replaced_within_its_age_and_those_of_a_start_at_different_times() {
    let launcher = Launcher::to_test().unwrap();
    for seed in 0..20 {
        let mut simulation = online(seed, &launcher, 6 * HOUR);
        let limits = simulation.service.config.limits;
        // A successor comes up within 1.5 s in this world.
        let slack = Duration::from_secs(2) + limits.min_uptime + limits.drain_timeout + limits.kill_timeout;
        let slack = slack * simulation.service.slots.len() as u32;
        let mut first: BTreeMap<usize, Instant> = BTreeMap::new();
        run(&mut simulation, 24 * HOUR, |simulation| {
            let surge = simulation.service.slots.iter().filter(|slot| !slot.retiring.is_empty()).count();
            assert!(surge <= limits.max_surge as usize, "seed {seed}: {surge} at once");
            for (at, slot) in simulation.service.slots.iter().enumerate() {
                if let Phase::Online { since } = slot.lifecycle.phase {
                    let age = simulation.now - since;
                    assert!(age <= 6 * HOUR + slack, "seed {seed}: slot {at} is {age:?} old");
                }
                if slot.generation == 2 {
                    first.entry(at).or_insert(simulation.now);
                }
            }
        });
        let slots = simulation.service.slots.len() as u64;
        let recycled = simulation.service.recycling.recycled;
        assert!((3 * slots..=5 * slots).contains(&recycled.age) && recycled.served == 0, "seed {seed}: {recycled:?}");
        let mut times: Vec<_> = first.into_values().collect();
        times.sort();
        assert_eq!(times.len() as u64, slots);
        // 36 minutes of jitter: the golden ratio leaves more than 5 between any two of five.
        for pair in times.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_secs(240), "seed {seed}: {:?} apart", pair[1] - pair[0]);
        }
        simulation.stop();
    }
}

#[test]
fn a_successor_that_fails_leaves_the_old_one_and_is_tried_again_ever_later() {
    let launcher = Launcher::to_test().unwrap();
    for seed in 0..10 {
        let mut simulation = online(seed, &launcher, HOUR);
        let before: Vec<_> = simulation.service.slots.iter().map(Slot::pid).collect();
        simulation.world.broken = true;
        run(&mut simulation, 2 * HOUR, |simulation| {
            let serves = |slot: &Slot| slot.workers().any(|worker| before.contains(&worker.receiver()));
            assert!(simulation.service.slots.iter().all(serves), "seed {seed}: a slot has lost its worker");
        });
        for slot in &simulation.service.slots {
            // 80 s apart in the end, with the back-off of this world.
            assert!((20..=80).contains(&slot.generation), "seed {seed}: {} attempts", slot.generation);
        }
        assert_eq!(simulation.service.recycling.recycled.age, 0);
        simulation.world.broken = false;
        let slots = simulation.service.slots.len() as u64;
        run(&mut simulation, Duration::from_secs(600), |_| {});
        assert_eq!(simulation.service.recycling.recycled.age, slots, "seed {seed}");
        simulation.stop();
    }
}

//! The shares of workers: their slots' weights and, beside warm ones, the slow start of a new one.

use std::time::{Duration, Instant};

use super::orders::WorkerId;
use super::policy::{Candidate, Turn};
use super::weighted::FULL;
use super::worker::Worker;

/// The share with which a worker begins, in percent of its weight.
const FIRST: u32 = 10;

#[derive(Default)]
pub(super) struct Shares {
    /// By slot; those beyond its end have weight 1.
    weights: Vec<u16>,
    /// Workers in their slow start.
    warming: Vec<WorkerId>,
}

impl Shares {
    pub fn weight(&self, slot: u32) -> u16 {
        self.weights.get(slot as usize).copied().unwrap_or(1)
    }

    /// Sets the weight of a slot; that is below the limit of `--instances`.
    pub fn set_weight(&mut self, slot: u32, weight: u16) {
        let at = slot as usize;
        if self.weights.len() <= at {
            self.weights.resize(at + 1, 1);
        }
        self.weights[at] = weight;
    }

    /// A worker is to join the others: it starts slowly beside one that is past its own slow start, or in it.
    pub fn joins(&mut self, id: WorkerId, others: &[Worker], slow_start: Duration, now: Instant) {
        let warm = |other: &Worker| other.age(now) >= slow_start || self.warming.contains(&other.id);
        if !slow_start.is_zero() && others.iter().any(warm) {
            self.warming.push(id);
        }
    }

    /// Whether shares change by the clock.
    pub fn any_warming(&self) -> bool {
        !self.warming.is_empty()
    }

    /// Sets the shares of all workers. `at` is the length of the slow start and now; without it, workers in their slow start
    /// keep their shares.
    pub fn set(
        &mut self,
        (workers, views): (&[Worker], &mut [Candidate]),
        turn: &mut Turn,
        at: Option<(Duration, Instant)>,
    ) {
        let over = |worker: &Worker| at.is_some_and(|(slow_start, now)| worker.age(now) >= slow_start);
        self.warming.retain(|id| workers.iter().any(|worker| worker.id == *id && !over(worker)));
        for (worker, view) in workers.iter().zip(views.iter_mut()) {
            let weight = u32::from(view.weight);
            if !self.warming.contains(&worker.id) {
                view.share = weight * FULL;
            } else if let Some((slow_start, now)) = at {
                view.share = weight * share(worker.age(now), slow_start);
            }
        }
        let mut shares = views.iter().map(|view| view.share).filter(|&share| share > 0);
        let first = shares.next();
        turn.uneven = shares.any(|share| Some(share) != first);
    }
}

/// The share of a worker in percent of its weight, as old as `age`.
pub fn share(age: Duration, slow_start: Duration) -> u32 {
    if age >= slow_start {
        return FULL;
    }
    let grown = u128::from(FULL - FIRST) * age.as_nanos() / slow_start.as_nanos().max(1);
    FIRST + u32::try_from(grown).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_evenly_from_a_tenth_to_all() {
        let whole = Duration::from_secs(15);
        let at = |tenths: u32| share(whole * tenths / 10, whole);
        assert_eq!([0, 1, 5, 9, 10, 30].map(at), [10, 19, 55, 91, 100, 100]);
        assert_eq!(share(Duration::ZERO, Duration::ZERO), FULL);
        assert_eq!(share(Duration::MAX - Duration::from_nanos(1), Duration::MAX), FULL - 1);
    }
}

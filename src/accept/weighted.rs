//! Choices among workers whose shares differ, by weight or because one has just started.

use std::cmp::Ordering;

use super::policy::Candidate;

/// The share of a worker of weight 1 that is warm.
pub const FULL: u32 = 100;

/// How far a worker may be above the least loaded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slack {
    /// No further than one connection.
    None,
    /// The square root of what its share of that load would be.
    Root,
}

/// Smooth weighted turns (nginx's algorithm) among the workers that have, for their shares, no more in hand than another
/// would have with one more. All that may get a connection are credited, so that one that was passed over for its load
/// is owed a turn, and no more than that.
pub fn pick(workers: &mut [Candidate], slack: Slack, load: impl Fn(&Candidate) -> u64) -> Option<usize> {
    let keeps_up = workers.iter().any(Candidate::keeps_up);
    let in_play = |worker: &&Candidate| worker.eligible() && (worker.keeps_up() || !keeps_up);
    let settled = workers.iter().filter(in_play).any(|worker| !worker.newcomer);
    let counts = |worker: &&Candidate| in_play(worker) && !(settled && worker.newcomer);
    let relative = |extra: u64| {
        let of = |worker: &Candidate| (load(worker) + extra, u64::from(worker.share));
        workers.iter().filter(counts).map(of).min_by(compare)
    };
    let (level, with_one_more) = (relative(0)?, relative(1)?);
    let total: i64 = workers.iter().filter(in_play).map(|worker| i64::from(worker.share)).sum();
    let mut best: Option<usize> = None;
    for at in 0..workers.len() {
        if !in_play(&&workers[at]) {
            continue;
        }
        let (has, share) = (load(&workers[at]), u64::from(workers[at].share));
        let fair = level.0 * share / level.1;
        let root = if slack == Slack::Root { fair.isqrt() } else { 0 };
        let allowed = compare(&(has.saturating_sub(root), share), &with_one_more) == Ordering::Less;
        let worker = &mut workers[at];
        worker.newcomer &= has < fair;
        // Smooth turns alone stay between -total and twice the total.
        let most = if allowed { 2 * total } else { total };
        worker.credit = (worker.credit + i64::from(worker.share)).clamp(-total, most);
        if allowed && best.is_none_or(|best| workers[at].credit > workers[best].credit) {
            best = Some(at);
        }
    }
    let best = best?;
    workers[best].credit -= total;
    Some(best)
}

/// Compares fractions. Denominators are not 0.
fn compare(a: &(u64, u64), b: &(u64, u64)) -> Ordering {
    (a.0 * b.1).cmp(&(b.0 * a.1))
}

/// Weighted rendezvous hashing: the worker with the least value gets a client. Slots of equal weight keep their order, so a
/// weight that changes moves only clients from or to its slot.
pub fn score(hash: u64, weight: u16) -> f64 {
    let unit = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -unit.ln() / f64::from(weight)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "weighted_tests.rs"]
mod tests;

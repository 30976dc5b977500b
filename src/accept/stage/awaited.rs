//! Which connections wait for which session, so that a report costs what it is about and not how many wait.

use std::collections::BTreeSet;

use super::Arrival;
use super::steps::Step;

/// Sessions that are waited for, by their digest, with the places of the connections.
#[derive(Debug, Default)]
pub(super) struct Awaited(BTreeSet<(u64, usize)>);

fn session(step: Step, arrival: &Arrival) -> Option<u64> {
    arrival.client.key.filter(|_| step == Step::Session)
}

impl Awaited {
    /// Notes the connection if it waits for a session in this step.
    pub fn insert(&mut self, step: Step, arrival: &Arrival, place: usize) {
        self.0.extend(session(step, arrival).map(|session| (session, place)));
    }

    pub fn remove(&mut self, step: Step, arrival: &Arrival, place: usize) {
        if let Some(session) = session(step, arrival) {
            self.0.remove(&(session, place));
        }
    }

    /// The places of those that wait for a session.
    pub fn places(&self, session: u64) -> Vec<usize> {
        self.0.range((session, 0)..=(session, usize::MAX)).map(|(_, place)| *place).collect()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

//! A bounded number of places for connections, of which the newest client always gets one. A probe is answered within a
//! moment of its connect, so a connection that has lasted longer can be closed.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::client::Stage;
use super::stream_places::MAX_STREAMS;

/// Streams take none of the places of probes.
const MAX_PLACES: usize = 256 + MAX_STREAMS;

/// Open connections by their peers' networks, the oldest first.
#[derive(Debug, Default)]
pub struct Places {
    taken: HashMap<IpAddr, VecDeque<Place>>,
    count: usize,
}

#[derive(Debug)]
struct Place {
    task: AbortHandle,
    stage: Arc<Stage>,
}

impl Places {
    /// Adds a connection: its peer, the task that serves it, and how far it is.
    pub fn take(&mut self, peer: IpAddr, task: AbortHandle, stage: Arc<Stage>) {
        if self.count >= MAX_PLACES {
            self.close_one();
        }
        self.taken.entry(network(peer)).or_default().push_back(Place { task, stage });
        self.count += 1;
    }

    /// Closes one connection: of the network with the most, the oldest whose request has not come, and no stream unless there
    /// is nothing else. Finished ones stay in the list until then, which costs nothing.
    pub fn close_one(&mut self) {
        let Some((&network, places)) = self.taken.iter_mut().max_by_key(|(_, places)| places.len()) else { return };
        let is_silent = |place: &Place| place.task.is_finished() || !place.stage.is_answering();
        let is_short = |place: &Place| !place.stage.is_streaming();
        let at = places.iter().position(is_silent).or_else(|| places.iter().position(is_short)).unwrap_or(0);
        if let Some(place) = places.remove(at) {
            place.task.abort();
            self.count -= 1;
        }
        if places.is_empty() {
            self.taken.remove(&network);
        }
    }
}

/// An IPv6 host can use all addresses of its /64.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::client::Client;
    use super::*;

    #[test]
    fn the_oldest_silent_connection_of_the_peer_with_most_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut places = Places::default();
        let mut add = |peer: &str, answering: bool| {
            let task = runtime.spawn(std::future::pending::<()>()).abort_handle();
            let client = Client::new(peer.parse().unwrap());
            if answering {
                client.begin_answer();
            }
            places.take(client.peer, task.clone(), client.stage());
            task
        };
        let lonely = add("10.0.0.1", false);
        let asked = add("fd00::1", true);
        let silent = add("fd00::2", false);
        let others: Vec<_> = (4..MAX_PLACES).map(|n| add(&format!("fd00::{n:x}"), false)).collect();
        let new = add("10.0.0.2", false);
        let settle = || runtime.block_on(tokio::task::yield_now());
        (0..50).for_each(|_| settle());
        assert!(!silent.is_finished(), "there was room");
        let newest = add("10.0.0.3", false);
        (0..50).for_each(|_| settle());
        assert!(silent.is_finished());
        let open = [lonely, asked, new, newest].into_iter().chain(others);
        assert!(open.into_iter().all(|task| !task.is_finished()), "one for one");
    }
}

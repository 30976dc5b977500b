//! Lookups of names while the loop goes on: getaddrinfo blocks, so each lookup has a thread of its own.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::{Poll, Token, Waker};

/// The shortest time between two lookups of a name.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

type Found = (usize, Vec<SocketAddr>);

pub struct Resolver {
    waker: Arc<Waker>,
    sender: Sender<Found>,
    finished: Receiver<Found>,
    /// End of the last lookup of each group's name; `None` while one is under way.
    lookups: HashMap<usize, Option<Instant>>,
}

impl Resolver {
    /// An event with `token` tells that a lookup has finished.
    pub fn new(poll: &Poll, token: Token) -> std::io::Result<Self> {
        let (sender, finished) = unbounded();
        let waker = Arc::new(Waker::new(poll.registry(), token)?);
        Ok(Self { waker, sender, finished, lookups: HashMap::new() })
    }

    /// Looks up a name, unless that was done a moment ago.
    pub fn start(&mut self, group: usize, host: String, port: u16) {
        match self.lookups.get(&group) {
            Some(None) => return,
            Some(Some(at)) if at.elapsed() < MIN_INTERVAL => return,
            _ => {}
        }
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        let lookup = move || {
            let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            let _ = sender.send((group, addresses));
            let _ = waker.wake();
        };
        // Without a thread this one is left out; the next failure of the upstream starts another.
        if thread::Builder::new().name("resolve".into()).spawn(lookup).is_ok() {
            self.lookups.insert(group, None);
        }
    }

    /// Calls `take` with each finished lookup.
    pub fn take_finished(&mut self, mut take: impl FnMut(usize, &[SocketAddr])) {
        while let Ok((group, addresses)) = self.finished.try_recv() {
            self.lookups.insert(group, Some(Instant::now()));
            take(group, &addresses);
        }
    }
}

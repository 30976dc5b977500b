//! Names resolved anew beside the loop: getaddrinfo blocks, so each lookup has a thread for as long as it takes.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::{Poll, Token, Waker};

/// A name is not asked for more often than this.
const PAUSE: Duration = Duration::from_secs(1);

type Answer = (usize, Vec<SocketAddr>);

/// Lookups under way and their answers.
pub struct Resolver {
    waker: Arc<Waker>,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    /// When each name was last asked for; `None` while the answer is out.
    asked: HashMap<usize, Option<Instant>>,
}

impl Resolver {
    /// Wakes `poll` with `token` when an answer is there.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new(poll: &Poll, token: Token) -> std::io::Result<Self> {
        let (sender, answers) = unbounded();
        let waker = Arc::new(Waker::new(poll.registry(), token)?);
        Ok(Self { waker, sender, answers, asked: HashMap::new() })
    }

    /// Asks for a name, unless it was asked for a moment ago.
    pub fn start(&mut self, group: usize, host: String, port: u16) {
        match self.asked.get(&group) {
            Some(None) => return,
            Some(Some(at)) if at.elapsed() < PAUSE => return,
            _ => {}
        }
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        let lookup = move || {
            let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
            let _ = sender.send((group, addresses));
            let _ = waker.wake();
        };
        // Without a thread there is no answer now; the next failure asks again.
        if thread::Builder::new().name("resolve".into()).spawn(lookup).is_ok() {
            self.asked.insert(group, None);
        }
    }

    /// Hands out the answers that came.
    pub fn finished(&mut self, mut take: impl FnMut(usize, &[SocketAddr])) {
        while let Ok((group, addresses)) = self.answers.try_recv() {
            self.asked.insert(group, Some(Instant::now()));
            take(group, &addresses);
        }
    }
}

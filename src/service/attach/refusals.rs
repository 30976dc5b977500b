//! Addresses that servers asked for and that could not be had: the log says once who has them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Handler;
use crate::listener;

/// Addresses that are remembered: a server may try one after the other.
const MAX: usize = 64;
/// At the end of the daemon, time for finding out who has them.
const FINISH: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<SocketAddr, JoinHandle<()>>);

impl Refusals {
    /// A thread looks: /proc is read process by process.
    fn explain(&mut self, service: &str, slot: usize, address: SocketAddr, errno: i32) {
        if self.0.len() >= MAX || self.0.contains_key(&address) {
            return;
        }
        let service = service.to_owned();
        let look = move || {
            if let Some(why) = listener::refused(address, &io::Error::from_raw_os_error(errno)) {
                warn!(%service, slot, "{why}");
            }
        };
        // Without a thread there is no such line; the server has its error.
        if let Ok(thread) = std::thread::Builder::new().name("who".to_owned()).spawn(look) {
            self.0.insert(address, thread);
        }
    }

    /// Before the daemon ends because of them: these lines are the reason.
    pub fn finish(&self) {
        let end = Instant::now() + FINISH;
        while self.0.values().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Handler<'_> {
    pub(super) fn explain_refusal(&mut self, at: usize, address: SocketAddr, error: &io::Error) {
        let Some(errno) = error.raw_os_error() else { return };
        let why = match errno {
            libc::EADDRINUSE => Some("address already in use"),
            libc::EACCES => Some("permission denied"),
            _ => None,
        };
        if let (Some(why), Some(server)) = (why, self.slots[at].server_mut()) {
            let shown = SocketAddr::new(address.ip().to_canonical(), address.port());
            server.refused = Some(format!("cannot listen on {shown}: {why}"));
        }
        self.state.refusals.explain(&self.config.name, at, address, errno);
    }
}

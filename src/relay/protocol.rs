//! What master and relay worker say to each other on the worker's channel: one JSON text per SEQPACKET message.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::addr::Upstream;
use crate::sys::scm;

/// The longest message; a longer one is refused by the receiver.
pub const MAX_BYTES: usize = 64 * 1024;

/// An upstream with the addresses that the master found for it at start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// As the user wrote it.
    pub upstream: Upstream,
    /// What it resolved to; empty for Unix sockets and for names that did not resolve.
    pub addresses: Vec<SocketAddr>,
}

/// Where a worker's connections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The master hands them over.
    Queues,
    /// The worker accepts them from the shared listeners (policy `none`) and takes what the master hands over.
    Listeners,
}

/// The first message to a worker. Its descriptors: the counters page, one queue per listener, with
/// [`Source::Listeners`] the listeners, and the table of upstreams if the service has one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// The slot; chooses the worker's own range of source addresses.
    pub slot: u32,
    /// How many listeners the service has.
    pub listeners: usize,
    /// Where connections come from.
    pub source: Source,
    /// Where they go.
    pub upstreams: Vec<Resolved>,
    /// Whether the workers of the service share a table of these upstreams.
    pub shared: bool,
    /// The most sockets in one hand-off message.
    pub batch: usize,
    /// The most connections that the worker's file limit allows, and the most pipes beside them.
    pub capacity: usize,
    /// See `capacity`.
    pub pipes: usize,
    /// Milliseconds to wait for an upstream to accept.
    pub connect_timeout_ms: u64,
    /// Milliseconds after which a connection without a byte is closed.
    pub idle_timeout_ms: u64,
}

/// Master to worker, after [`Setup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The listeners listen: begin to accept (policy `none`).
    Serve,
    /// Take no new connections beyond what is queued; finish and exit.
    Drain,
    /// Find out whether an upstream accepts: all are down, and no client may come to try one.
    Probe,
}

/// Worker to master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Set up: connections may come.
    Ready,
    /// An upstream stopped accepting connections.
    UpstreamDown {
        /// Its address.
        address: String,
        /// The errno's text.
        error: String,
    },
    /// It accepts again.
    UpstreamUp {
        /// Its address.
        address: String,
    },
    /// Near the file limit: no connections are taken until some end (`true`), or again (`false`).
    Full(bool),
}

/// Sends one message; never blocks.
///
/// # Errors
/// As sendmsg(2).
pub fn send<T: Serialize>(channel: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    scm::send_fds(channel, &text, fds.iter().copied())
}

/// Receives one message and its descriptors; `None` at end of file.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for what is not a message of type `T`.
pub fn receive<T: DeserializeOwned>(channel: BorrowedFd<'_>, fds: &mut Vec<OwnedFd>) -> io::Result<Option<T>> {
    let mut text = vec![0; MAX_BYTES];
    let received = scm::recv_fds(channel, &mut text, fds)?;
    if received.len == 0 {
        return Ok(None);
    }
    if received.truncated {
        return Err(io::Error::other("descriptors of a message were dropped (file limit)"));
    }
    Ok(Some(serde_json::from_slice(&text[..received.len])?))
}

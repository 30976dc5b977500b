//! Messages between master and relay worker on the worker's channel: one JSON text per SEQPACKET message.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::addr::Upstream;
use crate::proxy_protocol::sending::Version;
use crate::sys::scm;

/// The longest message; longer ones are refused by the receiver.
pub const MAX_BYTES: usize = 64 * 1024;

/// An upstream with the addresses found by the master when the worker started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// As configured.
    pub upstream: Upstream,
    /// Empty for Unix sockets and for names that did not resolve.
    pub addresses: Vec<SocketAddr>,
    /// As configured, 0 to 256. The table may have another one.
    pub weight: u16,
    /// Used only while no upstream that is none is up.
    pub backup: bool,
}

/// Where a worker's connections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The master hands them over.
    Queues,
    /// The worker accepts from the shared listeners (policy `none`); the master hands over only what it held before.
    Listeners,
}

/// The first message to a worker. Its descriptors: the counters page, one queue per listener, with
/// [`Source::Listeners`] the listeners, the doorbell if the worker has one, the access log's memory file and
/// its doorbell, if connections are logged, and the table of upstreams if the service has
/// one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Selects the worker's own range of source addresses.
    pub slot: u32,
    /// Number of the service's listeners.
    pub listeners: usize,
    pub source: Source,
    pub upstreams: Vec<Resolved>,
    /// Whether the service's workers share a table of these upstreams.
    pub shared: bool,
    /// Whether it rings a doorbell while clients wait for room in it.
    pub bell: bool,
    /// Whether it records its connections for the access log.
    pub log: bool,
    /// Whether hand-offs carry the addresses that PROXY headers named.
    pub translates: bool,
    /// Whether servers get a PROXY header.
    pub send_proxy: Option<Version>,
    /// The most sockets in one hand-off message.
    pub batch: usize,
    /// The most connections and pipes that the worker's file limit allows.
    pub capacity: usize,
    pub pipes: usize,
    /// Milliseconds to wait for an upstream to accept.
    pub connect_timeout_ms: u64,
    /// Milliseconds after which a connection without a byte is closed.
    pub idle_timeout_ms: u64,
    /// Whether its idle HTTP/1 connections may be asked for by [`ToWorker::GiveBack`].
    pub moves: bool,
    /// The window over which the connections that are left end once it drains; `None`: they may stay.
    pub drain_spread_ms: Option<u64>,
}

/// Master to worker, after [`Setup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Begin to accept: the listeners listen now (policy `none`).
    Serve,
    /// Take no new connections beyond what is queued; finish and exit.
    Drain,
    /// Give back connections that lie between two HTTP/1 requests, now and as soon as they do; or do so no more.
    GiveBack(bool),
    /// Try to connect to an upstream: all are down, and no client may come to try one.
    Probe,
}

/// Worker to master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Setup is done.
    Ready,
    /// An upstream stopped accepting connections.
    UpstreamDown { address: String, error: String },
    /// It accepts again.
    UpstreamUp { address: String },
    /// Whether the worker is near its file limit and takes no connections.
    Full(bool),
    /// Connections for other workers, as many as the message has descriptors.
    Moved(Vec<Given>),
}

/// A connection that goes on with another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Number of the listener that its client came to, as in [`Setup`].
    pub listener: usize,
    /// Client and destination, where a PROXY header named them.
    pub named: Option<(SocketAddr, SocketAddr)>,
}

/// Sends one message; never blocks.
pub fn send<T: Serialize>(channel: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    scm::send_fds(channel, &text, fds.iter().copied())
}

/// Receives one message and its descriptors; `None` at end of file.
///
/// # Errors
/// `WouldBlock` when there is no message; `InvalidData` when it is not a `T`.
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

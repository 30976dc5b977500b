//! What the tasks of one connection know of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::sys::clock::monotonic_ns;

/// The longest life of a connection; normally it ends with its answer.
const MAX_LIFETIME: Duration = Duration::from_secs(10);
/// A page that has taken nothing for this long loses its stream.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// A connection's client.
#[derive(Debug, Clone)]
pub struct Client {
    pub peer: IpAddr,
    stage: Arc<Stage>,
}

/// How far a connection is.
#[derive(Debug, Default)]
pub struct Stage {
    /// Its request has come.
    answering: AtomicBool,
    /// It is a stream, which has limits of its own.
    streaming: AtomicBool,
    /// When the stream last took something (CLOCK_MONOTONIC).
    read_at: AtomicU64,
}

impl Stage {
    pub fn is_answering(&self) -> bool {
        self.answering.load(Relaxed)
    }

    pub fn is_streaming(&self) -> bool {
        self.streaming.load(Relaxed)
    }
}

impl Client {
    pub fn new(peer: IpAddr) -> Self {
        Self { peer, stage: Arc::default() }
    }

    pub fn stage(&self) -> Arc<Stage> {
        self.stage.clone()
    }

    pub fn begin_answer(&self) {
        self.stage.answering.store(true, Relaxed);
    }

    pub fn begin_stream(&self) {
        self.reads();
        self.stage.streaming.store(true, Relaxed);
    }

    /// The stream has room for more.
    pub fn reads(&self) {
        self.stage.read_at.store(monotonic_ns(), Relaxed);
    }

    /// Returns when the connection is to be closed.
    pub async fn end(&self) {
        tokio::time::sleep(MAX_LIFETIME).await;
        while self.stage.is_streaming() {
            let silence = Duration::from_nanos(monotonic_ns().saturating_sub(self.stage.read_at.load(Relaxed)));
            let Some(left) = MAX_SILENCE.checked_sub(silence).filter(|left| !left.is_zero()) else { return };
            tokio::time::sleep(left).await;
        }
    }
}

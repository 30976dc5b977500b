//! What is read of servers, in a daemon's record.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::super::files::Files;
use super::super::line::{Origin, Stream};
use super::{Order, Reader, Servers, Source};
use crate::record::{Fd, Found};

/// A server's stream in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct SourceRecord {
    pub service: String,
    slot: Option<u32>,
    pid: u32,
    stream: Stream,
    pipe: Fd,
    /// The beginning of a line.
    part: Vec<u8>,
}

impl Servers {
    /// Goes on reading what the program before has read.
    ///
    /// # Errors
    /// When the pipe is not there.
    pub fn adopt(&self, record: SourceRecord, files: Arc<Files>, found: &mut Found) -> io::Result<()> {
        let SourceRecord { service, slot, pid, stream, pipe, part } = record;
        let origin = Origin { service: service.into(), slot, pid, files };
        self.send(Order::Add(origin, stream, found.take(pipe)?.into(), part));
        Ok(())
    }

    /// Writes what there is, tells what is read, and stands still until told to go on.
    /// `None`: not within `limit`.
    pub fn stand_still(&self, go_on: Receiver<()>, limit: Duration) -> Option<Vec<SourceRecord>> {
        let (told, telling) = bounded(1);
        self.send(Order::StandStill(told, go_on));
        telling.recv_timeout(limit).ok()
    }
}

impl Source {
    pub(super) fn record(&self) -> SourceRecord {
        let Self { origin: Origin { service, slot, pid, files: _ }, stream, pipe, part } = self;
        SourceRecord {
            service: service.to_string(),
            slot: *slot,
            pid: *pid,
            stream: *stream,
            pipe: Fd::of(pipe),
            part: part.clone(),
        }
    }
}

impl SourceRecord {
    pub fn pipe(&self) -> Fd {
        self.pipe
    }
}

impl Reader {
    pub(super) fn stand_still(&mut self, told: &Sender<Vec<SourceRecord>>, go_on: &Receiver<()>) {
        self.read_all(|_| true);
        self.write();
        self.sinks.finish_or_give_up();
        if told.try_send(self.sources.values().map(Source::record).collect()).is_ok() {
            let _ = go_on.recv();
        }
    }
}

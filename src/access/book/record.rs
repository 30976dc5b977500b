//! A worker's connections in a daemon's record.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mio::Registry;
use serde::{Deserialize, Serialize};

use super::super::settings::AccessFormat;
use super::{Book, Subject};
use crate::abi::access::{Record, WORDS};
use crate::handoff::access::AccessReader;
use crate::output::files::Files;
use crate::output::sinks::To;
use crate::record::{Fd, Found};

#[derive(Debug, Serialize, Deserialize)]
pub struct BookRecord {
    pub number: u64,
    pub service: String,
    slot: u32,
    generation: u64,
    json: bool,
    /// `None`: stdout.
    to: Option<PathBuf>,
    relays: bool,
    /// Lines lost of its service that the log has said.
    said: u64,
    pub file: Fd,
    place: (u64, u64),
    since: u64,
    listeners: BTreeMap<usize, String>,
    upstreams: Vec<String>,
    gone: bool,
    /// The open connections as their records were.
    open: Vec<[u64; WORDS]>,
}

impl Book {
    pub fn record(&self, number: u64, said: u64) -> BookRecord {
        let Self {
            subject: Subject { service, share: _, slot, generation, format, to, relays, lost: _ },
            reader,
            file,
            since,
            listeners,
            upstreams,
            open,
            places: _,
            processes: _,
            gone,
            bytes: _,
        } = self;
        BookRecord {
            number,
            service: service.to_string(),
            slot: *slot,
            generation: *generation,
            json: *format == AccessFormat::Json,
            to: match to {
                To::Stdout => None,
                To::File(path, _) => Some(path.clone()),
            },
            relays: *relays,
            said,
            file: Fd::of(file),
            place: reader.place(),
            since: *since,
            listeners: listeners.clone(),
            upstreams: upstreams.clone(),
            gone: gone.is_some(),
            open: open.values().map(|received| Record::Received(*received).to_words()).collect(),
        }
    }

    /// The book, and how many lost lines of its service the log has said. `lost` counts these.
    ///
    /// # Errors
    /// When its memory file is not there.
    pub fn adopt(
        record: BookRecord,
        files: Arc<Files>,
        lost: Arc<AtomicU64>,
        found: &mut Found,
    ) -> io::Result<(Self, u64)> {
        let BookRecord {
            number: _,
            service,
            slot,
            generation,
            json,
            to,
            relays,
            said,
            file,
            place,
            since,
            listeners,
            upstreams,
            gone,
            open,
        } = record;
        let subject = Subject {
            share: Subject::share(&service),
            service: service.into(),
            slot,
            generation,
            format: if json { AccessFormat::Json } else { AccessFormat::Text },
            to: to.map_or(To::Stdout, |path| To::File(path, files)),
            relays,
            lost,
        };
        let file = found.take(file)?;
        let reader = AccessReader::go_on(file.as_fd(), place)?;
        let mut book = Self::new(subject, reader, file.into(), since);
        (book.listeners, book.upstreams) = (listeners, upstreams);
        if gone {
            book.end();
        }
        let open = open.iter().filter_map(|words| match Record::of_words(words) {
            Some(Record::Received(received)) => Some((received.id, received)),
            _ => None,
        });
        book.open = open.collect::<HashMap<_, _>>();
        book.places = book.open.values().map(|received| ((received.pid, received.fd), received.id)).collect();
        Ok((book, said))
    }

    /// Watches the processes of the connections that it was adopted with.
    pub fn go_on(&mut self, registry: &Registry) {
        let pids: Vec<u32> = self.open.values().map(|received| received.pid).collect();
        pids.into_iter().for_each(|pid| self.watch(pid, registry));
    }
}

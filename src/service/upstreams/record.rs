//! Upstreams in a daemon's record.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Name, Upstreams};
use crate::config::upstream::WeightedUpstream;
use crate::handoff::upstreams::{UpstreamCounts, UpstreamTable};
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct UpstreamsRecord {
    weights: Vec<u16>,
    drained: Vec<bool>,
    table: Fd,
    past: Vec<(Name, UpstreamCounts, u64)>,
    down: Vec<bool>,
    prober: usize,
}

impl Upstreams {
    /// `workers`: those that go on counting; what others have counted is over.
    pub fn record(&self, workers: &[u32], kept: &mut Kept) -> UpstreamsRecord {
        let Self {
            names: _,
            configured: _,
            weights,
            drained,
            table: _,
            fd,
            workers: counting,
            past,
            down,
            probe: _,
            prober,
        } = self;
        let mut past = past.clone();
        for gone in counting.iter().filter(|counting| !workers.contains(&counting.pid)) {
            for (at, name) in gone.names.iter().enumerate() {
                let counts = UpstreamCounts { open: 0, ..gone.page.upstream(at) };
                match past.iter_mut().find(|(known, ..)| known == name) {
                    Some((_, sum, _)) => *sum += counts,
                    None => past.push((name.clone(), counts, 0)),
                }
            }
        }
        UpstreamsRecord {
            weights: weights.clone(),
            drained: drained.clone(),
            table: kept.keep(fd),
            past,
            down: down.clone(),
            prober: *prober,
        }
    }

    /// # Errors
    /// When the table is not there, or the upstreams are others.
    pub fn adopt(record: UpstreamsRecord, configured: &[WeightedUpstream], found: &mut Found) -> io::Result<Self> {
        let UpstreamsRecord { weights, drained, table, past, down, prober } = record;
        if [weights.len(), drained.len(), down.len()] != [configured.len(); 3] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the upstreams are others"));
        }
        let fd = found.take(table)?;
        let new = Self::new(configured, UpstreamTable::attach(fd.as_fd())?, fd);
        // All may be down: then the next look asks for an attempt.
        Ok(Self { weights, drained, past, down, prober, probe: Some(Instant::now()), ..new })
    }
}

//! What is known of servers' requests, in a daemon's record.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::State;
use super::node_sockets::NodeSockets;
use super::unused::Unused;
use crate::accept::orders::{ListenerId, ServiceId, WorkerId};
use crate::direct::attach::Secret;
use crate::listener::{Listener, ListenerRecord};
use crate::record::{Fd, Found, Kept, Moment};

#[derive(Debug, Serialize, Deserialize)]
pub struct StateRecord {
    /// The listener, the slot and generation of the worker, until when.
    unused: Vec<(ListenerId, u32, u64, Moment)>,
    watch: Vec<(u32, Secret)>,
    all_started: bool,
    hinted: bool,
    sessions_hinted: bool,
    listeners: BTreeMap<String, ListenerId>,
    sockets: BTreeMap<String, ListenerRecord>,
    datagrams: BTreeMap<String, Fd>,
    data: BTreeMap<String, Value>,
}

impl State {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, kept: &mut Kept) -> Result<StateRecord, String> {
        let Self {
            // Processes that bind at this moment have a second for it; then another one may.
            binders: _,
            unused,
            watch,
            crowded: _,
            all_started,
            hinted,
            sessions_hinted,
            late,
            // Threads that look who has a port, for the log.
            refusals: _,
            node: NodeSockets { listeners, sockets, datagrams, data, later },
        } = self;
        if !later.is_empty() {
            return Err("a worker waits for an address".to_owned());
        }
        if late.any() {
            return Err("connections of a worker that has been replaced may still be on their way".to_owned());
        }
        let of = |Unused { id, worker, until }: &Unused| (*id, worker.slot, worker.generation, (*until).into());
        Ok(StateRecord {
            unused: unused.iter().map(of).collect(),
            watch: watch.clone(),
            all_started: *all_started,
            hinted: *hinted,
            sessions_hinted: *sessions_hinted,
            listeners: listeners.clone(),
            sockets: sockets.iter().map(|(key, listener)| (key.clone(), listener.record(kept))).collect(),
            datagrams: datagrams.iter().map(|(key, socket)| (key.clone(), kept.keep(socket))).collect(),
            data: data.clone(),
        })
    }

    /// # Errors
    /// When a socket is not there.
    pub fn adopt(record: StateRecord, service: ServiceId, found: &mut Found) -> io::Result<Self> {
        let StateRecord { unused, watch, all_started, hinted, sessions_hinted, listeners, sockets, datagrams, data } =
            record;
        let unused = unused.into_iter().map(|(id, slot, generation, until)| Unused {
            id,
            worker: WorkerId { service, slot, generation },
            until: Instant::from(until),
        });
        let sockets = sockets.into_iter().map(|(key, one)| Ok((key, Listener::adopt_recorded(one, found)?)));
        let sockets = sockets.collect::<io::Result<_>>()?;
        let datagrams = datagrams.into_iter().map(|(key, fd)| Ok((key, Arc::new(found.take(fd)?))));
        let node = NodeSockets {
            listeners,
            sockets,
            datagrams: datagrams.collect::<io::Result<_>>()?,
            data,
            later: Vec::new(),
        };
        Ok(Self { unused: unused.collect(), watch, all_started, hinted, sessions_hinted, node, ..Self::default() })
    }
}

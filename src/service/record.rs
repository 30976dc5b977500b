//! A service in a daemon's record.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::attach::{self, StateRecord};
use super::listeners::{Listeners, ListenersRecord};
use super::operations::{Operations, OperationsRecord};
use super::recycling::{Recycled, Recycling};
use super::rules::{cap, rules};
use super::shared::{SharedRecord, SharedServer};
use super::upstreams::{Upstreams, UpstreamsRecord};
use super::{MemoryWatch, Service};
use crate::accept::orders::{Order, ServiceId, ServiceStats, WorkerId};
use crate::accept::record::ServiceAccepts;
use crate::config::ServiceConfig;
use crate::config::merge::Settings;
use crate::record::{Found, Kept};
use crate::relay::intake;
use crate::relay::protocol::Resolved;
use crate::slot::Slot;
use crate::slot::record::SlotRecord;
use crate::worker::children::Owner;
use crate::worker::record::Libraries;
use crate::worker::{Context, Delivery};

#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub name: String,
    /// The delivery.
    pub via: String,
    instances: u32,
    listeners: ListenersRecord,
    slots: Vec<SlotRecord>,
    shared: Option<SharedRecord>,
    stats: Vec<u64>,
    operations: OperationsRecord,
    recycled: (u64, u64),
    seed: u64,
    attach: StateRecord,
    resolved: Vec<Resolved>,
    upstreams: Option<UpstreamsRecord>,
    /// What the accept thread has of it.
    accepts: Option<ServiceAccepts>,
}

impl ServiceRecord {
    /// Whether it had listeners.
    pub fn listens(&self) -> bool {
        self.listeners.any()
    }

    /// Whether some of these were passed to the daemon.
    pub fn has_passed(&self) -> bool {
        self.listeners.any_passed()
    }
}

impl ServiceRecord {
    /// That of a service, and its configuration as it was given.
    ///
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn of(
        service: &Service,
        accepts: Option<ServiceAccepts>,
        libraries: &mut Libraries,
        kept: &mut Kept,
    ) -> Result<(Self, Settings), String> {
        let Service {
            id: _,
            config,
            settings,
            removed,
            delivery: _,
            listeners,
            slots,
            shared,
            stats,
            operations,
            due: _,
            memory: _,
            recycling,
            attach,
            stop,
            handoff_done,
            cap: _,
            capacity: _,
            pipes: _,
            resolved,
            upstreams,
        } = service;
        if stop.is_some() || *handoff_done || *removed {
            return Err(format!("{} is being stopped", config.name));
        }
        let of = |why: String| format!("{}: {why}", config.name);
        let slot = |(at, slot): (usize, &Slot)| {
            slot.record(libraries, kept).map_err(|why| format!("{}/{at}: {why}", config.name))
        };
        let slots = slots.iter().enumerate().map(slot).collect::<Result<Vec<_>, _>>()?;
        let Recycled { age, served } = recycling.recycled;
        let pids: Vec<u32> = service.slots.iter().flat_map(Slot::relays).map(|relay| relay.pid).collect();
        let record = Self {
            name: config.name.clone(),
            via: config.backend.via().to_owned(),
            instances: config.instances,
            listeners: listeners.record(kept),
            slots,
            shared: shared.as_ref().map(|shared| shared.record(kept)).transpose().map_err(of)?,
            stats: counters(stats).map(|counter| counter.load(Relaxed)).collect(),
            operations: operations.record().map_err(of)?,
            recycled: (age, served),
            seed: recycling.seed(),
            attach: attach.record(kept).map_err(of)?,
            resolved: resolved.clone(),
            upstreams: upstreams.as_ref().map(|upstreams| upstreams.record(&pids, kept)),
            accepts,
        };
        Ok((record, settings.clone()))
    }

    /// Takes a service over, with its configuration, and gives the accept thread what it had.
    ///
    /// # Errors
    /// When a descriptor is not there.
    pub fn adopt(
        self,
        id: ServiceId,
        (mut config, settings): (ServiceConfig, Settings),
        delivery: Delivery,
        libraries: &Libraries,
        found: &mut Found,
        (context, orders): (&Context, &mut Vec<Order>),
    ) -> io::Result<Service> {
        let Self {
            name,
            via: _,
            instances,
            listeners,
            slots,
            shared,
            stats: counted,
            operations,
            recycled: (age, served),
            seed,
            attach,
            resolved,
            upstreams,
            accepts,
        } = self;
        config.instances = instances;
        let listeners = Listeners::adopt(id, &name, listeners, found)?;
        let (capacity, pipes) = intake::capacity(context.nofile, listeners.all().len());
        let cap = cap(&config, capacity);
        let stats = Arc::new(ServiceStats::default());
        counters(&stats).zip(counted).for_each(|(counter, count)| counter.store(count, Relaxed));
        orders.push(Order::Service { rules: rules(&config, cap, context.nofile), stats: stats.clone() });
        let mut all = Vec::new();
        let mut queues = Vec::new();
        for (at, slot) in slots.into_iter().enumerate() {
            let owner = Owner { service: id, slot: Some(at as u32) };
            let (slot, own) = Slot::adopt(slot, owner, libraries, found, context)?;
            all.push(slot);
            queues.push(own);
        }
        let mut recycling = Recycling::new(seed);
        recycling.recycled = Recycled { age, served };
        let owner = Owner { service: id, slot: None };
        let shared = shared.map(|shared| SharedServer::adopt(shared, owner, found, context)).transpose()?;
        let mut upstreams = match (upstreams, &config.backend) {
            (Some(record), crate::config::Backend::Upstreams(configured, _)) => {
                Some(Upstreams::adopt(record, configured, found)?)
            }
            _ => None,
        };
        for relay in all.iter().flat_map(Slot::relays) {
            if let Some(upstreams) = &mut upstreams {
                upstreams.joined(relay.pid, relay.page.clone());
            }
        }
        let attach = attach::State::adopt(attach, id, found)?;
        for (at, (slot, queues)) in all.iter_mut().zip(queues).enumerate() {
            let weight = if slot.drain { 0 } else { slot.weight };
            orders.push(Order::Weight { service: id, slot: at as u32, weight });
            orders.extend(slot.give(queues));
            let worker = WorkerId { service: id, slot: at as u32, generation: slot.generation };
            if let Some(limit) = recycling.max_served(&config, worker).filter(|_| slot.is_online()) {
                orders.push(Order::CountServed { worker, limit });
            }
        }
        if let Some(accepts) = accepts {
            let accepts = Box::new(accepts.found(found)?);
            let leaving = all.iter().flat_map(Slot::leaving).collect();
            orders.push(Order::TakeOver { service: id, accepts, listeners: listeners.open(), leaving });
        }
        Ok(Service {
            id,
            config,
            settings,
            removed: false,
            delivery,
            listeners,
            slots: all,
            shared,
            stats,
            operations: Operations::adopt(operations),
            due: None,
            memory: MemoryWatch::default(),
            recycling,
            attach,
            stop: None,
            handoff_done: false,
            cap,
            capacity,
            pipes,
            resolved,
            upstreams,
        })
    }
}

/// What goes on being counted; gauges begin anew.
fn counters(stats: &ServiceStats) -> impl Iterator<Item = &AtomicU64> {
    let ServiceStats { held: _, oldest: _, waits, shed, accepted, paced, limit: _, stage } = stats;
    waits.counters().chain(shed.counters()).chain([accepted, paced]).chain(stage.counters())
}

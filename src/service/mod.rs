//! One service at run time: its slots' processes, started, made ready, and brought online.

pub mod attach;
pub mod awaited;
pub mod awaiting;
pub mod draining;
pub mod ending;
mod futile;
mod listeners;
mod memory;
pub mod operations;
pub mod pausing;
mod reconfigure;
pub mod record;
pub mod recycling;
pub mod reload;
mod reports;
pub mod rules;
pub mod shared;
mod shutdown;
mod silence;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod simulation;
mod starting;
pub mod step;
pub mod upstreams;
pub mod weights;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use self::listeners::Listeners;
use self::memory::MemoryWatch;
use self::operations::{Effect, Networks, News, Operation, Operations, Ticket, Workers};
use self::pausing::Paused;
use self::recycling::{Recycled, Recycling};
use self::rules::{cap, resolved, rules};
use self::shared::SharedServer;
use self::shutdown::Stop;
use self::upstreams::Upstreams;
use crate::accept::orders::{Order, ServiceId, ServiceStats};
use crate::config::merge::Settings;
use crate::config::{Backend, ServiceConfig};
use crate::listener::Listener;
use crate::relay::intake;
use crate::relay::protocol::{FromWorker, Resolved};
use crate::slot::Slot;
use crate::worker::relay::Readiness;
use crate::worker::{Context, Delivery};

/// A service.
#[derive(Debug)]
pub struct Service {
    id: ServiceId,
    config: ServiceConfig,
    /// The same as it was given, and where.
    settings: Settings,
    /// It is no longer in the configuration.
    removed: bool,
    /// Of workers that are started from now on.
    delivery: Delivery,
    listeners: Listeners,
    slots: Vec<Slot>,
    /// The server that all slots share.
    shared: Option<SharedServer>,
    /// Written by the accept thread.
    stats: Arc<ServiceStats>,
    operations: Operations,
    /// When [`Service::step`] has something to do by the clock alone.
    due: Option<Instant>,
    memory: MemoryWatch,
    recycling: Recycling,
    attach: attach::State,
    stop: Option<Stop>,
    /// The accept thread has handed over all that it will.
    handoff_done: bool,
    /// How many connections a relay worker may have pending, in all, and how many pipes.
    cap: usize,
    capacity: usize,
    pipes: usize,
    resolved: Vec<Resolved>,
    upstreams: Option<Upstreams>,
}

/// What `ls` and metrics show of a service.
#[derive(Debug)]
pub struct ServiceView<'a> {
    pub config: &'a ServiceConfig,
    pub listeners: &'a Listeners,
    pub slots: &'a [Slot],
    pub shared: Option<&'a SharedServer>,
    pub stats: &'a ServiceStats,
    pub upstreams: Option<&'a Upstreams>,
    pub reloads: u64,
    pub recycled: Recycled,
    pub reloading: bool,
    /// By `roundsman stop`, or about to be.
    pub stopped: bool,
    /// No longer in the configuration.
    pub removed: bool,
}

impl Service {
    /// Announces the service to the accept thread and resolves its upstreams.
    pub fn new(
        id: ServiceId,
        (config, settings): (ServiceConfig, Settings),
        listeners: Vec<Listener>,
        delivery: Delivery,
        context: &Context,
        now: Instant,
    ) -> Self {
        let slots = (0..config.instances).map(|_| Slot::new(now)).collect();
        let resolved = resolved(&config);
        let upstreams = Upstreams::of(&config.backend);
        let shared = match &config.backend {
            Backend::Upstreams(_, Some(_)) => Some(SharedServer::new(now)),
            _ => None,
        };
        let (capacity, pipes) = intake::capacity(context.nofile, listeners.len());
        let stats = Arc::new(ServiceStats::default());
        let cap = cap(&config, capacity);
        let listeners = Listeners::new(id, &config.name, listeners);
        context.orders.send(Order::Service { rules: rules(&config, cap, context.nofile), stats: stats.clone() });
        let mut service = Self {
            id,
            config,
            settings,
            removed: false,
            delivery,
            listeners,
            slots,
            shared,
            stats,
            operations: Operations::default(),
            due: None,
            memory: MemoryWatch::default(),
            recycling: Recycling::new(recycling::seed()),
            attach: attach::State::default(),
            stop: None,
            handoff_done: false,
            cap,
            capacity,
            pipes,
            resolved,
            upstreams,
        };
        if !service.config.after.is_empty() {
            awaiting::Others::NotYet.settle(&mut service, now);
        }
        service
    }

    pub fn id(&self) -> ServiceId {
        self.id
    }

    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn view(&self) -> ServiceView<'_> {
        ServiceView {
            config: &self.config,
            listeners: &self.listeners,
            slots: &self.slots,
            shared: self.shared.as_ref(),
            stats: &self.stats,
            upstreams: self.upstreams.as_ref(),
            reloads: self.operations.reloads,
            recycled: self.recycling.recycled,
            reloading: self.operations.is_reloading(),
            stopped: matches!(self.operations.paused, Paused::Stopping | Paused::Yes),
            removed: self.removed,
        }
    }

    /// What became of what was asked for, oldest first.
    pub fn news(&mut self) -> &mut VecDeque<News> {
        &mut self.operations.news
    }

    /// Begins what somebody asks for.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn begin(&mut self, operation: Operation, context: &Context, now: Instant) -> Result<Ticket, String> {
        let rereads = operation == Operation::Reload(Networks::ToRead);
        let reread = if rereads { rules::reread(&self.config.clients)? } else { None };
        let ticket = self.operate(context, now, |operations, workers| operations.begin(operation, workers))?;
        if let Some(clients) = reread {
            self.config.clients = clients;
            context.orders.send(Order::Rules(self.id, rules::rules(&self.config, self.cap, context.nofile)));
        }
        Ok(ticket)
    }

    /// Whether a reload, and a new configuration, may begin.
    ///
    /// # Errors
    /// Why not.
    pub fn may_reload(&self, wanted: &ServiceConfig) -> Result<(), String> {
        let free = self.operations.is_free(self.stop.is_some());
        free.and_then(|()| reconfigure::countable(&self.config, wanted, &self.slots))
            .map_err(|why| format!("{}: {why}", self.config.name))
    }

    /// Lets operations go on, and does to the listeners what follows.
    fn operate<T>(
        &mut self,
        context: &Context,
        now: Instant,
        act: impl FnOnce(&mut Operations, &mut Workers) -> T,
    ) -> T {
        let mut workers = Workers {
            id: self.id,
            config: &mut self.config,
            slots: &mut self.slots,
            shared: &mut self.shared,
            upstreams: &mut self.upstreams,
            stopping: self.stop.is_some(),
            removed: self.removed,
            context,
            now,
        };
        let done = act(&mut self.operations, &mut workers);
        for effect in std::mem::take(&mut self.operations.effects) {
            match effect {
                Effect::CloseLeaving => self.listeners.close_leaving(self.config.policy, context),
                Effect::AllClosed => self.listeners.stopped(),
            }
        }
        done
    }

    /// It is no longer in the configuration, and ends.
    pub fn remove(&mut self, now: Instant) {
        self.removed = true;
        self.begin_stop(now);
    }

    /// What a relay worker says.
    pub fn on_relay_message(&mut self, at: usize, message: FromWorker, now: Instant) {
        let name = &self.config.name;
        // It found a change, or its name has no address.
        if let (Some(upstreams), FromWorker::Ready | FromWorker::UpstreamDown { .. } | FromWorker::UpstreamUp { .. }) =
            (&mut self.upstreams, &message)
        {
            upstreams.look(name, now);
        }
        let slot = self.slots.get_mut(at);
        match message {
            FromWorker::Ready => {
                slot.and_then(Slot::relay_mut).into_iter().for_each(|relay| relay.readiness = Readiness::Ready)
            }
            FromWorker::UpstreamDown { .. } | FromWorker::UpstreamUp { .. } if self.upstreams.is_some() => {}
            FromWorker::UpstreamDown { address, error } => {
                warn!(name: "upstream-down", service = %name, slot = at, upstream = %address, "upstream down: {error}");
            }
            FromWorker::UpstreamUp { address } => {
                info!(name: "upstream-up", service = %name, slot = at, upstream = %address, "upstream up again");
            }
            FromWorker::Full(true) => {
                warn!(service = %name, slot = at, "worker is at its file limit and takes no connections until some end");
            }
            FromWorker::Full(false) => info!(service = %name, slot = at, "worker takes connections again"),
            // What it gives back is its handler's.
            FromWorker::Moved(_) => {}
        }
    }
}

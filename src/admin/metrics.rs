//! The state as OpenMetrics. Counters are a slot's over all its workers: no restart and no reload lets them fall.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::control::snapshot::{Daemon, ServiceState, SlotState};

/// What [`text`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSlot {
    service: String,
    slot: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    service: String,
    slot: u64,
    state: String,
}

/// A metric: its name, what it is, and its value.
type Of<T> = (&'static str, &'static str, fn(&T) -> u64);

const SLOT_COUNTERS: [Of<SlotState>; 3] = [
    ("connections", "Connections handed to the slot", |slot| slot.connections),
    ("rescued", "Connections taken back from the slot's workers for others", |slot| slot.rescued),
    ("workers_started", "Workers that the slot has had", |slot| slot.generation),
];

const SLOT_GAUGES: [Of<SlotState>; 4] = [
    ("open", "Connections open", |slot| slot.open),
    ("pending", "Connections handed over and not yet received", |slot| slot.pending),
    ("memory_bytes", "Resident memory of the worker and its server", |slot| slot.rss_bytes),
    ("uptime_seconds", "Since the worker came online", |slot| slot.uptime_s),
];

const SERVICE_COUNTERS: [Of<ServiceState>; 2] = [
    ("shed", "Clients reset because no worker took them in time", |service| service.shed),
    ("reloads", "Reloads that succeeded", |service| service.reloads),
];

const SERVICE_GAUGES: [Of<ServiceState>; 3] = [
    ("held", "Clients that wait in the master for a worker", |service| service.held),
    ("slots", "Slots", |service| service.slots.len() as u64),
    ("slots_online", "Slots with a worker online", |service| service.online() as u64),
];

/// A daemon's state as text.
///
/// # Errors
/// As the encoder's.
pub fn text(daemon: &Daemon) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("roundsman");
    let slots = || {
        daemon.services.iter().flat_map(|service| {
            service.slots.iter().map(|slot| (OfSlot { service: service.name.clone(), slot: slot.slot as u64 }, slot))
        })
    };
    let services = || daemon.services.iter().map(|service| (OfService { service: service.name.clone() }, service));
    for (name, help, value) in SLOT_COUNTERS {
        let family = Family::<OfSlot, Counter>::default();
        for (labels, slot) in slots() {
            family.get_or_create(&labels).inc_by(value(slot));
        }
        registry.register(name, help, family);
    }
    for (name, help, value) in SLOT_GAUGES {
        let family = Family::<OfSlot, Gauge>::default();
        for (labels, slot) in slots() {
            family.get_or_create(&labels).set(number(value(slot)));
        }
        registry.register(name, help, family);
    }
    for (name, help, value) in SERVICE_COUNTERS {
        let family = Family::<OfService, Counter>::default();
        for (labels, service) in services() {
            family.get_or_create(&labels).inc_by(value(service));
        }
        registry.register(name, help, family);
    }
    for (name, help, value) in SERVICE_GAUGES {
        let family = Family::<OfService, Gauge>::default();
        for (labels, service) in services() {
            family.get_or_create(&labels).set(number(value(service)));
        }
        registry.register(name, help, family);
    }
    let states = Family::<InState, Gauge>::default();
    slots().for_each(|(OfSlot { service, slot: number }, slot)| {
        states.get_or_create(&InState { service, slot: number, state: slot.state.clone() }).set(1);
    });
    registry.register("slot_state", "The state that the slot is in", states);
    let uptime: Gauge = Gauge::default();
    uptime.set(number(daemon.uptime_s));
    registry.register("daemon_uptime_seconds", "Since the daemon's start", uptime);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

//! The state as OpenMetrics. Counters are a slot's over all its workers: no restart and no reload lets them fall.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::abi::page::latency;
use crate::control::status::{Daemon, ServiceState, SlotState, UpstreamState};

/// What [`text`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Debug, EncodeLabelSet)]
struct OfSlot {
    service: String,
    slot: u64,
}

#[derive(Debug, EncodeLabelSet)]
struct InState {
    service: String,
    slot: u64,
    state: String,
}

#[derive(Debug, EncodeLabelSet)]
struct OfKind {
    service: String,
    slot: u64,
    kind: String,
}

#[derive(Debug, Clone, EncodeLabelSet)]
struct OfUpstream {
    service: String,
    upstream: String,
}

#[derive(Debug, EncodeLabelSet)]
struct OfDirection {
    service: String,
    upstream: String,
    direction: &'static str,
}

/// A metric: its name, what it is, and its value.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

const SLOT_COUNTERS: [Metric<SlotState>; 4] = [
    (
        "connections",
        "Connections handed to the slot, those that were taken back included",
        // Taken back, a connection is no longer counted as the slot's; a counter must not fall.
        |slot| slot.connections.saturating_add(slot.rescued),
    ),
    ("rescued", "Connections taken back from the slot's workers for others", |slot| slot.rescued),
    ("workers_started", "Workers that the slot has had", |slot| slot.generation),
    ("restarts", "Starts of the slot's workers after the first, reloads not counted", |slot| slot.restarts),
];

/// Counted by relay workers: of servers that have the connections themselves nobody knows.
const BYTES: [Metric<SlotState>; 2] = [
    ("received_bytes", "Bytes from clients that the slot relayed", |slot| slot.counts.bytes_in),
    ("sent_bytes", "Bytes to clients that the slot relayed", |slot| slot.counts.bytes_out),
];

/// By kind: the metric is one.
const ERRORS: [Metric<SlotState>; 2] = [
    ("upstream_unreachable", "No upstream could be reached", |slot| slot.counts.unreachable),
    ("out_of_descriptors", "Sockets lost to a full descriptor table", |slot| slot.counts.truncated),
];

const SLOT_GAUGES: [Metric<SlotState>; 4] = [
    ("open", "Connections open", |slot| slot.open),
    ("pending", "Connections handed over and not yet received", |slot| slot.pending),
    ("memory_bytes", "Resident memory of the worker and its server", |slot| slot.rss_bytes),
    ("uptime_seconds", "Since the worker came online", |slot| slot.uptime_s),
];

const SERVICE_COUNTERS: [Metric<ServiceState>; 2] = [
    ("shed", "Clients reset because no worker took them in time", |service| service.shed),
    ("reloads", "Reloads that succeeded", |service| service.reloads),
];

const UPSTREAM_COUNTERS: [Metric<UpstreamState>; 2] = [
    ("upstream_connections", "Connections established with the upstream", |upstream| upstream.connections),
    ("upstream_errors", "Attempts to connect to the upstream that failed", |upstream| upstream.errors),
];

const UPSTREAM_GAUGES: [Metric<UpstreamState>; 2] = [
    ("upstream_up", "Whether the upstream accepts connections; 1 until an attempt fails", |upstream| {
        u64::from(upstream.is_up())
    }),
    ("upstream_open", "Connections open or being opened with the upstream", |upstream| upstream.open),
];

const SERVICE_GAUGES: [Metric<ServiceState>; 4] = [
    ("waiting_for_upstream", "Clients whose worker has no upstream for them", |service| service.waiting_for_upstream),
    ("held", "Clients that wait in the master for a worker", |service| service.held),
    ("slots", "Slots", |service| service.slots.len() as u64),
    ("slots_online", "Slots with a worker online", |service| service.online() as u64),
];

/// A daemon's state as text.
///
/// # Errors
/// As the encoder's.
pub fn text(daemon: &Arc<Daemon>) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("roundsman");
    registry.register_collector(Box::new(State(daemon.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct State(Arc<Daemon>);

impl State {
    fn slots(&self) -> impl Iterator<Item = (OfSlot, &SlotState, &ServiceState)> {
        self.0.services.iter().flat_map(|service| {
            let labels = |slot: &SlotState| OfSlot { service: service.name.clone(), slot: slot.slot as u64 };
            service.slots.iter().map(move |slot| (labels(slot), slot, service))
        })
    }

    fn of_services(
        &self,
        to: &mut DescriptorEncoder<'_>,
        kind: Kind,
        metrics: &[Metric<ServiceState>],
    ) -> Result<(), Error> {
        for (name, help, value) in metrics {
            let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
            for service in &self.0.services {
                kind.encode(family.encode_family(&OfService { service: service.name.clone() })?, value(service))?;
            }
        }
        Ok(())
    }

    fn of_slots(
        &self,
        to: &mut DescriptorEncoder<'_>,
        kind: Kind,
        metrics: &[Metric<SlotState>],
        counts: fn(&ServiceState) -> bool,
    ) -> Result<(), Error> {
        for (name, help, value) in metrics {
            let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
            for (labels, slot, _) in self.slots().filter(|(_, _, service)| counts(service)) {
                kind.encode(family.encode_family(&labels)?, value(slot))?;
            }
        }
        Ok(())
    }

    /// With their labels; one that is configured twice is one.
    fn upstreams(&self) -> Vec<(OfUpstream, UpstreamState)> {
        let mut all: Vec<(OfUpstream, UpstreamState)> = Vec::new();
        for service in &self.0.services {
            let from = all.len();
            for upstream in &service.upstreams {
                match all[from..].iter_mut().find(|(labels, _)| labels.upstream == upstream.addr) {
                    Some((_, sum)) => {
                        sum.open = sum.open.saturating_add(upstream.open);
                        sum.connections = sum.connections.saturating_add(upstream.connections);
                        sum.bytes_in = sum.bytes_in.saturating_add(upstream.bytes_in);
                        sum.bytes_out = sum.bytes_out.saturating_add(upstream.bytes_out);
                        sum.errors = sum.errors.saturating_add(upstream.errors);
                        if upstream.is_up() {
                            sum.state.clone_from(&upstream.state);
                        }
                    }
                    None => {
                        let labels = OfUpstream { service: service.name.clone(), upstream: upstream.addr.clone() };
                        all.push((labels, upstream.clone()));
                    }
                }
            }
        }
        all
    }

    fn of_upstreams(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let all = self.upstreams();
        let counters = UPSTREAM_COUNTERS.iter().map(|metric| (Kind::Counter, metric));
        let gauges = UPSTREAM_GAUGES.iter().map(|metric| (Kind::Gauge, metric));
        for (kind, (name, help, value)) in counters.chain(gauges) {
            let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
            for (labels, upstream) in &all {
                kind.encode(family.encode_family(labels)?, value(upstream))?;
            }
        }
        let help = "Bytes relayed to (in) and from (out) the upstream";
        let mut family = to.encode_descriptor("upstream_bytes", help, None, MetricType::Counter)?;
        for (OfUpstream { service, upstream: name }, upstream) in all {
            for (direction, bytes) in [("in", upstream.bytes_in), ("out", upstream.bytes_out)] {
                let labels = OfDirection { service: service.clone(), upstream: name.clone(), direction };
                Kind::Counter.encode(family.encode_family(&labels)?, bytes)?;
            }
        }
        Ok(())
    }

    fn errors(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut family = to.encode_descriptor("errors", "Connections lost, by kind", None, MetricType::Counter)?;
        for (OfSlot { service, slot: number }, slot, _) in self.slots() {
            for (kind, _, value) in ERRORS {
                let labels = OfKind { service: service.clone(), slot: number, kind: kind.to_owned() };
                Kind::Counter.encode(family.encode_family(&labels)?, value(slot))?;
            }
        }
        Ok(())
    }

    fn latencies(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "From the master's accept(2) until the worker has the connection";
        let mut family = to.encode_descriptor("handoff_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, slot, _) in self.slots() {
            let bound =
                |at: usize| if at + 1 == latency::BUCKETS { f64::INFINITY } else { seconds(latency::bound(at)) };
            // What a server writes there is its own affair; their sum is to be a number all the same.
            let counts = slot.counts.latencies.map(|count| count.min(u64::MAX / latency::BUCKETS as u64));
            let buckets: Vec<_> = counts.iter().enumerate().map(|(at, count)| (bound(at), *count)).collect();
            let (sum, count) = (seconds(slot.counts.latency_ns), counts.iter().sum());
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn states(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "The state that the slot is in";
        let mut family = to.encode_descriptor("slot_state", help, None, MetricType::Gauge)?;
        for (OfSlot { service, slot: number }, slot, _) in self.slots() {
            let labels = InState { service, slot: number, state: slot.state.clone() };
            Kind::Gauge.encode(family.encode_family(&labels)?, 1)?;
        }
        Ok(())
    }
}

impl Collector for State {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        let to = &mut to;
        self.of_slots(to, Kind::Counter, &SLOT_COUNTERS, |_| true)?;
        self.of_slots(to, Kind::Counter, &BYTES, |service| service.via != "direct")?;
        self.errors(to)?;
        self.of_slots(to, Kind::Gauge, &SLOT_GAUGES, |_| true)?;
        self.latencies(to)?;
        self.states(to)?;
        self.of_upstreams(to)?;
        self.of_services(to, Kind::Counter, &SERVICE_COUNTERS)?;
        self.of_services(to, Kind::Gauge, &SERVICE_GAUGES)?;
        let uptime =
            to.encode_descriptor("daemon_uptime_seconds", "Since the daemon's start", None, MetricType::Gauge)?;
        Kind::Gauge.encode(uptime, self.0.uptime_s)
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
        }
    }

    fn encode(self, mut to: MetricEncoder<'_>, value: u64) -> Result<(), Error> {
        match self {
            Self::Counter => to.encode_counter::<NoLabelSet, _, u64>(&value, None),
            Self::Gauge => to.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

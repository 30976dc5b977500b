//! The state as OpenMetrics. Counters are summed over all workers of a slot, so they never fall on a restart or reload.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::abi::page::latency;
use crate::control::status::{Daemon, IntakeState, ServiceState, SlotState, UpstreamState};
use crate::control::waits::WaitState;

/// Content type of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Debug, Clone, EncodeLabelSet)]
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
    kind: &'static str,
}

#[derive(Debug, Clone, EncodeLabelSet)]
struct OfUpstream {
    service: String,
    upstream: String,
}

#[derive(Debug, EncodeLabelSet)]
struct OfReason {
    service: String,
    reason: String,
}

#[derive(Debug, EncodeLabelSet)]
struct OfDirection {
    service: String,
    upstream: String,
    direction: &'static str,
}

/// A metric: name, help text, value.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

const SLOT_COUNTERS: [Metric<SlotState>; 5] = [
    (
        "connections",
        "Connections handed to the slot, including those taken back",
        // `connections` falls when some are taken back; a counter must not.
        |slot| slot.connections.saturating_add(slot.rescued),
    ),
    ("rescued", "Connections taken back from the slot's workers for others", |slot| slot.rescued),
    ("moved", "Idle connections that the slot's leaving workers gave to others", |slot| slot.moved),
    ("workers_started", "Workers that the slot has had", |slot| slot.generation),
    ("restarts", "Starts of the slot's workers after the first, reloads not counted", |slot| slot.restarts),
];

/// Relayed slots only: with direct delivery servers have the connections themselves.
const BYTES: [Metric<SlotState>; 2] = [
    ("received_bytes", "Bytes from clients that the slot relayed", |slot| slot.counts.bytes_in),
    ("sent_bytes", "Bytes to clients that the slot relayed", |slot| slot.counts.bytes_out),
];

/// One metric with these kinds as labels.
const ERRORS: [Metric<SlotState>; 2] = [
    ("upstream_unreachable", "No upstream could be reached", |slot| slot.counts.unreachable),
    ("out_of_descriptors", "Sockets lost to a full descriptor table", |slot| slot.counts.truncated),
];

const SLOT_GAUGES: [Metric<SlotState>; 5] = [
    ("open", "Connections open", |slot| slot.open),
    ("pending", "Connections handed over and not yet received", |slot| slot.pending),
    ("memory_bytes", "Resident memory of the worker and its server", |slot| slot.rss_bytes),
    ("uptime_seconds", "Since the worker came online", |slot| slot.uptime_s),
    ("slot_weight", "The slot's share beside the others; 0: no new connections", |slot| u64::from(slot.weight)),
];

const SERVICE_COUNTERS: [Metric<ServiceState>; 2] = [
    ("accept_pauses", "Times that --accept-rate made clients wait in the backlog", |service| service.accept_pauses),
    ("reloads", "Reloads that succeeded", |service| service.reloads),
];

const UPSTREAM_COUNTERS: [Metric<UpstreamState>; 2] = [
    ("upstream_connections", "Connections established with the upstream", |upstream| upstream.connections),
    ("upstream_errors", "Attempts to connect to the upstream that failed", |upstream| upstream.errors),
];

const UPSTREAM_GAUGES: [Metric<UpstreamState>; 3] = [
    ("upstream_up", "Whether the upstream accepts connections; 1 until an attempt fails", |upstream| {
        u64::from(upstream.is_up())
    }),
    ("upstream_open", "Connections open or being opened with the upstream", |upstream| upstream.open),
    ("upstream_weight", "The upstream's share beside the others; 0: no new connections", |upstream| {
        u64::from(upstream.weight)
    }),
];

const SERVICE_GAUGES: [Metric<ServiceState>; 5] = [
    ("waiting_for_upstream", "Clients whose worker has no upstream for them", |service| service.waiting_for_upstream),
    ("held", "Clients that wait in the master for a worker", |service| service.held),
    ("limit_reached", "Whether no client is accepted because of --max-conns or --accept-rate", |service| {
        u64::from(service.limit_reached.is_some())
    }),
    ("slots", "Slots", |service| service.slots.len() as u64),
    ("slots_online", "Slots with a worker online", |service| service.online() as u64),
];

const INTAKE_GAUGES: [Metric<IntakeState>; 1] =
    [("intake_waiting", "Connections that have not sent what has to be known first", |intake| intake.waiting)];

const INTAKE_COUNTERS: [Metric<IntakeState>; 3] = [
    ("proxy_headers", "Valid PROXY headers", |intake| intake.proxy_headers),
    ("hash_keys", "Connections whose first request had a key, which decided", |intake| intake.keys),
    ("addresses_lost", "Connections whose servers see the balancer's address", |intake| intake.addresses_lost),
];

/// A daemon's state in the OpenMetrics text format.
///
/// # Errors
/// When the encoder fails.
pub fn text(daemon: &Arc<Daemon>) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("roundsman");
    registry.register_collector(Box::new(State(daemon.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct State(Arc<Daemon>);

impl Collector for State {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        let to = &mut to;
        let services: Vec<_> =
            self.0.services.iter().map(|service| (OfService { service: service.name.clone() }, service)).collect();
        let slots: Vec<_> = self.0.services.iter().flat_map(slots_of).collect();
        let relayed: Vec<_> =
            self.0.services.iter().filter(|service| service.via != "direct").flat_map(slots_of).collect();
        let upstreams = upstreams(&self.0.services);
        table(to, Kind::Counter, &SLOT_COUNTERS, &slots)?;
        table(to, Kind::Counter, &BYTES, &relayed)?;
        let errors = slots.iter().flat_map(|(OfSlot { service, slot: number }, slot)| {
            ERRORS.map(|(kind, _, value)| (OfKind { service: service.clone(), slot: *number, kind }, value(slot)))
        });
        family(to, Kind::Counter, "errors", "Connections lost, by kind", errors)?;
        table(to, Kind::Gauge, &SLOT_GAUGES, &slots)?;
        latencies(to, &slots)?;
        let states = slots.iter().map(|(OfSlot { service, slot: number }, slot)| {
            (InState { service: service.clone(), slot: *number, state: slot.state.clone() }, 1)
        });
        family(to, Kind::Gauge, "slot_state", "The state that the slot is in", states)?;
        table(to, Kind::Counter, &UPSTREAM_COUNTERS, &upstreams)?;
        table(to, Kind::Gauge, &UPSTREAM_GAUGES, &upstreams)?;
        let bytes = upstreams.iter().flat_map(|(OfUpstream { service, upstream: name }, upstream)| {
            [("in", upstream.bytes_in), ("out", upstream.bytes_out)].map(|(direction, bytes)| {
                (OfDirection { service: service.clone(), upstream: name.clone(), direction }, bytes)
            })
        });
        family(to, Kind::Counter, "upstream_bytes", "Bytes relayed to (in) and from (out) the upstream", bytes)?;
        table(to, Kind::Counter, &SERVICE_COUNTERS, &services)?;
        let shed = services.iter().flat_map(|(OfService { service: name }, service)| {
            service
                .shed_by
                .iter()
                .map(|(reason, count)| (OfReason { service: name.clone(), reason: reason.clone() }, *count))
        });
        family(to, Kind::Counter, "shed", "Clients accepted that no worker got, by reason", shed)?;
        longest_waits(to, &services)?;
        waits(to, &services)?;
        table(to, Kind::Gauge, &SERVICE_GAUGES, &services)?;
        let recycled = services.iter().filter_map(|(OfService { service }, state)| Some((service, state.recycled?)));
        let recycled = recycled.flat_map(|(service, recycled)| {
            [("age", recycled.age), ("served", recycled.served)]
                .map(|(reason, count)| (OfReason { service: service.clone(), reason: reason.to_owned() }, count))
        });
        family(to, Kind::Counter, "recycled", "Workers replaced by --max-age and --max-served", recycled)?;
        intake(to, &services)?;
        let lost = services.iter().filter_map(|(labels, state)| Some((labels.clone(), state.access_lost?)));
        family(to, Kind::Counter, "access_lost", "Connections without their line in the access log", lost)?;
        let uptime =
            to.encode_descriptor("daemon_uptime_seconds", "Since the daemon's start", None, MetricType::Gauge)?;
        Kind::Gauge.encode(uptime, self.0.uptime_s)
    }
}

/// Of services where something has to be known of connections before a worker is chosen.
fn intake(to: &mut DescriptorEncoder<'_>, services: &[(OfService, &ServiceState)]) -> Result<(), Error> {
    let intakes: Vec<_> =
        services.iter().filter_map(|(labels, service)| Some((labels.clone(), service.intake.as_ref()?))).collect();
    table(to, Kind::Gauge, &INTAKE_GAUGES, &intakes)?;
    table(to, Kind::Counter, &INTAKE_COUNTERS, &intakes)?;
    let by_reason = |of: fn(&IntakeState) -> &BTreeMap<String, u64>| {
        intakes.iter().flat_map(move |(OfService { service }, intake)| {
            let row = |(reason, count): (&String, &u64)| {
                (OfReason { service: service.clone(), reason: reason.clone() }, *count)
            };
            of(intake).iter().map(row)
        })
    };
    let no_key = by_reason(|intake| &intake.no_key);
    family(to, Kind::Counter, "hash_no_key", "Connections whose first request did not decide, by reason", no_key)?;
    let refused = by_reason(|intake| &intake.refused);
    family(to, Kind::Counter, "refused", "Connections reset before a worker was chosen, by reason", refused)
}

fn slots_of(service: &ServiceState) -> impl Iterator<Item = (OfSlot, &SlotState)> {
    service.slots.iter().map(|slot| (OfSlot { service: service.name.clone(), slot: slot.slot as u64 }, slot))
}

/// One metric of all `rows`: labels and value.
fn family<L: EncodeLabelSet>(
    to: &mut DescriptorEncoder<'_>,
    kind: Kind,
    name: &str,
    help: &str,
    mut rows: impl Iterator<Item = (L, u64)>,
) -> Result<(), Error> {
    let mut family = to.encode_descriptor(name, help, None, kind.metric_type())?;
    rows.try_for_each(|(labels, value)| kind.encode(family.encode_family(&labels)?, value))
}

/// Several metrics of the same `items`.
fn table<L: EncodeLabelSet + Clone, T>(
    to: &mut DescriptorEncoder<'_>,
    kind: Kind,
    metrics: &[Metric<T>],
    items: &[(L, impl Borrow<T>)],
) -> Result<(), Error> {
    metrics.iter().try_for_each(|(name, help, value)| {
        family(to, kind, name, help, items.iter().map(|(labels, item)| (labels.clone(), value(item.borrow()))))
    })
}

/// Upstreams with their labels; one that is configured twice appears once, with the sums.
fn upstreams(services: &[ServiceState]) -> Vec<(OfUpstream, UpstreamState)> {
    let mut all: Vec<(OfUpstream, UpstreamState)> = Vec::new();
    for service in services {
        let from = all.len();
        for upstream in &service.upstreams {
            match all[from..].iter_mut().find(|(labels, _)| labels.upstream == upstream.addr) {
                Some((_, sum)) => {
                    sum.open = sum.open.saturating_add(upstream.open);
                    sum.connections = sum.connections.saturating_add(upstream.connections);
                    sum.bytes_in = sum.bytes_in.saturating_add(upstream.bytes_in);
                    sum.bytes_out = sum.bytes_out.saturating_add(upstream.bytes_out);
                    sum.errors = sum.errors.saturating_add(upstream.errors);
                    sum.weight = sum.weight.saturating_add(upstream.weight);
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

fn latencies(to: &mut DescriptorEncoder<'_>, slots: &[(OfSlot, &SlotState)]) -> Result<(), Error> {
    let help = "From the master's accept(2) until the worker has the connection";
    let mut family = to.encode_descriptor("handoff_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, slot) in slots {
        let bound = |at: usize| if at + 1 == latency::BUCKETS { f64::INFINITY } else { seconds(latency::bound(at)) };
        // Servers write these: whatever they write, the sum must not overflow.
        let counts = slot.counts.latencies.map(|count| count.min(u64::MAX / latency::BUCKETS as u64));
        let buckets: Vec<_> = counts.iter().enumerate().map(|(at, count)| (bound(at), *count)).collect();
        let (sum, count) = (seconds(slot.counts.latency_ns), counts.iter().sum());
        family.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn longest_waits(to: &mut DescriptorEncoder<'_>, services: &[(OfService, &ServiceState)]) -> Result<(), Error> {
    let help = "How long the client that came first among those held has waited";
    let mut family = to.encode_descriptor("longest_wait", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    services.iter().try_for_each(|(labels, service)| {
        family.encode_family(labels)?.encode_gauge(&(service.longest_wait_ms as f64 / 1e3))
    })
}

fn waits(to: &mut DescriptorEncoder<'_>, services: &[(OfService, &ServiceState)]) -> Result<(), Error> {
    let help = "How long clients were held that then got a worker";
    let mut family = to.encode_descriptor("wait", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    services.iter().filter(|(_, service)| !service.waits.buckets.is_empty()).try_for_each(|(labels, service)| {
        let WaitState { buckets, sum } = &service.waits;
        family.encode_family(labels)?.encode_histogram::<NoLabelSet>(*sum, service.waits.count(), buckets, None)
    })
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

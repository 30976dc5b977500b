//! A service whose configuration changes while it runs.

use std::mem::{discriminant, replace};
use std::time::Instant;

use super::operations::Operation;
use super::rules::{resolved, rules};
use super::{Context, Service};
use crate::accept::orders::Order;
use crate::accept::policy::Policy;
use crate::config::merge::{Settings, changes};
use crate::config::{Backend, Limits, ServiceConfig};
use crate::listener::Listener;
use crate::slot::Slot;
use crate::sys::reason;
use crate::worker::Delivery;

/// Listeners that a service may have had in all: their ids are never used again.
const MAX_LISTENERS: usize = 200;

/// `policy`, and what was judged together with it: it may be refused with `none`, or mean nothing without a policy that hashes.
const OF_WHO_ACCEPTS: [&str; 17] = [
    "policy",
    "hash-on",
    "proxy-from",
    "send-proxy",
    "allow",
    "deny",
    "source-conns",
    "source-rate",
    "first-byte-timeout",
    "accept-rate",
    "max-conns",
    "worker-conns",
    "max-queue",
    "abort-on-close",
    "slow-start",
    "drain-idle",
    "max-served",
];

impl Service {
    /// Takes a new configuration. What its workers see holds for those started from now on. Returns, for people, what
    /// changed, and what needs a restart and stays as it is.
    pub fn reconfigure(
        &mut self,
        (mut config, mut settings): (ServiceConfig, Settings),
        added: Vec<Listener>,
        delivery: Delivery,
        context: &Context,
        now: Instant,
    ) -> Vec<String> {
        let name = self.config.name.clone();
        let mut notes: Vec<String> = Vec::new();
        let mut keep = |key: &str, settings: &mut Settings, old: &Settings, why: &str| {
            notes.push(format!("{name}: {key} needs a restart of the daemon ({why})"));
            match old.get(key) {
                Some(setting) => settings.insert(key.to_owned(), setting.clone()),
                None => settings.remove(key),
            };
        };
        if (config.policy == Policy::None) != (self.config.policy == Policy::None) {
            let values = |settings: &Settings, key: &str| settings.get(key).map(|setting| setting.values.clone());
            let other = |key: &&str| values(&settings, key) != values(&self.settings, key);
            for key in OF_WHO_ACCEPTS.into_iter().filter(other).collect::<Vec<_>>() {
                keep(key, &mut settings, &self.settings, "who accepts is settled at the start");
            }
            config.follow_policy(&self.config);
        }
        let loses_port = matches!(config.backend, Backend::NoPort(_))
            && matches!(self.config.backend, Backend::Direct(_) | Backend::Relayed(_));
        if loses_port {
            // Its workers roll over to such without a port; then the listeners have nobody any more.
            self.listeners.all_leave();
            self.delivery = delivery;
        } else if shape(&config.backend) != shape(&self.config.backend) {
            let from_to = format!("{} now, {} then", self.config.backend.via(), config.backend.via());
            for key in ["via", "command", "upstream", "no-listen"] {
                if settings.get(key).map(|setting| &setting.values)
                    != self.settings.get(key).map(|setting| &setting.values)
                {
                    keep(key, &mut settings, &self.settings, &from_to);
                }
            }
            config.backend = self.config.backend.clone();
            config.via_reason.clone_from(&self.config.via_reason);
            config.seccomp = self.config.seccomp;
        } else {
            self.delivery = delivery;
        }
        if self.listeners.all().len() + added.len() > MAX_LISTENERS {
            keep("listen", &mut settings, &self.settings, "there were too many changes of listeners");
            config.listen.clone_from(&self.config.listen);
        } else {
            self.listeners.reconfigure(&self.config.listen, &config.listen, added);
        }
        if loses_port {
            notes
                .push(format!("{name}: serves no port from now on; its listeners close when its workers are replaced"));
        }
        let changed = changes(&self.settings, &settings, |key| key != "name");
        notes.extend(changed.iter().map(|change| format!("{name}: {change}")));
        // A number that somebody set by hand holds until the file says another one.
        let values = |settings: &Settings| settings.get("instances").map(|setting| setting.values.clone());
        let instances = replace(&mut config.instances, self.config.instances);
        let scale = values(&settings) != values(&self.settings) && instances != self.config.instances;
        let upstreams = |settings: &Settings| settings.get("upstream").map(|setting| setting.values.clone());
        let elsewhere = upstreams(&settings) != upstreams(&self.settings);
        self.config = config;
        self.settings = settings;
        // Looking names up takes its time, and may fail where it went well before.
        if elsewhere {
            self.resolved = resolved(&self.config);
            if let (Some(upstreams), Backend::Upstreams(addresses, _)) = (&mut self.upstreams, &self.config.backend)
                && let Err(error) = upstreams.replace(addresses)
            {
                notes.push(format!("{name}: the state of upstreams is not shared: {}", reason(&error)));
                self.upstreams = None;
            }
        }
        // Until they close, the listeners go on by the old rules.
        if !loses_port {
            context.orders.send(Order::Rules(self.id, rules(&self.config, self.cap, context.nofile)));
        }
        if scale && let Err(why) = self.begin(Operation::Scale(instances), context, now) {
            notes.push(format!("{name}: not scaled: {why}"));
            // The next reload tries again.
            self.settings.remove("instances");
        }
        notes
    }
}

impl ServiceConfig {
    /// Takes the policy of another one, and the options in [`OF_WHO_ACCEPTS`].
    fn follow_policy(&mut self, other: &Self) {
        (self.policy, self.send_proxy) = (other.policy, other.send_proxy);
        self.hash_on.clone_from(&other.hash_on);
        self.proxy_from.clone_from(&other.proxy_from);
        self.clients.clone_from(&other.clients);
        self.limits = Limits {
            accept_rate: other.limits.accept_rate,
            max_conns: other.limits.max_conns,
            worker_conns: other.limits.worker_conns,
            max_queue: other.limits.max_queue,
            abort_on_close: other.limits.abort_on_close,
            slow_start: other.limits.slow_start,
            drain_idle: other.limits.drain_idle,
            max_served: other.limits.max_served,
            ..self.limits
        };
    }
}

/// Whether the limits of connections that a configuration adds can be kept: not for a server that was seen to close
/// connections in processes that did not accept them.
///
/// # Errors
/// Why not.
pub(super) fn countable(now: &ServiceConfig, wanted: &ServiceConfig, slots: &[Slot]) -> Result<(), String> {
    let keys = [
        ("worker-conns", now.limits.worker_conns, wanted.limits.worker_conns),
        ("max-conns", now.limits.max_conns, wanted.limits.max_conns),
    ];
    let added = keys.into_iter().find(|(_, now, wanted)| now.is_none() && wanted.is_some());
    let Some((key, ..)) = added else { return Ok(()) };
    let same = match (&now.backend, &wanted.backend) {
        (Backend::Direct(now), Backend::Direct(wanted)) => now == wanted,
        _ => false,
    };
    if same && slots.iter().filter_map(Slot::attachment).any(|server| server.page.is_estimate()) {
        return Err(format!(
            "{key}: the server closes connections in processes that did not accept them, so those open cannot be \
             counted; take {key} out, or set via = \"relay\" and restart the daemon"
        ));
    }
    Ok(())
}

/// What about the way to the servers cannot change while the service runs.
fn shape(backend: &Backend) -> (std::mem::Discriminant<Backend>, bool) {
    (discriminant(backend), matches!(backend, Backend::Upstreams(_, Some(_))))
}

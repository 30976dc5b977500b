//! What the daemon logs of a service is kept among that service's lines, for `roundsman logs`, and in a list of its own.

use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::recent::{New, Recent, UNNAMED, Value};
use super::servers::Servers;

/// Passes events that name a service to the thread that keeps its lines, once that runs.
#[derive(Debug, Clone, Default)]
pub struct Events {
    servers: Arc<OnceLock<Servers>>,
    recent: Recent,
}

impl Events {
    pub fn keep_in(&self, servers: &Servers) {
        let _ = self.servers.set(servers.clone());
    }

    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(servers) = self.servers.get() else { return };
        let mut words = Words::default();
        event.record(&mut words);
        let (level, name) = (*event.metadata().level(), event.metadata().name());
        // Without a name of its own it is called after its place in the sources.
        let name = if name.starts_with("event ") { UNNAMED } else { name };
        let (message, fields) = (&words.message, &words.fields);
        // What concerns several services names them all.
        for service in words.services.split(", ").filter(|name| !name.is_empty()) {
            self.recent.push(New { level, name, service, slot: words.slot, message, fields });
        }
        let fields = words.fields.iter().map(|(name, value)| format!(" {name}={value}"));
        let text: String = std::iter::once(words.message).chain(fields).collect();
        for service in words.services.split(", ").filter(|name| !name.is_empty()) {
            servers.event(service, words.slot, words.pid.unwrap_or_else(std::process::id), &text);
        }
    }
}

/// The message, then the fields as in the log.
#[derive(Default)]
struct Words {
    services: String,
    slot: Option<u32>,
    pid: Option<u32>,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Words {
    fn number(&mut self, name: &'static str, number: Option<i64>) {
        match number {
            Some(number) => self.fields.push((name, Value::Number(number))),
            // No number of ours is that large.
            None => self.fields.push((name, Value::Text("?".into()))),
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A String takes everything.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "service" => write!(self.services, "{value:?}"),
            name => {
                self.fields.push((name, Value::Plain(format!("{value:?}").into())));
                Ok(())
            }
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "service" => self.services.push_str(value),
            "message" => self.message.push_str(value),
            name => self.fields.push((name, Value::Text(value.into()))),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field.name(), Some(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "slot" => self.slot = u32::try_from(value).ok(),
            name => {
                if name == "pid" {
                    self.pid = u32::try_from(value).ok();
                }
                self.number(name, i64::try_from(value).ok());
            }
        }
    }
}

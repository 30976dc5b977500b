//! Lines that no server has written: workers' messages, and what the daemon logs of a service.

use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use super::super::line::{Line, Stream};
use super::{MAX_UNDER_WAY, Order, Servers};

impl Servers {
    /// Keeps a message of a worker, for who reads messages. Beyond what the thread can take they are dropped.
    pub fn message(&self, service: &str, slot: Option<u32>, pid: u32, text: &str) {
        self.text(service, slot, pid, Stream::Message, text);
    }

    /// The same for what the daemon logs of a service.
    pub fn event(&self, service: &str, slot: Option<u32>, pid: u32, text: &str) {
        self.text(service, slot, pid, Stream::Event, text);
    }

    fn text(&self, service: &str, slot: Option<u32>, pid: u32, stream: Stream, text: &str) {
        let under_way = self.under_way.fetch_add(text.len(), Relaxed);
        if under_way + text.len() > MAX_UNDER_WAY {
            self.under_way.fetch_sub(text.len(), Relaxed);
        } else {
            let line = Line::new(service, slot, pid, stream, SystemTime::now(), text.as_bytes());
            self.send(Order::Text(line));
        }
    }
}

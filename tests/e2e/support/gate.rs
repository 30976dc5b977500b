//! A server whose answers wait for a gate: until it opens, every connection stays with its worker.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};

use super::Upstream;

/// The gate of a [`gated`] server.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(guard, |open| !*open).unwrap());
    }
}

/// Answers requests once the gate is open.
pub fn gated() -> (Upstream, Gate) {
    let gate = Gate::default();
    let own = gate.clone();
    let serve = move |mut stream: TcpStream| -> io::Result<()> {
        let mut head = [0; 1024];
        if stream.read(&mut head)? == 0 {
            return Ok(());
        }
        own.wait();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    };
    (Upstream::start(serve), gate)
}

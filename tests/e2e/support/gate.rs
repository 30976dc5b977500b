//! Servers whose answers wait for a gate: until it opens, every connection stays with its worker.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempDir;

use super::{Upstream, install_dir, write_file};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Accepts as many as come, a thread for each.
const SERVER: &str = "
import os, socket, sys, threading, time
port, gate = int(sys.argv[1]), sys.argv[2]
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', port)); s.listen(1000)
def serve(c):
    try:
        if c.recv(4096):
            while not os.path.exists(gate): time.sleep(.01)
            c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    except OSError: pass
    c.close()
while True:
    try: c = s.accept()[0]
    # Its first accept may come after its queue was rescued.
    except ConnectionAbortedError: continue
    threading.Thread(target=serve, args=(c,), daemon=True).start()
";

/// The gate, which opens once.
#[derive(Clone)]
pub struct Gate {
    open: Arc<(Mutex<bool>, Condvar)>,
    dir: Arc<TempDir>,
}

impl Gate {
    pub fn closed() -> Self {
        Self { open: Arc::default(), dir: Arc::new(install_dir()) }
    }

    pub fn open(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
        write_file(self.dir.path(), "gate", "");
    }

    fn wait(&self) {
        let guard = self.open.0.lock().unwrap();
        drop(self.open.1.wait_while(guard, |open| !*open).unwrap());
    }

    /// A server of this process, for relay workers.
    pub fn upstream(&self) -> Upstream {
        let gate = self.clone();
        Upstream::start(move |mut stream: TcpStream| -> io::Result<()> {
            let mut head = [0; 1024];
            if stream.read(&mut head)? == 0 {
                return Ok(());
            }
            gate.wait();
            stream.write_all(ANSWER)
        })
    }

    /// The command of a server that gets the clients' sockets.
    pub fn command(&self, port: u16) -> Vec<String> {
        let script = write_file(self.dir.path(), "gated.py", SERVER);
        let gate = self.dir.path().join("gate");
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        vec!["python3".to_owned(), path(&script), port.to_string(), path(&gate)]
    }
}

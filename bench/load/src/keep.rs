//! Clients that keep their connection, post on it again and again, and never repeat a request: what reloads do to them.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::request::{TIMEOUT, exchange};

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\nsixteen bytes ..";

#[derive(Default)]
struct Counts {
    served: usize,
    /// Sent, at least in part, and the connection ended without a whole answer: nobody may send it again.
    lost: usize,
    /// No answer within ten seconds.
    hung: usize,
    /// Another answer than 200.
    failed: usize,
    refused: usize,
    connections: usize,
}

/// Posts until its standard input ends.
pub fn keep(target: SocketAddr, clients: usize, pause: Duration) -> io::Result<()> {
    let over = AtomicBool::new(false);
    let all: Vec<Counts> = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(|| client(target, pause, &over))).collect();
        println!("ready");
        let ended = io::stdin().read_to_end(&mut Vec::new());
        over.store(true, Relaxed);
        ended.map(|_| threads.into_iter().filter_map(|thread| thread.join().ok()).collect())
    })?;
    let sum = |of: fn(&Counts) -> usize| all.iter().map(of).sum::<usize>();
    let line = json!({
        "served": sum(|c| c.served), "lost": sum(|c| c.lost), "hung": sum(|c| c.hung), "failed": sum(|c| c.failed),
        "refused": sum(|c| c.refused), "connections": sum(|c| c.connections),
    });
    println!("{line}");
    Ok(())
}

fn client(target: SocketAddr, pause: Duration, over: &AtomicBool) -> Counts {
    let mut counts = Counts::default();
    let mut connection: Option<TcpStream> = None;
    while !over.load(Relaxed) {
        thread::sleep(pause);
        // As libraries do: a connection that was closed in the meantime is not used.
        let kept = connection.take().filter(is_open).or_else(|| {
            let stream = TcpStream::connect_timeout(&target, TIMEOUT).ok()?;
            stream.set_read_timeout(Some(TIMEOUT)).ok()?;
            counts.connections += 1;
            Some(stream)
        });
        let Some(mut stream) = kept else {
            counts.refused += 1;
            continue;
        };
        match exchange(&mut stream, POST) {
            Ok(answer) if answer.is_ok() => {
                counts.served += 1;
                connection = (!answer.says_close()).then_some(stream);
            }
            Ok(_) => counts.failed += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => counts.hung += 1,
            Err(_) => counts.lost += 1,
        }
    }
    counts
}

fn is_open(stream: &TcpStream) -> bool {
    let silent = stream.set_nonblocking(true).is_ok()
        && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    silent && stream.set_nonblocking(false).is_ok()
}

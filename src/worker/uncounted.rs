//! Whether a server has connections that its counters page may not know of, by the kernel's tables.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::proc_net;
use crate::sys::{clock, process, sockets};

/// How often a server's processes are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// The table of all connections is read for at most this part of the time: with many connections in TIME_WAIT that takes the
/// kernel tens of milliseconds, whatever is asked for.
const TABLE_SHARE: u32 = 20;

/// What is known of the sockets of one server, by their inodes.
#[derive(Debug, Default)]
pub struct Uncounted {
    /// When they were looked at last, and whether there was a connection of a client.
    looked: Option<(Instant, bool)>,
    clients: BTreeSet<u64>,
    others: BTreeSet<u64>,
    /// The table is not read again before.
    next_table: Option<Instant>,
}

impl Uncounted {
    /// The server has received something since.
    pub fn expire(&mut self) {
        self.looked = None;
    }

    /// Whether one of a server's processes has a connection on one of these ports. `alone`: also if it has only one process,
    /// whose connections are counted unless the count is an estimate.
    pub fn any(&mut self, root: u32, ports: &BTreeSet<u16>, alone: bool, now: Instant) -> bool {
        if let Some((at, open)) = self.looked
            && now.duration_since(at) < INTERVAL
        {
            return open;
        }
        let mut has = |pids: &[u32]| (alone || pids.len() > 1) && self.has_client(pids, ports, now);
        // The kernel's list may lack a child while another one ends.
        let open = has(&process::descendants(root)) || has(&process::tree(root));
        self.looked = Some((now, open));
        open
    }

    fn has_client(&mut self, pids: &[u32], ports: &BTreeSet<u16>, now: Instant) -> bool {
        let held: BTreeSet<u64> = pids.iter().copied().flat_map(sockets::tcp_sockets).collect();
        if !held.is_disjoint(&self.clients) {
            return true;
        }
        let new: Vec<u64> = held.difference(&self.others).copied().collect();
        if new.is_empty() {
            return false;
        }
        if self.next_table.is_some_and(|next| now < next) {
            return true;
        }
        let begin = clock::now();
        let connections = proc_net::connections_on(ports);
        self.next_table = Some(now + begin.elapsed() * TABLE_SHARE);
        let (clients, others): (Vec<_>, Vec<_>) = new.into_iter().partition(|inode| connections.contains(inode));
        let open = !clients.is_empty();
        self.clients.extend(clients);
        self.others.extend(others);
        open
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn clients_of_a_process_with_children_are_found_until_they_are_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        // Stays open, and its own port is another one.
        let outgoing = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & read word; exec 0<&-; wait"])
            .stdin(Stdio::from(OwnedFd::from(server)))
            .stdout(Stdio::from(OwnedFd::from(outgoing)))
            .spawn()
            .unwrap();
        let (root, ports) = (shell.id(), BTreeSet::from([port]));
        let mut uncounted = Uncounted::default();
        let mut until = |expected: bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while uncounted.any(root, &ports, false, Instant::now()) != expected {
                assert!(Instant::now() < end, "not {expected}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        until(true);
        client.write_all(b"close\n").unwrap();
        until(false);
        assert!(sockets::tcp_sockets(root).count() == 1 && process::tree(root).len() == 2);
        process::kill_tree(root);
        shell.wait().unwrap();
    }
}

//! Look-ups in /proc: which process has a port, which sockets a process has, its network namespace and environment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};

use procfs::net::TcpState;
use procfs::process::{FDTarget, all_processes};

use crate::sys::sock_diag::Found;
use crate::sys::{inspect, process, sock_diag, sockets};

/// `nginx (pid 12)`, or `None` when it is another user's or another namespace's process.
pub fn port_holder(port: u16) -> Option<String> {
    let listening = listening().into_iter().filter(|&(listens, _)| listens == port);
    let inodes: Vec<u64> = listening.map(|(_, inode)| inode).collect();
    let holds = |target: &FDTarget| matches!(target, FDTarget::Socket(inode) if inodes.contains(inode));
    for process in all_processes().ok()?.flatten() {
        let Ok(mut fds) = process.fd() else { continue };
        if fds.any(|fd| fd.is_ok_and(|fd| holds(&fd.target))) {
            let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
            return Some(format!("{name} (pid {})", process.pid()));
        }
    }
    None
}

/// The inodes of all connections on these local ports.
pub fn connections_on(ports: &BTreeSet<u16>) -> BTreeSet<u64> {
    let only = if ports.len() == 1 { ports.first().copied() } else { None };
    let all = sock_diag::connections(only.unwrap_or(0)).unwrap_or_else(|_| connections());
    all.into_iter().filter(|socket| ports.contains(&socket.port)).map(|socket| socket.inode).collect()
}

/// All connections, from the tables of /proc.
fn connections() -> Vec<Found> {
    let (v4, v6) = (procfs::net::tcp().unwrap_or_default(), procfs::net::tcp6().unwrap_or_default());
    let connected = v4.into_iter().chain(v6).filter(|entry| entry.state != TcpState::Listen);
    connected.map(|entry| Found { port: entry.local_address.port(), inode: entry.inode }).collect()
}

/// The ports on which a process or its descendants listen.
pub fn ports_of(root: u32) -> BTreeSet<u16> {
    listeners_of(root).into_keys().collect()
}

/// The same, each with one of the processes that have it.
pub fn listeners_of(root: u32) -> BTreeMap<u16, u32> {
    let inodes = |pid| sockets::sockets(pid).map(move |inode| (inode, pid));
    let holders: BTreeMap<u64, u32> = process::descendants(root).into_iter().flat_map(inodes).collect();
    let held = |(port, inode)| Some((port, *holders.get(&inode)?));
    if holders.is_empty() { BTreeMap::new() } else { listening().into_iter().filter_map(held).collect() }
}

/// Ports and inodes of all listening sockets.
fn listening() -> Vec<(u16, u64)> {
    match sock_diag::listening() {
        Ok(sockets) => sockets.into_iter().map(|socket| (socket.port, socket.inode)).collect(),
        Err(_) => ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(listening_in).collect(),
    }
}

/// The same from a table of /proc. The kernel shows listening sockets first; the rest, which may be tens of thousands of
/// connections, is not read.
fn listening_in(table: &str) -> Vec<(u16, u64)> {
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
    let entry = |line: String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = words.get(1)?.rsplit_once(':')?;
        let listens = *words.get(3)? == "0A";
        listens.then_some((u16::from_str_radix(port, 16).ok()?, words.get(9)?.parse().ok()?))
    };
    let Ok(file) = std::fs::File::open(table) else { return Vec::new() };
    BufReader::new(file).lines().skip(1).map_while(Result::ok).map_while(entry).collect()
}

/// The Unix sockets with a name on which one of these processes listens.
pub fn unix_sockets_of(pids: &[u32]) -> Vec<String> {
    /// Among the flags of a socket: it listens.
    const LISTENS: u32 = 0x1_0000;
    let own: Vec<u64> = pids.iter().copied().flat_map(sockets::sockets).collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // Num RefCount Protocol Flags Type St Inode Path
    let listening = |line: &str| {
        let mut words = line.split_whitespace().skip(3);
        let flags = u32::from_str_radix(words.next()?, 16).ok()?;
        let inode: u64 = words.nth(2)?.parse().ok()?;
        let path = words.next()?;
        (flags & LISTENS != 0 && own.contains(&inode)).then(|| path.to_owned())
    };
    table.lines().skip(1).filter_map(listening).collect()
}

/// Whether one of these processes is in another network namespace than we are.
pub fn is_in_another_network(pids: &[u32]) -> bool {
    let namespace = |pid: u32| inspect::look(pid, || std::fs::read_link(format!("/proc/{pid}/ns/net"))).ok();
    let own = namespace(std::process::id());
    pids.iter().filter_map(|&pid| namespace(pid)).any(|other| Some(other) != own)
}

/// Whether a process was started without this environment variable.
pub fn lacks_variable(pid: u32, name: &str) -> bool {
    let start = [name.as_bytes(), b"="].concat();
    let environment = inspect::look(pid, || std::fs::read(format!("/proc/{pid}/environ")));
    environment.is_ok_and(|all| !all.split(|&byte| byte == 0).any(|entry| entry.starts_with(&start)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_same_listeners() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|address| std::net::TcpListener::bind(address).unwrap());
        let tables: Vec<_> = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(listening_in).collect();
        let found = listening();
        for listener in listeners {
            let inode = crate::sys::sock::inode(std::os::fd::AsFd::as_fd(&listener)).unwrap();
            let own = (listener.local_addr().unwrap().port(), inode);
            // Others may listen on that port of another address.
            assert!(found.contains(&own) && tables.contains(&own));
        }
    }
}

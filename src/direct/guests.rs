//! Limits for connections to the attach socket: which processes may connect, how often, and for how long without a proof.
//!
//! /proc/net/unix shows the socket's name, so every local user can connect. Nothing is received from a connection that is
//! not admitted, and it is closed by [`closer`](crate::sys::closer).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::attach::Secret;
use crate::limited::OfUsers;
use crate::record::{Fd, Found, Kept, Moment};
use crate::sys::closer::Foreign;
use crate::sys::process;

/// Connections of one process: one that stays, a lease, and one for each concurrent request of its threads.
const MAX_PER_PROCESS: usize = 64;
/// Connections without a proof; one more replaces another.
const MAX_UNPROVEN: usize = 64;
/// Time limit for a connection's first request; libraries send it at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Searches of /proc per second on behalf of one foreign user; also the burst after a pause.
const SEARCH_RATE: f64 = 100.0;
/// Connections of one foreign user that wait for a search.
const MAX_WAITING_PER_USER: usize = 16;
/// Connections of all foreign users that wait for a search.
const MAX_WAITING: usize = 256;
/// Foreign users whose searches are counted.
const MAX_USERS: usize = 1024;

/// The users and processes that belong to the daemon.
#[derive(Debug, Default)]
pub struct Ours {
    /// Root, the daemon's own user and those of its services.
    pub users: Vec<u32>,
    /// Pids of the servers that it started.
    pub servers: Vec<u32>,
}

/// One connection.
#[derive(Debug)]
pub struct Guest {
    pub socket: Foreign,
    /// As SO_PEERCRED says; 0 for a process outside our pid namespace.
    pub pid: u32,
    /// As SO_PEERCRED says.
    pub uid: u32,
    pub since: Instant,
    /// The proof of its last request that was admitted.
    pub proven: Option<Secret>,
}

/// The same in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct GuestRecord {
    socket: Fd,
    pid: u32,
    uid: u32,
    since: Moment,
    proven: Option<Secret>,
}

impl Guest {
    fn record(&self, kept: &mut Kept) -> GuestRecord {
        let Self { socket, pid, uid, since, proven } = self;
        GuestRecord { socket: kept.keep(socket), pid: *pid, uid: *uid, since: (*since).into(), proven: *proven }
    }

    /// # Errors
    /// When its socket is not there.
    pub fn adopt(record: GuestRecord, found: &mut Found) -> io::Result<Self> {
        let GuestRecord { socket, pid, uid, since, proven } = record;
        Ok(Self { socket: Foreign::socket(found.take(socket)?), pid, uid, since: since.into(), proven })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    LetIn,
    Refused,
    /// Its user has used up its searches until then.
    Later(Instant),
}

#[derive(Debug)]
pub struct Guests {
    inside: HashMap<u32, Guest>,
    /// Connections that wait for a search, oldest first.
    waiting: VecDeque<Guest>,
    looks: OfUsers,
    most: usize,
}

impl Guests {
    pub fn new(most: usize) -> Self {
        Self { inside: HashMap::new(), waiting: VecDeque::new(), looks: OfUsers::new(SEARCH_RATE, MAX_USERS), most }
    }

    /// # Errors
    /// Why they cannot be taken over now.
    pub fn record(&self, kept: &mut Kept) -> Result<Vec<GuestRecord>, String> {
        let Self { inside, waiting, looks: _, most: _ } = self;
        if !waiting.is_empty() {
            return Err("processes of servers are being looked for".to_owned());
        }
        Ok(inside.values().map(|guest| guest.record(kept)).collect())
    }

    /// One that was admitted before.
    pub fn put(&mut self, number: u32, guest: Guest) {
        self.inside.insert(number, guest);
    }

    pub fn get(&self, number: u32) -> Option<&Guest> {
        self.inside.get(&number)
    }

    pub fn prove(&mut self, number: u32, secret: Secret) {
        if let Some(guest) = self.inside.get_mut(&number) {
            guest.proven = Some(secret);
        }
    }

    pub fn remove(&mut self, number: u32) {
        self.inside.remove(&number);
    }

    /// Judges a new connection and returns it if it is admitted. One that has to wait is returned by [`Guests::due`] later.
    ///
    /// # Errors
    /// The connection when it is refused.
    pub fn arrives(&mut self, guest: Guest, ours: &Ours, now: Instant) -> Result<Option<Guest>, Guest> {
        match self.judge(&guest, ours, now) {
            Verdict::LetIn => Ok(Some(guest)),
            Verdict::Refused => Err(guest),
            Verdict::Later(_) => {
                let same = self.waiting.iter().filter(|other| other.uid == guest.uid).count();
                if same >= MAX_WAITING_PER_USER || self.waiting.len() >= MAX_WAITING {
                    return Err(guest);
                }
                self.waiting.push_back(guest);
                Ok(None)
            }
        }
    }

    /// The next connection that has waited and is admitted; those that are refused are closed.
    pub fn due(&mut self, ours: &Ours, now: Instant) -> Option<Guest> {
        for _ in 0..self.waiting.len() {
            let guest = self.waiting.pop_front()?;
            match self.judge(&guest, ours, now) {
                Verdict::LetIn => return Some(guest),
                Verdict::Refused => {}
                Verdict::Later(_) => self.waiting.push_back(guest),
            }
        }
        None
    }

    /// A server may have changed its user; then it has to be below one that we started.
    fn judge(&mut self, guest: &Guest, ours: &Ours, now: Instant) -> Verdict {
        if guest.pid == 0 {
            return Verdict::Refused;
        }
        if ours.users.contains(&guest.uid) {
            return Verdict::LetIn;
        }
        if let Err(again) = self.looks.take(guest.uid, now) {
            return again.map_or(Verdict::Refused, Verdict::Later);
        }
        if process::is_below(guest.pid, &ours.servers) { Verdict::LetIn } else { Verdict::Refused }
    }

    /// Adds an admitted connection; `others` counts towards the limit, too.
    ///
    /// # Errors
    /// The connection when there are too many.
    pub fn enter(&mut self, number: u32, guest: Guest, others: usize) -> Result<(), Guest> {
        let of_process = self.inside.values().filter(|other| other.pid == guest.pid).count();
        if of_process >= MAX_PER_PROCESS {
            return Err(guest);
        }
        let full = self.inside.len() + others >= self.most;
        let unproven = self.inside.values().filter(|other| other.proven.is_none()).count();
        if full || unproven >= MAX_UNPROVEN {
            let Some(last) = self.to_evict() else { return Err(guest) };
            self.inside.remove(&last);
        }
        self.inside.insert(number, guest);
        Ok(())
    }

    /// Of the connections without a proof, the oldest of the user with the most, so that one user cannot push out another's.
    fn to_evict(&self) -> Option<u32> {
        let mut of_user: HashMap<u32, usize> = HashMap::new();
        let unproven = || self.inside.iter().filter(|(_, guest)| guest.proven.is_none());
        unproven().for_each(|(_, guest)| *of_user.entry(guest.uid).or_default() += 1);
        let rank = |guest: &Guest| std::cmp::Reverse(of_user.get(&guest.uid).copied().unwrap_or(0));
        unproven().min_by_key(|(_, guest)| (rank(guest), guest.since)).map(|(&number, _)| number)
    }

    /// Closes connections that sent no request in time.
    pub fn expire(&mut self, now: Instant) {
        self.inside.retain(|_, guest| guest.proven.is_some() || now.duration_since(guest.since) < REQUEST_TIMEOUT);
    }

    /// The time when a connection expires or can be searched for.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let unproven =
            self.inside.values().filter(|guest| guest.proven.is_none()).map(|guest| guest.since + REQUEST_TIMEOUT);
        let look = (!self.waiting.is_empty()).then(|| now + Duration::from_secs_f64(1.0 / SEARCH_RATE));
        unproven.chain(look).min()
    }

    pub fn count(&self) -> usize {
        self.inside.len()
    }

    pub fn has(&self, number: u32) -> bool {
        self.inside.contains_key(&number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::sock::seqpacket_pair;

    fn guest(pid: u32, uid: u32, since: Instant) -> Guest {
        Guest { socket: Foreign::socket(seqpacket_pair().unwrap().0), pid, uid, since, proven: None }
    }

    #[test]
    fn one_user_cannot_push_out_another_ones_connection() {
        let (mut guests, start) = (Guests::new(1000), Instant::now());
        guests.enter(0, guest(9, 33, start), 0).unwrap();
        guests.enter(1, guest(10, 1000, start), 0).unwrap();
        for n in 2..1000 {
            let since = start + Duration::from_millis(n.into());
            guests.enter(n, guest(10 + n, 1000, since), 0).unwrap();
        }
        assert_eq!(guests.count(), MAX_UNPROVEN);
        // The oldest of the user with most went.
        assert!(guests.has(0) && !guests.has(1) && guests.has(999));
    }

    #[test]
    fn one_process_has_a_share_and_a_proof_keeps_its_place() {
        let (mut guests, now) = (Guests::new(100), Instant::now());
        for n in 0..MAX_PER_PROCESS as u32 {
            guests.enter(n, guest(7, 33, now), 0).unwrap();
            guests.prove(n, [0; 16]);
        }
        assert!(guests.enter(500, guest(7, 33, now), 0).is_err());
        for n in 0..36 {
            guests.enter(600 + n, guest(1000 + n, 33, now), 0).unwrap();
            guests.prove(600 + n, [0; 16]);
        }
        // Full, and all have a proof; with watched processes it is full earlier.
        assert!(guests.enter(700, guest(3, 33, now), 0).is_err());
        guests.remove(600);
        assert!(guests.enter(700, guest(3, 33, now), 1).is_err());
        guests.enter(700, guest(3, 33, now), 0).unwrap();
        guests.enter(701, guest(4, 33, now), 0).unwrap();
        assert!(guests.has(701) && !guests.has(700));
    }

    #[test]
    fn a_connection_that_asks_nothing_is_closed_in_time() {
        let (mut guests, now) = (Guests::new(100), Instant::now());
        guests.enter(0, guest(7, 33, now), 0).unwrap();
        guests.enter(1, guest(7, 33, now), 0).unwrap();
        guests.prove(1, [0; 16]);
        assert_eq!(guests.deadline(now), Some(now + REQUEST_TIMEOUT));
        guests.expire(now + REQUEST_TIMEOUT);
        assert_eq!((guests.has(0), guests.has(1), guests.deadline(now)), (false, true, None));
    }

    #[test]
    fn a_foreign_user_comes_in_below_a_server_and_waits_when_it_comes_too_often() {
        let (mut guests, now) = (Guests::new(100), Instant::now());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (own, parent) = (child.id(), std::os::unix::process::parent_id());
        let ours = Ours { users: vec![0], servers: vec![std::process::id()] };
        let none = Ours { users: vec![0], servers: Vec::new() };
        assert!(guests.arrives(guest(own, 5, now), &ours, now).unwrap().is_some());
        assert!(guests.arrives(guest(0, 0, now), &ours, now).is_err(), "a process that cannot be seen");
        let strangers = (0..1000).filter(|_| guests.arrives(guest(parent, 6, now), &none, now).is_err()).count();
        assert_eq!(strangers, 1000 - MAX_WAITING_PER_USER);
        // Another user has looks of its own.
        assert!(guests.arrives(guest(own, 5, now), &ours, now).unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        // The one that used up its looks gets its turn later.
        let later = now + Duration::from_secs(1);
        assert!(guests.due(&none, later).is_none() && guests.waiting.is_empty());
    }
}

//! The attach socket in a daemon's record.

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::{AttachServer, Leased, Secret};
use crate::direct::guests::{Guest, GuestRecord};
use crate::events::{Registry, Source};
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct AttachRecord {
    listener: Fd,
    name: String,
    guests: Vec<GuestRecord>,
    leased: Vec<(Fd, u32, Secret)>,
}

impl AttachServer {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, kept: &mut Kept) -> Result<AttachRecord, String> {
        let Self { listener, name, guests, leased, next: _, registry: _, most: _, again: _, refused: _, trouble: _ } =
            self;
        let leased = leased.values().map(|Leased { pidfd, pid, secret }| (kept.keep(pidfd), *pid, *secret)).collect();
        Ok(AttachRecord { listener: kept.keep(listener), name: name.clone(), guests: guests.record(kept)?, leased })
    }

    /// # Errors
    /// When a descriptor is not there, and as epoll_ctl(2).
    pub fn adopt(record: AttachRecord, found: &mut Found, registry: &Registry, nofile: u64) -> io::Result<Self> {
        let AttachRecord { listener, name, guests, leased } = record;
        let mut server = Self::on(Socket::from(found.take(listener)?), name, registry, nofile)?;
        // Those that connected meanwhile.
        server.again = Some(Instant::now());
        for guest in guests {
            let (number, guest) = (server.free_number(), Guest::adopt(guest, found)?);
            registry.watch(Source::Attached(number), &guest.socket)?;
            server.guests.put(number, guest);
        }
        for (pidfd, pid, secret) in leased {
            let (number, pidfd) = (server.free_number(), found.take(pidfd)?);
            registry.watch(Source::Attached(number), &pidfd)?;
            server.leased.insert(number, Leased { pidfd, pid, secret });
        }
        Ok(server)
    }
}

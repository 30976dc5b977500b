//! The control socket in a daemon's record.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use mio::net::{UnixListener, UnixStream};
use serde::{Deserialize, Serialize};

use super::{Client, ControlServer};
use crate::events::{Registry, Source};
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct ControlRecord {
    listener: Fd,
    pub path: PathBuf,
    inode: Option<(u64, u64)>,
    clients: Vec<ClientRecord>,
    next: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClientRecord {
    number: u32,
    stream: Fd,
    part: Vec<u8>,
    answer: Vec<u8>,
    awaited: usize,
    ended: bool,
}

impl ControlServer {
    pub fn record(&self, kept: &mut Kept) -> ControlRecord {
        let Self { listener, file: (path, inode), clients, next, registry: _ } = self;
        let clients = clients.iter().map(|(number, client)| {
            let Client { stream, requests, answer, heard: _, awaited, ended, unread: _ } = client;
            ClientRecord {
                number: *number,
                stream: kept.keep(stream),
                part: requests.rest().to_vec(),
                answer: answer.clone(),
                awaited: *awaited,
                ended: *ended,
            }
        });
        let clients = clients.collect();
        ControlRecord { listener: kept.keep(listener), path: path.clone(), inode: *inode, clients, next: *next }
    }

    /// # Errors
    /// When a descriptor is not there, and as epoll_ctl(2).
    pub fn adopt(record: ControlRecord, found: &mut Found, registry: &Registry) -> io::Result<Self> {
        let ControlRecord { listener, path, inode, clients, next } = record;
        let listener = UnixListener::from_std(found.take(listener)?.into());
        registry.watch(Source::ControlListener, &listener)?;
        let mut all = HashMap::new();
        for ClientRecord { number, stream, part, answer, awaited, ended } in clients {
            let stream = UnixStream::from_std(found.take(stream)?.into());
            registry.watch(Source::ControlClient(number), &stream)?;
            let mut client = Client { answer, awaited, ended, unread: true, ..Client::new(stream) };
            client.requests.push(&part)?;
            all.insert(number, client);
        }
        Ok(Self { listener, file: (path, inode), clients: all, next, registry: registry.clone() })
    }
}

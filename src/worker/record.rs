//! Workers in a daemon's record.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::attachment::Attachment;
use super::delivery::{Library, LibraryRecord};
use super::ipc::{Ipc, IpcRecord};
use super::listen_watch::ListenWatch;
use super::notify::{Notify, NotifyRecord};
use super::relay::{Relay, RelayRecord};
use super::server::{Server, StopRequest};
use super::sessions::Sessions;
use super::stand_ins::Left;
use super::{Context, Kind, Worker};
use crate::accept::orders::{ListenerId, Order, SlotStats, WorkerId};
use crate::access::{Access, WorkerLog};
use crate::direct::attach::Secret;
use crate::handoff::page::CountersPage;
use crate::handoff::translations::TranslationsFile;
use crate::handoff::{QueueRecord, QueueTx};
use crate::record::{Fd, Found, Kept, Moment};
use crate::worker::children::Owner;

#[derive(Debug, Serialize, Deserialize)]
pub struct ServerRecord {
    pub pid: u32,
    address: Option<SocketAddr>,
    since: Moment,
    listen_watch: u8,
    trouble: Option<String>,
    refused: Option<String>,
    mark: String,
    notify: Option<NotifyRecord>,
    ipc: Option<IpcRecord>,
    inspect: Option<u16>,
    /// Whether by a message, and when.
    #[serde(default)]
    asked_to_stop: Option<(bool, Moment)>,
}

impl Server {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, kept: &mut Kept) -> Result<ServerRecord, String> {
        let Self {
            pid,
            address,
            probe,
            since,
            listen_watch,
            trouble,
            refused,
            stop_request,
            mark,
            notify,
            ipc,
            inspect,
        } = self;
        if probe.is_some() {
            return Err("a server is being started".to_owned());
        }
        let ipc = ipc.as_ref().map(|ipc| ipc.record(kept)).transpose().map_err(|error| error.to_string())?;
        Ok(ServerRecord {
            pid: *pid,
            address: *address,
            since: (*since).into(),
            listen_watch: match listen_watch {
                ListenWatch::NotYet => 0,
                ListenWatch::Ports => 1,
                ListenWatch::Silence => 2,
            },
            trouble: trouble.clone(),
            refused: refused.clone(),
            mark: mark.clone(),
            notify: notify.as_ref().map(|notify| notify.record(kept)),
            ipc,
            inspect: *inspect,
            asked_to_stop: match *stop_request {
                StopRequest::NotSent => None,
                StopRequest::ByMessage(at) => Some((true, at.into())),
                StopRequest::BySignal(at) => Some((false, at.into())),
            },
        })
    }

    /// # Errors
    /// When a descriptor is not there.
    pub fn adopt(record: ServerRecord, owner: Owner, found: &mut Found, context: &Context) -> io::Result<Self> {
        let ServerRecord {
            pid,
            address,
            since,
            listen_watch,
            trouble,
            refused,
            mark,
            notify,
            ipc,
            inspect,
            asked_to_stop,
        } = record;
        context.children.add(pid, owner);
        Ok(Self {
            pid,
            address,
            probe: None,
            since: since.into(),
            listen_watch: match listen_watch {
                0 => ListenWatch::NotYet,
                1 => ListenWatch::Ports,
                _ => ListenWatch::Silence,
            },
            trouble,
            refused,
            stop_request: match asked_to_stop {
                None => StopRequest::NotSent,
                Some((true, at)) => StopRequest::ByMessage(at.into()),
                Some((false, at)) => StopRequest::BySignal(at.into()),
            },
            mark,
            notify: notify.map(|notify| Notify::adopt(notify, found, &context.registry)).transpose()?,
            ipc: ipc.map(|ipc| Ipc::adopt(ipc, pid, found, &context.registry)).transpose()?,
            inspect,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct AttachmentRecord {
    secret: Secret,
    page: Fd,
    bell: Option<Fd>,
    /// Its number at the access log.
    #[serde(default)]
    log: Option<u64>,
    translations: Option<Fd>,
    queues: Vec<(ListenerId, QueueRecord)>,
    listening: BTreeSet<ListenerId>,
    bound: BTreeMap<ListenerId, BTreeSet<u32>>,
    addresses: BTreeMap<ListenerId, BTreeSet<SocketAddr>>,
    exclusive: BTreeSet<ListenerId>,
    ports: BTreeSet<u16>,
    passed: BTreeSet<u16>,
    pid: Option<u32>,
    leased: BTreeSet<u32>,
    #[serde(default)]
    sessions: Sessions,
    adopted: BTreeSet<u32>,
    abandoned: Option<Moment>,
    /// Stand-ins that a process has closed, and which one: others may have them.
    closed: Vec<(ListenerId, u32)>,
    inherited: bool,
    #[serde(default)]
    moves: bool,
    /// Its place among the libraries of the record.
    library: usize,
}

/// The preload libraries of a record: several workers have the same one.
#[derive(Debug, Default, Clone)]
pub struct Libraries {
    known: Vec<Arc<Library>>,
}

impl Libraries {
    fn place(&mut self, library: &Arc<Library>) -> usize {
        let place = self.known.iter().position(|known| Arc::ptr_eq(known, library));
        place.unwrap_or_else(|| {
            self.known.push(library.clone());
            self.known.len() - 1
        })
    }

    pub fn record(&self, kept: &mut Kept) -> Vec<LibraryRecord> {
        self.known.iter().map(|library| library.record(kept)).collect()
    }

    /// # Errors
    /// When a file is not there.
    pub fn adopt(records: Vec<LibraryRecord>, found: &mut Found) -> io::Result<Self> {
        let known = records.into_iter().map(|record| Library::adopt(record, found).map(Arc::new));
        Ok(Self { known: known.collect::<io::Result<_>>()? })
    }

    fn get(&self, place: usize) -> io::Result<Arc<Library>> {
        self.known.get(place).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Attachment {
    fn record(&self, libraries: &mut Libraries, kept: &mut Kept) -> Result<AttachmentRecord, String> {
        let Self {
            secret,
            page: _,
            page_fd,
            bell,
            log,
            translations,
            queues,
            listening,
            bound,
            addresses,
            exclusive,
            ports,
            passed,
            pid,
            leased,
            sessions,
            adopted,
            abandoned,
            left: Left { looks, not_before: _, inherited, silent: _ },
            moves,
            uncounted: _,
            empty: _,
            library,
        } = self;
        Ok(AttachmentRecord {
            secret: *secret,
            page: kept.keep(page_fd),
            bell: bell.as_ref().map(|bell| kept.keep(bell)),
            log: log.as_ref().map(WorkerLog::number),
            translations: translations.as_ref().map(|file| kept.keep(file)),
            queues: queues.iter().map(|(id, queue)| (*id, queue.record(kept))).collect(),
            listening: listening.clone(),
            bound: bound.clone(),
            addresses: addresses.clone(),
            exclusive: exclusive.clone(),
            ports: ports.clone(),
            passed: passed.clone(),
            pid: *pid,
            leased: leased.clone(),
            sessions: sessions.clone(),
            adopted: adopted.clone(),
            abandoned: abandoned.map(Moment::from),
            closed: looks.iter().map(|(id, look)| (*id, look.closer)).collect(),
            inherited: *inherited,
            moves: *moves,
            library: libraries.place(library),
        })
    }

    fn adopt(record: AttachmentRecord, libraries: &Libraries, found: &mut Found, access: &Access) -> io::Result<Self> {
        let AttachmentRecord {
            secret,
            page,
            bell,
            log,
            translations,
            queues,
            listening,
            bound,
            addresses,
            exclusive,
            ports,
            passed,
            pid,
            leased,
            sessions,
            adopted,
            abandoned,
            closed,
            inherited,
            moves,
            library,
        } = record;
        let page_fd = found.take(page)?;
        let page = Arc::new(CountersPage::attach(page_fd.as_fd())?);
        let mut new = Self::new(secret, page, page_fd, libraries.get(library)?);
        new.bell = bell.map(|fd| found.take(fd)).transpose()?;
        new.log = log.map(|number| access.worker_log(number)).transpose()?;
        new.translations = translations.map(|fd| found.take(fd)).transpose()?.map(TranslationsFile::adopt);
        for (id, queue) in queues {
            new.queues.insert(id, Arc::new(QueueTx::adopt(queue, found)?));
        }
        (new.listening, new.bound, new.addresses, new.exclusive) = (listening, bound, addresses, exclusive);
        (new.ports, new.passed, new.pid, new.leased, new.adopted) = (ports, passed, pid, leased, adopted);
        (new.sessions, new.abandoned) = (sessions, abandoned.map(Instant::from));
        (new.left, new.moves) = (Left::of_closed(closed, inherited), moves);
        Ok(new)
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum KindRecord {
    Direct(ServerRecord, Box<AttachmentRecord>),
    Relay(Option<RelayRecord>, Option<ServerRecord>, Vec<(ListenerId, QueueRecord)>),
    NoPort(ServerRecord),
}

/// A worker in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerRecord {
    generation: u64,
    kind: KindRecord,
}

/// The queues of a relay worker that its daemon found.
pub type Queues = Vec<(ListenerId, Arc<QueueTx>)>;

impl Worker {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, libraries: &mut Libraries, kept: &mut Kept) -> Result<WorkerRecord, String> {
        let Self { id, kind, queues } = self;
        let kind = match kind {
            Kind::Direct { server, attachment } => {
                KindRecord::Direct(server.record(kept)?, Box::new(attachment.record(libraries, kept)?))
            }
            Kind::Relay { relay, server } => {
                // Those of listeners that are gone are gone, too.
                let queues = queues.iter().enumerate().filter_map(|(id, queue)| Some((id, Weak::upgrade(queue)?)));
                let queues = queues.map(|(id, queue)| (id, queue.record(kept))).collect();
                let relay = relay.as_ref().map(|relay| relay.record(kept)).transpose()?;
                KindRecord::Relay(relay, server.as_ref().map(|server| server.record(kept)).transpose()?, queues)
            }
            Kind::NoPort { server } => KindRecord::NoPort(server.record(kept)?),
        };
        Ok(WorkerRecord { generation: id.generation, kind })
    }

    /// The worker, and its queues if it is a relay worker.
    ///
    /// # Errors
    /// When a descriptor is not there.
    pub fn adopt(
        WorkerRecord { generation, kind }: WorkerRecord,
        owner: Owner,
        libraries: &Libraries,
        found: &mut Found,
        context: &Context,
    ) -> io::Result<(Self, Queues)> {
        let mut all = Queues::new();
        let kind = match kind {
            KindRecord::Direct(server, attachment) => Kind::Direct {
                server: Server::adopt(server, owner, found, context)?,
                attachment: Box::new(Attachment::adopt(*attachment, libraries, found, &context.access)?),
            },
            KindRecord::Relay(relay, server, queues) => {
                for (id, queue) in queues {
                    all.push((id, Arc::new(QueueTx::adopt(queue, found)?)));
                }
                let server = server.map(|server| Server::adopt(server, owner, found, context)).transpose()?;
                let relay = relay.map(|relay| Relay::adopt(relay, found, context)).transpose()?;
                relay.iter().for_each(|relay| context.children.add(relay.pid, owner));
                Kind::Relay { relay, server }
            }
            KindRecord::NoPort(server) => Kind::NoPort { server: Server::adopt(server, owner, found, context)? },
        };
        let id = WorkerId { service: owner.service, slot: owner.slot.unwrap_or(0), generation };
        Ok((Self { id, kind, queues: Vec::new() }, all))
    }

    /// What gives one that is online to the accept thread, as it had it before.
    pub fn give(&mut self, mut queues: Queues, stats: &Arc<SlotStats>) -> Option<Order> {
        let page = match &self.kind {
            Kind::Direct { attachment, .. } => {
                let listening = attachment.queues.iter().filter(|(id, _)| attachment.listening.contains(id));
                queues = listening.map(|(&id, queue)| (id, queue.clone())).collect();
                attachment.page.clone()
            }
            Kind::Relay { relay: Some(relay), .. } => relay.page.clone(),
            Kind::Relay { relay: None, .. } | Kind::NoPort { .. } => return None,
        };
        self.queues = queues.iter().map(|(_, queue)| Arc::downgrade(queue)).collect();
        Some(Order::Online { worker: self.id, queues, page, stats: stats.clone() })
    }
}

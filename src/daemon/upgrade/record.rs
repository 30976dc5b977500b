//! All that a daemon leaves to the program that takes its place.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::super::Daemon;
use super::super::signals::Terminal;
use super::super::systemd::SystemdRecord;
use crate::accept::record::Told;
use crate::access::record::{AccessRecord, BookRecord};
use crate::config::merge::Settings;
use crate::control::server::ControlRecord;
use crate::direct::attach::AttachRecord;
use crate::output::servers::SourceRecord;
use crate::record::{Fd, Kept, Moment};
use crate::service::Service;
use crate::service::record::ServiceRecord;
use crate::worker::delivery::LibraryRecord;
use crate::worker::record::Libraries;
use crate::worker::{Context, start};

/// This record, and what running workers speak. A program understands records of its own version and the one before: fields that it
/// does not know are passed over, and new ones need a default (`serde(default)`). So the number grows when that is not enough.
pub const VERSIONS: [u32; 3] = [1, crate::abi::attach::VERSION as u32, crate::abi::payload::VERSION as u32];

/// What is read first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    pub versions: Vec<u32>,
    /// Of the program that wrote it.
    pub version: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct DaemonRecord {
    #[serde(flatten)]
    pub head: Head,
    pub name: String,
    /// The daemon's own, then those of each service.
    pub settings: Settings,
    pub of_services: Vec<Settings>,
    pub services: Vec<ServiceRecord>,
    pub libraries: Vec<LibraryRecord>,
    pub control: Option<ControlRecord>,
    pub attach: Option<AttachRecord>,
    #[serde(default)]
    pub systemd: Option<SystemdRecord>,
    pub admin: Option<Fd>,
    pub bell: Option<Fd>,
    pub outputs: Vec<SourceRecord>,
    #[serde(default)]
    pub access: AccessRecord,
    pub started: Moment,
    pub had_terminal: bool,
    /// The soft file limit with which the daemon was started.
    pub nofile: u64,
    pub marks: u64,
    /// The control client that asked for the upgrade.
    pub client: Option<u32>,
    /// The name of the working directory, which may mean another one by now.
    #[serde(default)]
    pub cwd: Option<OsString>,
    /// All descriptors in it.
    pub fds: Vec<Fd>,
}

impl Daemon {
    /// The record, and the descriptors that have to stay open. `told`: what the accept thread has, which stands still, as do
    /// the others; `None` for a trial.
    ///
    /// # Errors
    /// Why the daemon cannot be taken over now.
    pub(super) fn record(
        &self,
        told: Option<Told>,
        outputs: Vec<SourceRecord>,
        books: Vec<BookRecord>,
        client: Option<u32>,
    ) -> Result<(DaemonRecord, Kept), String> {
        let Self {
            poll: _,
            signals: _,
            waker: _,
            reports: _,
            control,
            questions: _,
            token: _,
            context: Context { launcher, orders, access, attach, ports: _, nofile: _, registry: _, children: _ },
            config,
            services,
            next_id: _,
            started,
            cpu: _,
            unread: _,
            refused: _,
            nonsense: _,
            waiting,
            terminal,
            stopping,
            systemd,
            admin,
            log: _,
            trial: _,
        } = self;
        if stopping.is_some() {
            return Err("the daemon is stopping".to_owned());
        }
        if !waiting.is_empty() {
            return Err("another command is under way".to_owned());
        }
        let (mut libraries, mut kept) = (Libraries::default(), Kept::default());
        let mut accepts = Vec::new();
        if let Some(Told { services, kept: theirs }) = told {
            accepts = services;
            kept.join(theirs);
        }
        let records = services.iter().map(|service| {
            let accepts = accepts.get(service.id()).cloned();
            ServiceRecord::of(service, accepts, &mut libraries, &mut kept)
        });
        let (records, of_services) = records.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let attach = attach.as_ref().map(|attach| attach.record(&mut kept)).transpose()?;
        kept.add(outputs.iter().map(SourceRecord::pipe));
        let mut record = DaemonRecord {
            head: Head { versions: VERSIONS.to_vec(), version: env!("CARGO_PKG_VERSION").to_owned() },
            name: config.name.clone(),
            settings: config.settings.clone(),
            of_services,
            services: records,
            libraries: libraries.record(&mut kept),
            control: control.as_ref().map(|control| control.record(&mut kept)),
            attach,
            systemd: systemd.as_ref().map(|systemd| systemd.record(services)),
            admin: admin.as_ref().map(|admin| kept.keep(admin)),
            bell: orders.known_bell().map(|bell| kept.keep(bell)),
            outputs,
            access: access.record(books, services.iter().map(Service::id), &mut kept),
            started: (*started).into(),
            had_terminal: *terminal == Terminal::Had,
            nofile: launcher.nofile().soft,
            marks: start::marks(),
            client,
            cwd: launcher.cwd().map(Into::into),
            fds: Vec::new(),
        };
        record.fds = kept.all().to_vec();
        Ok((record, kept))
    }
}

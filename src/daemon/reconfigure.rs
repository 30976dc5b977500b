//! The configuration file, read again: services that come, change and go.

use std::time::Instant;

use tracing::{info, warn};

use super::error::DaemonError;
use super::{Daemon, inherited, listen_fds, waiting};
use crate::accept::orders::ServiceId;
use crate::addr::Listen;
use crate::config::file::OF_DAEMON;
use crate::config::merge::{Settings, changes};
use crate::config::{Backend, Config, ServiceConfig};
use crate::direct::attach::AttachServer;
use crate::listener::Listener;
use crate::program::hints::package_manager;
use crate::service::Service;
use crate::service::operations::{Networks, News, Operation, Progress};
use crate::worker::Delivery;
use crate::worker::ipc::Mode;

/// What a reload, or another order, has begun.
#[derive(Debug, Default)]
pub struct Begun {
    /// Operations whose end the client is told.
    pub operations: Vec<waiting::Operation>,
    /// What else there is to say.
    pub notes: Vec<String>,
    /// What could not be, and why.
    pub refused: Vec<String>,
}

/// A service that can be had.
pub struct Prepared {
    config: (ServiceConfig, Settings),
    delivery: Delivery,
}

impl Prepared {
    pub fn into_parts(self) -> ((ServiceConfig, Settings), Delivery) {
        (self.config, self.delivery)
    }
}

impl Daemon {
    /// Gets ready what a service needs and may not get.
    ///
    /// # Errors
    /// What that is.
    pub(super) fn prepare(
        &mut self,
        (mut config, settings): (ServiceConfig, Settings),
        listens: bool,
    ) -> Result<Prepared, DaemonError> {
        let delivery = Delivery::prepare(&mut config, listens, || {
            let attach = match &mut self.context.attach {
                Some(attach) => attach,
                none => none.insert(AttachServer::open(&self.context.registry, self.context.nofile)?),
            };
            Ok(attach.name().to_owned())
        })?;
        config.files.try_open(&config.name).map_err(DaemonError::LogFile)?;
        if let Some(access) = &config.access {
            access.try_open(&config.name, &config.files).map_err(DaemonError::LogFile)?;
        }
        Ok(Prepared { config: (config, settings), delivery })
    }

    /// Begins a service.
    pub(super) fn begin(&mut self, prepared: Prepared, listeners: Vec<Listener>) -> ServiceId {
        let (config, _) = &prepared.config;
        info!(name: "starting", service = %config.name, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(),
            instances = config.instances, why = config.instances_why, policy = %config.policy,
            via = config.via(), via_reason = %config.via_reason,
            "starting"
        );
        if let Backend::Direct(command) | Backend::Relayed(command) = &config.backend
            && let Some(hint) = package_manager(command, config.cwd.as_deref())
        {
            warn!(service = %config.name, "{hint}");
        }
        let id = self.next_id;
        self.next_id += 1;
        let service = Service::new(id, prepared.config, listeners, prepared.delivery, &self.context, Instant::now());
        if Mode::has_own_primary(service.config()) {
            info!(
                service = %service.config().name,
                "cluster.isPrimary is false here: other code in the branch with fork() (cron jobs, migrations, a metrics \
                 server) does not run; move it to a service of its own (no-listen, instances = 1) or use --node-ipc \
                 plain -i 1"
            );
        }
        self.services.push(service);
        id
    }

    /// Begins a rolling reload of one service, or all; where there is a file, after it was read again.
    ///
    /// # Errors
    /// Why nothing is changed.
    pub(super) fn reload(&mut self, only: Option<&str>, now: Instant) -> Result<Begun, String> {
        let token = self.token.reread().err().map(|why| format!("--admin-token-file: {why}; the old token stays"));
        if !self.config.has_file() {
            let mut begun =
                self.each(only, |service, context| service.begin(Operation::Reload(Networks::ToRead), context, now))?;
            begun.notes.extend(token);
            begun.notes.iter().for_each(|note| warn!("{note}"));
            return Ok(begun);
        }
        if self.stopping.is_some() {
            return Err("the daemon is stopping".to_owned());
        }
        let mut read = self.config.again(inherited()).map_err(|error| error.to_string())?;
        let mut wanted = std::mem::take(&mut read.services);
        wanted.retain(|(config, _)| only.is_none_or(|only| only == config.name));
        let gone: Vec<ServiceId> = self
            .in_config()
            .filter(|service| only.is_none_or(|only| only == service.config().name))
            .filter(|service| wanted.iter().all(|(config, _)| config.name != service.config().name))
            .map(|service| service.id())
            .collect();
        if let Some(only) = only.filter(|_| wanted.is_empty() && gone.is_empty()) {
            return Err(self.unknown(only));
        }
        // All that may fail comes first: a mistake changes nothing.
        let mut ready = Vec::new();
        for (config, settings) in wanted {
            let known = self.in_config().find(|service| service.config().name == config.name);
            if let Some(service) = known {
                service.may_reload(&config)?;
            }
            let id = known.map(|service| service.id());
            let has = |listen: &&Listen| {
                known.is_some_and(|one| {
                    one.config().listen.contains(listen) || one.view().listeners.serves(&listen.address)
                })
            };
            let new = config.listen.iter().filter(|listen| !has(listen));
            let bind = |listen| {
                listen_fds::bind(listen).map_err(|error| self.held(&config.name, listen).unwrap_or(error.to_string()))
            };
            let listeners = new.map(bind).collect::<Result<Vec<_>, _>>()?;
            let listens =
                !config.listen.is_empty() || known.is_some_and(|service| !service.view().listeners.all().is_empty());
            let prepared = self.prepare((config, settings), listens).map_err(|error| error.to_string())?;
            ready.push((id, prepared, listeners));
        }
        let mut begun = Begun { notes: self.of_daemon(&mut read), ..Begun::default() };
        self.config = read;
        for (id, prepared, listeners) in ready {
            let service = self.services.iter_mut().find(|service| Some(service.id()) == id);
            match service {
                Some(service) => {
                    let (config, delivery) = (prepared.config, prepared.delivery);
                    begun.notes.extend(service.reconfigure(config, listeners, delivery, &self.context, now));
                    match service.begin(Operation::Reload(Networks::AreRead), &self.context, now) {
                        Ok(ticket) => begun.operations.push((service.id(), Some(ticket))),
                        Err(why) => begun.notes.push(format!("{}: {why}", service.config().name)),
                    }
                }
                None => {
                    begun.notes.push(format!("{}: new", prepared.config.0.name));
                    let id = self.begin(prepared, listeners);
                    if let Some(service) = self.services.last_mut() {
                        let ticket = service.begin(Operation::FirstStart, &self.context, now)?;
                        begun.operations.push((id, Some(ticket)));
                    }
                }
            }
        }
        for service in self.services.iter_mut().filter(|service| gone.contains(&service.id())) {
            begun.notes.push(format!("{}: no longer in the configuration", service.config().name));
            service.remove(now);
            begun.operations.push((service.id(), None));
        }
        begun.notes.iter().for_each(|note| info!("{note}"));
        if let Some(token) = token {
            warn!("{token}");
            begun.notes.push(token);
        }
        Ok(begun)
    }

    /// That another service has an address still: one that was renamed, for one.
    fn held(&self, name: &str, listen: &Listen) -> Option<String> {
        let others = self.services.iter().filter(|service| service.config().name != name);
        let holder =
            &others.into_iter().find(|service| service.view().listeners.serves(&listen.address))?.config().name;
        Some(format!(
            "{name}: service {holder} still listens on {}; take {name} out of the file, reload, and put it in again",
            listen.address
        ))
    }

    /// What changed for the whole daemon; all of that needs a restart, and stays in force as it is.
    fn of_daemon(&self, read: &mut Config) -> Vec<String> {
        let keys = |key: &str| OF_DAEMON.contains(&key);
        let changed = changes(&self.config.settings, &read.settings, keys);
        read.settings = self.config.settings.clone();
        read.name.clone_from(&self.config.name);
        changed.into_iter().map(|change| format!("{change}: needs a restart of the daemon")).collect()
    }

    /// Services that are gone for good.
    pub(super) fn drop_removed(&mut self) {
        for service in self.services.iter_mut().filter(|service| service.view().removed && service.is_over()) {
            info!(name: "stopped", service = %service.config().name, "stopped: no longer in the configuration");
            service.news().push_back(News { of: None, progress: Progress::Done("removed".to_owned()) });
        }
        self.pass_on_progress();
        let outputs = &self.context.launcher.outputs;
        self.services.retain(|service| {
            let over = service.view().removed && service.is_over();
            if over {
                service.remove_files(true);
                outputs.forget(&service.config().name);
            }
            !over
        });
    }

    /// Services that are in the configuration.
    pub(super) fn in_config(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| !service.view().removed)
    }
}

//! Node's own workers: what they say over their IPC channels, and what they are told.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::accept::policy::Policy;
use crate::config::options::NodeIpc;
use crate::config::{Backend, ServiceConfig};
use crate::events::{Registry, Source};
use crate::node::channel::{Channel, ChannelRecord};
use crate::node::message;
use crate::program::command::CommandLine;
use crate::program::node::is_node_script;
use crate::program::primary;
use crate::record::{Found, Kept};

/// How a worker takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As a worker of Node's cluster, of which we are the primary.
    Cluster,
    /// With messages alone.
    Plain,
}

impl Mode {
    /// Whether workers of a command get a channel, and how they take part.
    pub fn of(config: &ServiceConfig, command: &CommandLine) -> Option<Self> {
        // A cluster needs somebody to share the ports; and under none a worker gets the listening socket itself, which has
        // to have the port that it asked for.
        let renamed = config.policy == Policy::None && config.listen.iter().any(|one| one.app_port.is_some());
        let shares_ports = matches!(config.backend, Backend::Direct(_)) && !renamed;
        match config.node_ipc {
            NodeIpc::Off => None,
            NodeIpc::Auto if !is_node_script(command) => None,
            NodeIpc::Auto | NodeIpc::Cluster if shares_ports => Some(Self::Cluster),
            NodeIpc::Auto | NodeIpc::Cluster | NodeIpc::Plain => Some(Self::Plain),
        }
    }

    /// Whether a service's servers are Node's cluster scripts with a primary of their own.
    pub fn has_own_primary(config: &ServiceConfig) -> bool {
        let Some(command) = config.command() else { return false };
        Self::of(config, command) == Some(Self::Cluster) && primary::forks(command, config.cwd.as_deref())
    }
}

/// A worker's channel.
#[derive(Debug)]
pub struct Ipc {
    pub channel: Channel,
    mode: Mode,
    /// It was told to close its servers.
    pub disconnected: bool,
    /// It has said `ready`.
    pub ready: bool,
    /// A server of it listens, perhaps where the library has no part: a Unix path, UDP.
    pub listens: bool,
    /// `--stop-message`, as JSON.
    stop: Option<String>,
    /// It went.
    stop_sent: bool,
}

/// The same in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct IpcRecord {
    channel: ChannelRecord,
    cluster: bool,
    disconnected: bool,
    ready: bool,
    listens: bool,
    stop: Option<String>,
    stop_sent: bool,
}

impl Ipc {
    /// # Errors
    /// As fcntl(2).
    pub fn record(&self, kept: &mut Kept) -> io::Result<IpcRecord> {
        let Self { channel, mode, disconnected, ready, listens, stop, stop_sent } = self;
        Ok(IpcRecord {
            channel: channel.record(kept)?,
            cluster: *mode == Mode::Cluster,
            disconnected: *disconnected,
            ready: *ready,
            listens: *listens,
            stop: stop.clone(),
            stop_sent: *stop_sent,
        })
    }

    /// # Errors
    /// When a descriptor is not there, and as epoll_ctl(2).
    pub fn adopt(record: IpcRecord, pid: u32, found: &mut Found, registry: &Registry) -> io::Result<Self> {
        let IpcRecord { channel, cluster, disconnected, ready, listens, stop, stop_sent } = record;
        let mode = if cluster { Mode::Cluster } else { Mode::Plain };
        let channel = Channel::adopt(channel, found)?;
        let ipc = Self { channel, mode, disconnected, ready, listens, stop, stop_sent };
        ipc.watch(registry, pid)?;
        Ok(ipc)
    }

    /// A channel, and the worker's end of it.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn new(mode: Mode, stop: Option<&str>) -> io::Result<(Self, OwnedFd)> {
        let (channel, theirs) = Channel::pair()?;
        let stop = stop.map(|text| Value::from(text).to_string());
        Ok((Self { channel, mode, disconnected: false, ready: false, listens: false, stop, stop_sent: false }, theirs))
    }

    /// What tells Node of it.
    pub fn environment(&self, slot: u32) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("NODE_CHANNEL_FD", crate::sys::process::CHANNEL.to_string()),
            ("NODE_CHANNEL_SERIALIZATION_MODE", "json".to_owned()),
        ];
        if self.mode == Mode::Cluster {
            // Node counts from 1.
            all.push(("NODE_UNIQUE_ID", (slot + 1).to_string()));
        }
        all
    }

    /// Has epoll watch it.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, registry: &Registry, pid: u32) -> io::Result<()> {
        registry.watch(Source::Node(pid), self.channel.socket())
    }

    /// Passes a program's message on; whether there was room.
    pub fn pass(&mut self, text: &str) -> bool {
        self.channel.pass(message::user(text))
    }

    /// Sends the stop message, once; whether there is one and it went.
    pub fn stop(&mut self) -> bool {
        if !self.stop_sent
            && let Some(text) = self.stop.clone()
        {
            self.stop_sent = self.pass(&text);
        }
        self.stop_sent
    }

    /// Whether it can be told to close its servers.
    pub fn can_disconnect(&self) -> bool {
        self.mode == Mode::Cluster
    }

    /// Close your servers, finish, and end; once.
    pub fn disconnect(&mut self) {
        if self.mode == Mode::Cluster && !self.disconnected {
            self.disconnected = true;
            let seq = self.channel.next_seq();
            let _ = self.channel.send(message::disconnect(seq), None);
        }
    }
}

//! What all services share: the ways to processes, to the accept thread and to epoll.

use crate::accept::Orders;
use crate::access::Access;
use crate::direct::attach::AttachServer;
use crate::events::Registry;
use crate::launch::Launcher;
use crate::worker::children::Children;
use crate::worker::probe::PrivatePorts;

/// Made by the daemon, lent to each service for a turn.
#[derive(Debug)]
pub struct Context {
    pub launcher: Launcher,
    pub orders: Orders,
    pub access: Access,
    /// Where preload libraries ask; opened with the first direct service.
    pub attach: Option<AttachServer>,
    pub ports: PrivatePorts,
    /// The file limit of relay workers.
    pub nofile: u64,
    /// Adds to what the control thread waits on.
    pub registry: Registry,
    pub children: Children,
}

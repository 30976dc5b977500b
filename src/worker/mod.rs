//! One generation of a slot: its processes, and what connects them to the master.

pub mod decisive;
pub mod direct;
pub mod exit;
pub mod instead;
pub mod ipc;
pub mod listen_watch;
pub mod notify;
pub mod probe;
pub mod relay;
pub mod server;
pub mod stand_ins;
pub mod totals;

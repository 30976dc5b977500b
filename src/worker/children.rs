//! Whose child a process is.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::accept::orders::ServiceId;

/// The place that a process has for all its life, whether its worker is current or retiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub service: ServiceId,
    /// `None`: the server that all slots share.
    pub slot: Option<u32>,
}

/// The owners of servers and relay workers by pid, from their start until they are reaped.
#[derive(Debug, Default)]
pub struct Children(RefCell<HashMap<u32, Owner>>);

impl Children {
    pub fn add(&self, pid: u32, owner: Owner) {
        self.0.borrow_mut().insert(pid, owner);
    }

    pub fn owner(&self, pid: u32) -> Option<Owner> {
        self.0.borrow().get(&pid).copied()
    }

    pub fn remove(&self, pid: u32) {
        self.0.borrow_mut().remove(&pid);
    }
}

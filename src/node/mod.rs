//! Node's IPC and cluster protocol, as the primary of Node's own workers speaks it (read from Node's sources, v16 to v24).

pub mod channel;

pub mod message;

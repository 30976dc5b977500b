//! Layouts shared by two processes: messages, the counters page and the access log's ring. `no_std`, without imports from
//! the project; compiled into the program and into the preload library.

pub mod access;
pub mod attach;
pub mod page;
pub mod payload;

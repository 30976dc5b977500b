//! Layouts shared by two processes: messages, the counters page, the access log's ring, the record of translated addresses. `no_std`, without imports from
//! the project; compiled into the program and into the preload library.

pub mod access;
pub mod attach;
pub mod page;
pub mod payload;
pub mod translations;

//! Layouts shared by two processes: messages and the counters page. `no_std`, without imports from the project; compiled
//! into the program and into the preload library.

pub mod attach;
pub mod page;
pub mod payload;

//! What two processes must agree on: message layouts and the counters page. `no_std`, imports nothing of the
//! project; compiled into the program and into the preload library.

pub mod attach;
pub mod page;
pub mod payload;

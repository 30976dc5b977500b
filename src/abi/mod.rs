//! What two processes must agree on: message layouts and the counters page. Imports nothing of the project.

pub mod page;
pub mod payload;

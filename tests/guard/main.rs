//! The guard: what a connection costs, counted and not timed, so that a noisy machine changes nothing. A figure that grows
//! beyond its limit is a regression; one that shrinks is a reason to lower the limit.
#![allow(clippy::unwrap_used)]

mod calls;
mod library;
mod pure;
#[allow(dead_code, unused_imports)]
#[path = "../e2e/support/mod.rs"]
mod support;
mod worker;

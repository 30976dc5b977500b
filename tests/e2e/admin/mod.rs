//! `--admin`: a page, health and metrics over HTTP.

mod flood;
mod health;
mod page;
mod pictures;
mod prometheus;
mod scenes;
pub mod streams;
mod token;

//! `--admin`: a page, health and metrics over HTTP.

mod flood;
mod health;
mod large;
mod page;
pub mod pictures;
mod prometheus;
mod scenes;
pub mod streams;
mod token;
mod token_file;

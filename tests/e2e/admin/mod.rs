//! `--admin`: health and metrics over HTTP.

mod flood;
mod health;

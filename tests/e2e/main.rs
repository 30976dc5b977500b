//! End-to-end tests, one file per promise. Each starts the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod admin;
mod balance;
mod cli;
mod config;
mod control;
mod crash;
mod direct;
mod direct_faults;
mod direct_modes;
mod direct_servers;
mod direct_table;
mod hints;
mod import;
mod limits;
mod listeners;
mod log;
mod logs;
mod long;
mod messages;
mod node;
mod output;
mod pid1;
mod readme;
mod relay;
mod reload;
mod servers;
mod shutdown;
mod streams;
mod supervise;
mod systemd;
mod upstreams;

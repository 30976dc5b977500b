//! End-to-end tests, in folders by subject, one file per promise. Each starts the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod access;
mod admin;
mod cli;
mod clients;
mod config;
mod control;
mod direct;
mod docs;
mod drain;
mod faults;
mod lifecycle;
mod listen;
mod logs;
mod node;
mod proxy;
mod queue;
mod relay;
mod servers;
mod stay;
mod sticky;
mod top;
mod upgrade;

//! Direct delivery.

mod addresses;
mod binds;
mod borders;
mod busy;
mod closed;
mod delivery;
mod drops;
mod evil;
mod faults;
mod files;
mod go_servers;
mod grpc;
mod holders;
mod kept;
mod kept_none;
mod kept_table;
mod lease;
mod listening_socket;
mod master_killed;
mod model;
mod modes;
mod namespaces;
mod own_accept;
mod own_ports;
mod probe;
mod programs;
mod rare;
mod seccomp;
mod shared;
mod table;
mod taken;
mod tls_listener;
mod tomcat;
mod trials;
mod twice;
#[cfg(target_arch = "x86_64")]
#[cfg(target_arch = "x86_64")]
mod yama;

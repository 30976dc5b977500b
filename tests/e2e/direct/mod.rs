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
mod holders;
mod lease;
mod listening_socket;
mod master_killed;
mod model;
mod modes;
mod own_accept;
mod own_ports;
mod probe;
mod seccomp;
mod shared;
mod table;
mod taken;
mod tls_listener;
mod tomcat;
mod twice;

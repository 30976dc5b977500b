//! What the daemon and the servers write.

mod events;
mod files;
mod output;
mod own;
mod verb;

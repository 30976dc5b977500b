//! What the daemon and the servers write.

mod files;
mod output;
mod own;
mod verb;

//! What the daemon and the servers write.

mod events;
mod events_causes;
mod events_verb;
mod files;
mod output;
mod own;
mod verb;

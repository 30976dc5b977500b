//! What can be found out about a command before it runs: its file, its linkage, whether it is Node with a script.

pub mod command;
pub mod elf;
pub mod hints;
pub mod node;
pub mod primary;
pub mod wrapper;

//! What is known of a command before it runs: where its program is, how that is linked, whether it is Node with a script.

pub mod command;
pub mod elf;
pub mod hints;
pub mod node;
pub mod primary;

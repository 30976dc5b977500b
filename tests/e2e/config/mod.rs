//! Configuration files.

mod files;
mod in_force;

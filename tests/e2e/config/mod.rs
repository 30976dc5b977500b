//! Configuration files.

mod files;
mod in_force;
mod upstream_words;

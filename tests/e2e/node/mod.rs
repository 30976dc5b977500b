//! Programs for Node.

mod ends;
mod hostile;
mod programs;
mod protocols;

//! What people type, and what they are told.

mod deliveries;
mod detach;
mod hints;
mod import;
mod import_options;
mod messages;
mod refused;
mod slips;
mod typed;

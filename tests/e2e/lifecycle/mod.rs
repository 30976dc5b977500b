//! How workers and the daemon begin, are replaced, fail and end.

mod after;
mod crash;
mod drained;
mod drained_upstreams;
mod in_circles;
mod jobs;
mod long;
mod not_listening;
mod pid1;
mod recycling;
mod reload;
mod reload_none;
mod shutdown;
mod slots;
mod slots_matrix;
mod slow_start;
mod supervise;
mod systemd;
mod truth;
mod verbs;
mod weights;
mod weights_beside;

//! What the tests share: a guard for the daemon, servers to put behind it, and ways to wait.

mod app;
mod browser;
pub mod clients;
mod crowd;
mod daemon;
pub mod direct;
mod gate;
pub mod go;
mod install;
mod net;
mod random;
pub mod recycle;
mod screen;
mod server;
mod svg;
pub mod table;
mod terminal;
mod unsaid;

pub use app::App;
pub use browser::{Browser, Key};
pub use crowd::{Crowd, Exit, Manner, Tally};
pub use daemon::{Daemon, roundsman, unprivileged_copy};
pub use gate::Gate;
pub use install::{
    c_server, certificate, listener_programs, musl_server, rare_server, servers, source, static_pie_server,
    static_server, static_servers, step_programs,
};
pub use net::{answers, free_port, get, http_get, is_closed, read_all, refused, reset, slot_of};
pub use random::Random;
pub use screen::Screen;
pub use server::{Killed, Process, Upstream, freeze, install_dir, write_file};
pub use terminal::{on_terminal, start_on_terminal};
pub use unsaid::unsaid;

use std::time::{Duration, Instant};

/// Waits until `condition` gives something, or fails the test with `what`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

//! The lease: a server's connection to the daemon, by which it gets its stop signal when the daemon is gone. And only then.
//! Mostly waits: tests/run runs it beside others.

use crate::support::{Daemon, eventually, free_port, install_dir, listener_programs, roundsman, seconds};

/// The signal was armed while the kernel still woke the reader of the daemon's answer: about one new server in a thousand
/// was told to stop as soon as it had bound its port. 4,000 processes attach here.
#[test]
fn a_server_that_has_just_started_is_not_told_to_stop() {
    let (dir, port) = (install_dir(), free_port());
    let [program, _] = listener_programs();
    let line = format!("exec '{program}' leases {port} {}/$ROUNDSMAN_SLOT", dir.path().display());
    let arguments = ["-i", "4", "--via", "direct", "--", "sh", "-c", &line];
    let daemon = Daemon::launch(roundsman(), &arguments, port);
    for slot in ["0", "1", "2", "3"] {
        let said = eventually(&format!("slot {slot} has seen all its processes"), seconds(120), || {
            let text = std::fs::read_to_string(dir.path().join(slot)).unwrap_or_default();
            text.ends_with("end\n").then_some(text)
        });
        assert_eq!(said, "stopped: 0 \nend\n", "slot {slot}: {}", daemon.log());
    }
}

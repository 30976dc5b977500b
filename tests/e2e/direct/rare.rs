//! Static servers that do what few do, by seccomp user notification.

use crate::support::direct::{ask, start};
use crate::support::{Daemon, free_port, rare_server};

fn rare(mode: &str, instances: &str) -> (Daemon, u16) {
    let port = free_port();
    (start(port, instances, &[rare_server().to_owned(), mode.to_owned(), port.to_string()]), port)
}

/// Every request is served, in turn, by a server that knows its client.
fn serves(mode: &str) {
    let (daemon, port) = rare(mode, "2");
    let answers: Vec<_> = (0..20).map(|_| ask(port)).collect();
    assert!(answers.iter().all(|(_, known)| *known), "{mode}: the client's address");
    let slots = |name| answers.iter().filter(|(slot, _)| slot == name).count();
    assert!(slots("slot 0") > 0 && slots("slot 1") > 0, "{mode}: {answers:?}");
    assert_eq!(daemon.total("restarts"), 0, "{mode}: {}", daemon.log());
}

#[test]
fn a_thread_with_descriptors_of_its_own() {
    serves("own-files");
}

#[test]
fn a_process_whose_first_thread_has_ended() {
    serves("first-ended");
}

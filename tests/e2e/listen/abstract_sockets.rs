//! `unix:@name`: abstract Unix addresses, to listen on and to connect to.
//! Mostly waits: tests/run runs it beside others.

use crate::support::{Daemon, free_port, get, install_dir, roundsman, seconds};

#[test]
fn abstract_addresses_are_listened_on_and_connected_to_without_a_file() {
    let (dir, port) = (install_dir(), free_port());
    let address = format!("unix:@roundsman-test-{port}");
    let launch = |all: &[&str], port: u16| {
        let mut command = roundsman();
        command.current_dir(dir.path());
        Daemon::launch(command, all, port)
    };
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let back = ["-l", &address, "-i", "1", "--via", "relay", "--name", "back"];
    let mut behind = launch(&[&back[..], &server].concat(), 0);
    behind.wait_online(1);
    assert_eq!(behind.ls()["services"][0]["listen"][0]["addr"], address.as_str());
    let listen = format!("127.0.0.1:{port}");
    let front = launch(&["-l", &listen, "-i", "1", "-u", &address], port);
    front.wait_online(1);
    assert!(get(port).unwrap().starts_with("hello from slot 0"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file");
    // It is one address like any other: in use, and free again.
    let refused = launch(&["-l", &address, "-u", "127.0.0.1:1"], 0).finish(seconds(20));
    let message = format!("cannot listen on {address}: address already in use");
    assert!(refused.code() == 71 && refused.log.contains(&message), "{}", refused.log);
    assert_eq!(behind.stop().code(), 0);
    launch(&["-l", &address, "-i", "1", "-u", "127.0.0.1:1"], 0).wait_online(1);
    let refused = launch(&["-l", "unix:@", "-u", "127.0.0.1:1"], 0).finish(seconds(20));
    assert!(refused.code() == 2 && refused.log.contains("the name is missing"), "{}", refused.log);
}

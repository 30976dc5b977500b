//! Mostly waits: where a keeper runs, and who asks for it: wrappers before a static program, and `auto` where no_new_privs is set.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use roundsman::sys::{seccomp, sock};

use crate::support::direct::{ask, start};
use crate::support::{Daemon, eventually, free_port, roundsman, seconds, static_server, unsaid};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

/// The first uid of a process.
fn uid(pid: i32) -> u32 {
    status(pid, "Uid:").split_whitespace().next().unwrap().parse().unwrap()
}

/// Serves by turns, as that user; and goes on through a reload and a kill.
fn serves(wrappers: &[&str], expected: u32) {
    let port = free_port();
    let command = words(&[wrappers, &[static_server(), "threads", &port.to_string()]].concat());
    let mut daemon = start(port, "2", &command);
    let service = daemon.ls()["services"][0].clone();
    assert_eq!((&service["via"], &service["via_seccomp"]), (&"direct".into(), &true.into()), "{wrappers:?}");
    assert!((0..20).all(|_| ask(port).1), "{wrappers:?}: the client's address");
    for pid in daemon.workers() {
        assert_eq!(uid(pid), expected, "{wrappers:?}");
        assert_eq!(uid(status(pid, "PPid:").parse().unwrap()), expected, "{wrappers:?}: the keeper");
        // The image that the keeper was started from is no matter of the server's.
        let inherited = std::fs::read_link(format!("/proc/{pid}/fd/900"));
        assert!(inherited.is_err(), "{wrappers:?}: {inherited:?}");
    }
    let done = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{wrappers:?}: {}", String::from_utf8_lossy(&done.stderr));
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(2);
    assert!((0..20).all(|_| ask(port).1), "{wrappers:?}: after a kill");
    let end = daemon.stop_with_all_below();
    assert_eq!(end.code(), 0, "{wrappers:?}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn behind_a_wrapper_the_keeper_has_the_servers_user() {
    let nobody = 65_534;
    serves(&["setpriv", "--reuid=65534", "--regid", "65534", "--clear-groups", "--"], nobody);
    serves(&["gosu", "nobody", "env", "A=1"], nobody);
    serves(&["chpst", "-u", "nobody:nogroup"], nobody);
    serves(&["nice", "-n", "1"], 0);
}

#[test]
fn an_upgrade_keeps_servers_behind_a_wrapper() {
    let port = free_port();
    let mut daemon = start(port, "2", &words(&["gosu", "nobody", static_server(), "threads", &port.to_string()]));
    for round in 0..2 {
        let before = daemon.workers();
        for command in ["upgrade", "reload"] {
            let done = roundsman().arg(command).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
            assert!(done.status.success(), "{command} {round}: {}", String::from_utf8_lossy(&done.stderr));
            assert!((0..20).all(|_| ask(port).1), "{command} {round}: the client's address");
            assert_eq!(daemon.workers() == before, command == "upgrade", "{command} {round}");
        }
        kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
        daemon.wait_for_count("killed by SIGKILL", round + 1);
        daemon.wait_online(2);
        assert!((0..20).all(|_| ask(port).1), "{round}: after a kill");
        assert_eq!(uid(daemon.workers()[0]), 65_534);
    }
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
}

#[test]
fn a_server_behind_a_wrapper_ends_with_the_master() {
    let port = free_port();
    let daemon = start(port, "1", &words(&["gosu", "nobody", static_server(), "threads", &port.to_string()]));
    let server = daemon.workers()[0];
    daemon.signal(Signal::SIGKILL);
    eventually("the server ends", seconds(10), || kill(Pid::from_raw(server), None).is_err().then_some(()));
}

fn check(before: &[&str], arguments: &[&str]) -> String {
    let own = roundsman();
    let words = [before, &[own.get_program().to_str().unwrap(), "check", "-l", "8080"], arguments].concat();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find(|line| line.starts_with("via = ")).unwrap().to_owned()
}

#[test]
fn wrappers_that_keep_a_keeper_away() {
    let server = static_server();
    let line = check(&[], &["--via", "direct", "--", "runuser", "-u", "nobody", "--", server]);
    assert!(line.contains("relay here") && line.contains("runuser stays between the daemon and the server"), "{line}");
    let line = check(&[], &["--via", "direct", "--", "env", "-i", server]);
    assert!(line.contains("relay here") && line.contains("clears the environment of what it starts"), "{line}");
}

#[test]
fn auto_chooses_it_only_where_no_new_privs_is_set_already() {
    let (server, set) = (static_server(), ["setpriv", "--no-new-privs", "--"]);
    assert!(check(&[], &["--", server]).contains("relay here"));
    let line = check(&set, &["--", server]);
    assert!(line.contains("direct (seccomp) here") && line.contains("no_new_privs is set anyway"), "{line}");
    let line = check(&set, &["-p", "none", "--", server]);
    assert!(line.contains("direct (seccomp) here"), "{line}");
    let line = check(&set, &["--access-log", "/dev/null", "--", server]);
    assert!(line.contains("relay here") && line.contains("--access-log"), "{line}");
    assert!(check(&set, &["--via", "relay", "--", server]).contains("relay was asked for"));
    for policy in ["rr", "none"] {
        let port = free_port();
        let mut program = Command::new(set[0]);
        program.args(&set[1..]).arg(roundsman().get_program());
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["-l", &listen, "-i", "2", "-p", policy, "--", server, "threads", &port.to_string()];
        let mut daemon = Daemon::launch(program, &arguments, port);
        daemon.wait_online(2);
        daemon.wait_for("via=\"direct (seccomp)\"");
        assert!((0..20).all(|_| ask(port).1), "{policy}");
        let end = daemon.stop();
        assert_eq!(end.code(), 0, "{policy}: {}", end.log);
        unsaid(&end.log, &["relayed"]);
    }
}

#[test]
fn a_program_that_is_watched_already_is_relayed() {
    let (server, port) = (static_server(), free_port());
    // acct(2) would be answered by another program; nobody calls it.
    let step = |code, k: u32, jt, jf| libc::sock_filter { code, jt, jf, k };
    let filter = vec![
        step(0x20, 0, 0, 0),
        step(0x15, libc::SYS_acct as u32, 0, 1),
        step(0x06, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(0x06, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    for (via, warned) in [("direct", true), ("auto", false)] {
        let (_watches, theirs) = sock::seqpacket_pair().unwrap();
        let mut program = roundsman();
        seccomp::prepare(&mut program, filter.clone(), theirs);
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["-l", &listen, "-i", "2", "--via", via, "--", server, "threads", "{port}"];
        let mut daemon = Daemon::launch(program, &arguments, port);
        daemon.wait_online(2);
        let service = daemon.ls()["services"][0].clone();
        let reason = service["via_reason"].as_str().unwrap().to_owned();
        assert_eq!(service["via"], "relay", "{via}: {reason}");
        let why = "cannot be served directly: its system calls are watched by another program already (seccomp)";
        assert!(reason.contains(why), "{via}: {reason}");
        assert!((0..10).all(|_| !ask(port).1), "{via}: relayed");
        let end = daemon.stop();
        assert_eq!(end.code(), 0, "{via}: {}", end.log);
        assert_eq!(end.log.contains("WARN --via direct: "), warned, "{via}: {}", end.log);
        assert!(end.log.contains(why), "{via}: {}", end.log);
    }
}

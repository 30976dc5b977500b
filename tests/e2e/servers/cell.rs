//! What each server of the list goes through under a policy: connections, a reload and a kill under load, a stop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::list::{Family, Server};
use super::talk::{Seen, ask};
use crate::support::{Daemon, eventually, free_port, install_dir, millis, roundsman, seconds, servers, unsaid};

/// What a server showed.
pub struct Shown {
    pub version: String,
    /// As `ls NAME` names it.
    pub delivery: String,
    pub seen: Seen,
    pub took: std::time::Duration,
}

/// Both policies.
pub fn shows(family: &Family, server: &Server) -> Shown {
    let begin = Instant::now();
    let dir = install_dir();
    let version = server.version(family.place(dir.path(), 0));
    let rr = runs(family, server, "rr", dir.path());
    if server.no_none.is_none() {
        assert_eq!(rr, runs(family, server, "none", dir.path()), "{}: rr and none differ", server.name);
    }
    Shown { version, delivery: rr.0, seen: rr.1, took: begin.elapsed() }
}

fn runs(family: &Family, server: &Server, policy: &str, dir: &Path) -> (String, Seen) {
    let (name, port) = (format!("{} under {policy}", server.name), free_port());
    let place = family.place(dir, port);
    server.prepare(place);
    let instances = server.instances.to_string();
    let mut words = vec!["-i", &instances, "-p", policy, "--min-uptime", "300ms", "--backoff", "50ms..1s"];
    let (options, command) = (server.options(place), server.command(place));
    words.extend(options.iter().map(String::as_str));
    words.push("--");
    words.extend(command.iter().map(String::as_str));
    let mut program = roundsman();
    program.env("SERVERS", servers()).current_dir(dir);
    let mut daemon = Daemon::launch(program, &words, port);
    // Compilers and virtual machines take their time when three servers start at once.
    eventually(&format!("{name}: all online"), seconds(90), || {
        daemon.slots().iter().all(|slot| slot["state"] == "online").then_some(())
    });
    let state = daemon.ls();
    let service = &state["services"][0];
    let by = if service["via_seccomp"] == true { " (seccomp)" } else { "" };
    let delivery = format!("{}{by}", service["via"].as_str().unwrap());
    let asks = || ask(server, port).unwrap_or_else(|answer| panic!("{name}: {answer}"));
    let seen = asks();
    for _ in 0..11 {
        assert_eq!(asks(), seen, "{name}");
    }
    if delivery != "relay" {
        assert_ne!(seen, Seen::Other, "{name}: the client's address");
    }
    if policy == "rr" {
        eventually(&format!("{name}: every slot has connections"), seconds(10), || {
            asks();
            daemon.slots().iter().all(|slot| slot["connections"].as_u64() > Some(0)).then_some(())
        });
    }
    if server.no_reload.is_none() {
        reload(server, &daemon, &name);
    }
    killed(server, &daemon, &name);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{name}: {}", end.log);
    unsaid(&end.log, &["did not end"]);
    (delivery, seen)
}

/// All slots are replaced; no request of three clients fails.
fn reload(server: &Server, daemon: &Daemon, name: &str) {
    let before = daemon.workers();
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let output = std::thread::scope(|scope| {
        let client = || {
            while !over.load(SeqCst) {
                ask(server, daemon.port).unwrap_or_else(|answer| panic!("{name}, during a reload: {answer}"));
                count.fetch_add(1, SeqCst);
                std::thread::sleep(millis(10));
            }
        };
        let clients = [scope.spawn(client), scope.spawn(client), scope.spawn(client)];
        let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        over.store(true, SeqCst);
        for client in clients {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        output
    });
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(count.load(SeqCst) > 3, "{name}: {count:?}");
    assert!(daemon.workers().iter().all(|pid| !before.contains(pid)), "{name}: {before:?}");
}

/// A server's process is killed: the others serve, and its slot comes back and serves.
fn killed(server: &Server, daemon: &Daemon, name: &str) {
    let (victim, restarts) = (daemon.workers()[0], daemon.total("restarts"));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    // Until then its own children may accept, and are killed with what they have.
    eventually(&format!("{name}: the kill is noticed"), seconds(10), || {
        (daemon.slot(0, "pid") != victim).then_some(())
    });
    for _ in 0..if server.recovers.is_none() { 8 } else { 0 } {
        ask(server, daemon.port).unwrap_or_else(|answer| panic!("{name}, after a kill: {answer}"));
    }
    eventually(&format!("{name}: the killed slot is back"), seconds(60), || {
        let slot = &daemon.slots()[0];
        let replaced =
            daemon.total("restarts") > restarts || daemon.log().contains("the server goes on in another process");
        // The children of a server that has only just begun to listen may not be there yet, and miss a stop.
        let is_settled = slot["uptime_s"].as_u64() > Some(0);
        (slot["state"] == "online" && slot["pid"] != victim && replaced && is_settled).then_some(())
    });
    if server.recovers.is_some() {
        eventually(&format!("{name}: recovered"), seconds(20), || ask(server, daemon.port).ok());
    }
    for _ in 0..8 {
        ask(server, daemon.port).unwrap_or_else(|answer| panic!("{name}, with the slot back: {answer}"));
    }
    assert!(daemon.total("restarts") <= restarts + 1, "{name}: {}", daemon.log());
}

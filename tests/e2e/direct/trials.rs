//! Trials of a command with the preload library: those that hang, and programs that cannot be tried.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::direct::ask;
use crate::support::{Daemon, c_server, eventually, free_port, install_dir, roundsman, seconds, write_file};

/// Runs the command behind it, and hangs where that is a loader's list.
const HANGS: &str = "#!/bin/sh\ncase \"$*\" in *--list*) sleep 600;; esac\nshift\nexec \"$@\"\n";

fn executable(dir: &Path, name: &str, text: &str) -> String {
    let path = write_file(dir, name, text);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn commands_that_hang_when_they_are_tried_hold_nobody_up() {
    let dir = install_dir();
    let hangs = executable(dir.path(), "gosu", HANGS);
    let good = free_port();
    let service = |name: &str, before: &str, port: u16| {
        format!(
            "[service.{name}]\ninstances = 1\nlisten = [\"127.0.0.1:{port}\"]\ncommand = [{before}{:?}, \"threads\", \
             \"{{port}}\"]\n",
            c_server()
        )
    };
    let first = service("good", "", good);
    write_file(dir.path(), "all.toml", &first);
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
    command.current_dir(dir.path());
    let daemon = Daemon::launch(command, &["-c", "all.toml"], good);
    daemon.wait_online(1);
    let ports = [free_port(), free_port(), free_port()];
    let before = format!("{hangs:?}, \"nobody\", ");
    let more = ports.iter().enumerate().map(|(n, &port)| service(&format!("hangs{n}"), &before, port));
    write_file(dir.path(), "all.toml", &(first + &more.collect::<String>()));

    let over = AtomicBool::new(false);
    let longest = |act: &(dyn Fn() + Sync)| {
        let mut longest = Duration::ZERO;
        while !over.load(SeqCst) {
            let begin = Instant::now();
            act();
            longest = longest.max(begin.elapsed());
        }
        longest
    };
    let (output, listed, served) = std::thread::scope(|scope| {
        let listed = scope.spawn(|| longest(&|| drop(daemon.ls())));
        let served = scope.spawn(|| longest(&|| assert!(ask(good).1)));
        let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        over.store(true, SeqCst);
        (output, listed.join().unwrap(), served.join().unwrap())
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The first has 2 s, those after it half a second.
    assert!(listed < seconds(10), "ls took {listed:?}");
    assert!(served < seconds(10), "a request took {served:?}");
    assert_eq!(daemon.log().matches("tried with the preload library, does not end").count(), 3, "{}", daemon.log());
    for port in ports {
        eventually("it is served by relay", seconds(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            (!ask(port).1).then_some(())
        });
    }
}

#[test]
fn a_program_that_its_user_may_not_read_is_named_or_served_directly() {
    let (dir, port) = (install_dir(), free_port());
    let program = dir.path().join("server").to_str().unwrap().to_owned();
    std::fs::copy(c_server(), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o711)).unwrap();
    let check = |words: &[&str]| {
        let output = roundsman().args(["check", "-l", "8080", "--user", "nobody"]).args(words).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, text) = check(&["--", &program]);
    assert!(code == 0 && text.contains("relay here") && text.contains("chmod a+r makes it readable"), "{text}");
    let (code, text) = check(&["--via", "direct", "--", &program]);
    assert!(code == 2 && text.contains("cannot be read by the servers' user"), "{text}");
    // Behind a command nobody knows whose it will be: the start shows it.
    let port_text = port.to_string();
    let all = ["-i", "1", "--", "setpriv", "--reuid=65534", "--clear-groups", "--", &program, "threads", &port_text];
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(1);
    assert!((0..5).all(|_| ask(port).1), "{}", daemon.log());
}

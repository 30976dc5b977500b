//! Mostly waits: Servers in namespaces or roots of their own: each is served directly, or named in time with what to do.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::ask;
use crate::support::table::PYTHON;
use crate::support::{Daemon, c_server, eventually, free_port, install_dir, roundsman, seconds, unsaid, write_file};

fn launch(options: &[&str], before: &[&str], command: &[&str], port: u16) -> Daemon {
    Daemon::launch(roundsman(), &[options, &["--"], before, command].concat(), port)
}

/// By the library: answered with the client's own address, through a reload and a kill.
fn is_served(before: &str) {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "a.py", PYTHON);
    let (port_text, words): (_, Vec<&str>) = (port.to_string(), before.split(' ').collect());
    let options = ["-i", "2", "--via", "direct", "--backoff", "10ms..20ms", "--min-uptime", "100ms"];
    let mut daemon = launch(&options, &words, &["/usr/bin/python3", script.to_str().unwrap(), &port_text], port);
    daemon.wait_online(2);
    assert!((0..10).all(|_| ask(port).1), "{before}: the client's address");
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{before}: {}", String::from_utf8_lossy(&output.stderr));
    assert!((0..6).all(|_| ask(port).1), "{before}: after the reload");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    eventually("its successor", seconds(20), || (daemon.total("restarts") == 1).then_some(()));
    daemon.wait_online(2);
    assert!((0..6).all(|_| ask(port).1), "{before}: after the kill");
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{before}: {}", end.log);
    unsaid(&end.log, &["ld.so", "attach refused"]);
}

/// A root with nothing but the server and its libraries.
fn small_root(root: &Path) {
    let listed = Command::new("ldd").arg(c_server()).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for (from, to) in libraries.map(|path| (path, &path[1..])).chain([(c_server(), "server")]) {
        let to = root.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
}

/// What is said of a server that the library does not reach.
fn is_named(before: &str, command: &[&str], texts: &[&str]) {
    let port = free_port();
    let (port_text, words): (_, Vec<&str>) = (port.to_string(), before.split(' ').collect());
    let daemon = launch(&["-i", "1"], &words, &[command, &[&port_text]].concat(), port);
    for text in texts {
        daemon.wait_for(&text.replace("{port}", &port_text));
    }
}

#[test]
fn a_server_in_another_namespace_or_as_another_user_of_a_root_is_served_directly() {
    for before in ["unshare -mUr", "chroot --userspec=65534:65534 /"] {
        is_served(before);
    }
}

#[test]
fn a_server_in_another_root_is_named_and_served_by_relay() {
    let dir = install_dir();
    small_root(dir.path());
    let chroot = format!("chroot {}", dir.path().display());
    let named = ["cannot load ", "listens on :{port} by itself", "use --via relay -l {port}"];
    is_named(&chroot, &["/server", "threads"], &named);
    let port = free_port();
    let words: Vec<&str> = chroot.split(' ').collect();
    let options = ["-i", "1", "--via", "relay", "-l", &port.to_string()];
    let daemon = launch(&options, &words, &["/server", "threads", "{port}"], port);
    daemon.wait_online(1);
    ask(port);
}

#[test]
#[ignore = "long: tests/run --all"]
fn each_way_into_a_namespace_is_served_or_named() {
    let bind = "bwrap --ro-bind / / --dev /dev --proc /proc";
    for before in ["unshare -m", "unshare -U", "unshare -Ur", "unshare -i -u", "chroot /", bind] {
        is_served(before);
    }
    for more in ["--unshare-user --uid 1000", "--unshare-pid --unshare-ipc", "--die-with-parent --new-session"] {
        is_served(&format!("{bind} {more}"));
    }
    let command = [c_server(), "threads"];
    for before in ["unshare -n", "unshare -Urn", &format!("{bind} --unshare-net")] {
        is_named(before, &command, &["another network namespace", "run roundsman in that namespace, too"]);
    }
    let by_itself = "listens on :{port} by itself";
    is_named(&format!("{bind} --clearenv"), &command, &[by_itself, "let it keep LD_PRELOAD and ROUNDSMAN_ATTACH"]);
    is_named(&format!("{bind} --tmpfs /run"), &command, &["cannot load ", by_itself, "use --via relay -l {port}"]);
}

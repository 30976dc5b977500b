//! A server that does not listen where it should: after 5 s the log, and `ls`, say what it does instead.
//! Mostly waits: tests/run runs it beside others.

use super::truth::{bounded, fixed, reasons};
use crate::support::{
    App, Daemon, c_server, eventually, free_port, install_dir, roundsman, seconds, unsaid, write_file,
};

/// The daemon's log names it well before `--listen-timeout`, and so does `ls`.
#[track_caller]
fn named(daemon: &Daemon, text: &str) {
    daemon.wait_for(text);
    eventually(&format!("{text:?} in ls"), seconds(10), || {
        reasons(daemon).iter().any(|reason| reason.contains(text)).then_some(())
    });
}

#[test]
fn a_unix_socket_is_named() {
    let dir = install_dir();
    let socket = dir.path().join("x.sock");
    let text = format!(
        "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind({:?})\ns.listen(5)\ntime.sleep(1000)\n",
        socket.to_str().unwrap()
    );
    let script = write_file(dir.path(), "unix.py", &text);
    for via in ["direct", "relay"] {
        let _ = std::fs::remove_file(&socket);
        let port = free_port().to_string();
        let all = ["-l", &port, "-i", "1", "--via", via, "--", "python3", script.to_str().unwrap()];
        let daemon = Daemon::launch(roundsman(), &all, 0);
        named(&daemon, &format!("it listens on the Unix socket {}", socket.display()));
        assert!(daemon.log().contains("does not listen after 5 s"), "{}", daemon.log());
    }
}

#[test]
fn a_lost_environment_and_another_network_are_named() {
    let dir = install_dir();
    let (port, script) = (free_port().to_string(), fixed(dir.path()));
    let own = free_port().to_string();
    // A shell that starts it: the command itself would be refused.
    let line = format!("exec env -i PATH=\"$PATH\" python3 {script} {own}");
    let all = ["-l", &port, "-i", "1", "--via", "direct", "--", "sh", "-c", &line];
    let daemon = Daemon::launch(roundsman(), &all, 0);
    named(&daemon, &format!("server listens on :{own} by itself: it was started without the environment that it got"));
    drop(daemon);
    let all = ["-l", &port, "-i", "1", "--via", "direct", "--", "unshare", "-n", c_server(), "level", &own];
    let daemon = Daemon::launch(roundsman(), &all, 0);
    named(&daemon, "it runs in another network namespace");
    assert!(daemon.log().contains("run roundsman in that namespace, too"), "{}", daemon.log());
}

#[test]
fn no_port_at_all_is_named_with_no_listen() {
    let daemon = Daemon::launch(roundsman(), &["-i", "1", "--", "sleep", "1000"], 0);
    named(&daemon, "server does not listen after 5 s; if it serves no port, use --no-listen");
}

#[test]
fn a_server_on_another_port_is_not_taken_for_one_that_cannot_be_preloaded() {
    let dir = install_dir();
    let (port, own, script) = (free_port().to_string(), free_port().to_string(), fixed(dir.path()));
    let all = ["-l", &port, "-i", "1", "--via", "direct", "--", "python3", &script, &own];
    let daemon = Daemon::launch(roundsman(), &all, 0);
    daemon.wait_for(&format!(
        "it listens on :{own} instead; let it listen on :{port} (its PORT), or use -l {port}={own}"
    ));
    let log = daemon.log();
    assert!(log.contains("does not listen after 5 s"), "{log}");
    unsaid(&log, &["preload", "--via relay"]);
}

#[test]
fn a_server_that_listens_and_does_not_say_that_it_is_ready_is_named() {
    let dir = install_dir();
    let (port, script) = (free_port().to_string(), fixed(dir.path()));
    let all = ["-l", &port, "-i", "1", "--wait-ready", "--listen-timeout", "10s", "--via", "direct", "--"];
    let daemon = Daemon::launch(roundsman(), &[&all[..], &["python3", &script, &port]].concat(), 0);
    named(&daemon, "server listens, and has not said that it is ready after 5 s (--wait-ready)");
    let (code, text) = bounded(&daemon, &["restart"]);
    assert!(code == 1 && text.contains("has not said that it is ready"), "{text}");
}

/// Its primary listens, as that of @socket.io/sticky; a worker does nothing.
const STICKY: &str = "const cluster = require('cluster')
if (cluster.isPrimary) {
  cluster.fork()
  require('http').createServer((_, r) => r.end('primary')).listen(Number(process.env.PORT_OF_APP), '127.0.0.1')
} else { setInterval(() => {}, 1000) }";

const HINT: &str = "cluster.isPrimary is false here: other code in the branch with fork()";

#[test]
fn a_script_that_is_its_own_primary_is_told_what_does_not_run() {
    let app = App::start("node", "sticky.js", STICKY, &[]);
    app.daemon.wait_for(HINT);
    named(&app.daemon, "if it is the primary that listens, use --node-ipc plain -i 1");
    assert_eq!(app.daemon.log().matches(HINT).count(), 1, "once for a service: {}", app.daemon.log());
    drop(app);
    // As it says.
    let app = App::start("node", "sticky.js", STICKY, &["--node-ipc", "plain", "-i", "1"]).online(1);
    assert_eq!(crate::support::get(app.port).unwrap(), "primary");
    unsaid(&app.daemon.log(), &["isPrimary"]);
    drop(app);
    let plain =
        "require('http').createServer((_, r) => r.end('ok')).listen(Number(process.env.PORT_OF_APP), '127.0.0.1')";
    let app = App::start("node", "plain.js", plain, &[]).online(2);
    unsaid(&app.daemon.log(), &["isPrimary"]);
}

#[test]
fn node_workers_on_a_port_that_no_listen_serves_are_told_what_to_type() {
    let dir = install_dir();
    let plain =
        "require('http').createServer((_, r) => r.end('ok')).listen(Number(process.env.PORT_OF_APP), '127.0.0.1')";
    write_file(dir.path(), "app.js", plain);
    let port = free_port().to_string();
    let app = App::in_dir(dir, "node", "app.js", &["-l", &port, "--listen-timeout", "8s"]);
    let advice = format!("or use -l {port}={}", app.port);
    named(&app.daemon, &advice);
    let (code, text) = bounded(&app.daemon, &["reload"]);
    assert!(code == 1 && text.contains(&advice), "{text}");
}

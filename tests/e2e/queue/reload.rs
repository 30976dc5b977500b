//! The configuration file changes while clients wait.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpStream;

use super::{LONG, SERVER, answered, ask, held, wait_held};
use crate::support::{App, Daemon, eventually, free_port, install_dir, reset, roundsman, seconds, write_file};

/// Two workers in Node, unless the rest says otherwise; what is in the file beyond the service's command and listener.
fn file(via: &str, port: u16, rest: &str) -> String {
    format!("[service.web]\ncommand = ['node', 'app.js']\nlisten = '127.0.0.1:{port}'\nvia = '{via}'\n{rest}\n")
}

fn start(via: &str, rest: &str) -> App {
    let (dir, port) = (install_dir(), free_port());
    write_file(dir.path(), "app.js", SERVER);
    write_file(dir.path(), "a.toml", &file(via, port, rest));
    let mut command = roundsman();
    command.current_dir(dir.path());
    App { daemon: Daemon::launch(command, &["-c", "a.toml"], port), port, dir }.online(2)
}

const TIMES: &str = "instances = 2\ndrain-timeout = '300ms'\nkill-timeout = '300ms'\nmin-uptime = '50ms'";

/// The same, with as many busy clients as both workers may have and so many that wait.
fn crowded(via: &str, rest: &str, busy: u64, waiting: u64) -> (App, Vec<TcpStream>, Vec<TcpStream>) {
    let app = start(via, &format!("{TIMES}\n{rest}"));
    let long: Vec<_> = (0..busy).map(|_| ask(app.port, LONG)).collect();
    eventually("they are taken", seconds(10), || (app.daemon.total("open") == busy).then_some(()));
    let clients = (0..waiting).map(|_| ask(app.port, 0)).collect();
    wait_held(&app, waiting);
    (app, long, clients)
}

#[track_caller]
fn reload(app: &App, via: &str, rest: &str) {
    write_file(app.dir.path(), "a.toml", &file(via, app.port, &format!("{TIMES}\n{rest}")));
    let (code, said) = app.ask(&["reload"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn clients_that_wait_survive_every_change_of_the_limit_and_of_the_policy() {
    for via in ["direct", "relay"] {
        std::thread::scope(|scope| {
            for (before, after) in [
                ("worker-conns = 1", "worker-conns = 2"),
                ("worker-conns = 2", "worker-conns = 1"),
                ("worker-conns = 1", ""),
                ("worker-conns = 1", "worker-conns = 1\nmax-queue = 4"),
                ("worker-conns = 1", "worker-conns = 1\npolicy = 'least-conn'"),
                ("worker-conns = 1", "worker-conns = 1\npolicy = 'ip-hash'"),
                ("worker-conns = 1\npolicy = 'ip-hash'", "worker-conns = 1\npolicy = 'rr'"),
            ] {
                scope.spawn(move || {
                    // Under ip-hash all belong to one worker.
                    let both = if before.contains("ip-hash") { 1 } else { 2 };
                    let busy = both * if before.contains("= 2") { 2 } else { 1 };
                    let (app, _busy, waiting) = crowded(via, before, busy, 12);
                    reload(&app, via, after);
                    assert!(waiting.into_iter().all(answered), "{via}: {before:?} to {after:?}");
                    assert_eq!(held(&app), 0);
                    assert_eq!(app.daemon.ls()["services"][0]["shed"], 0, "{via}: {before:?} to {after:?}");
                });
            }
        });
    }
}

/// The first limit of a service whose workers have no bell.
#[test]
fn a_limit_that_a_reload_sets_holds_for_its_workers() {
    for via in ["direct", "relay"] {
        for limit in ["worker-conns = 1", "max-conns = 2"] {
            let (app, busy, _none) = crowded(via, "", 2, 0);
            reload(&app, via, limit);
            drop(busy);
            eventually("nothing is left of before", seconds(10), || (app.daemon.total("open") == 0).then_some(()));
            let before = app.daemon.total("connections");
            let busy: Vec<_> = (0..2).map(|_| ask(app.port, LONG)).collect();
            eventually("both are open", seconds(10), || (app.daemon.total("open") == 2).then_some(()));
            let waiting: Vec<_> = (0..3).map(|_| ask(app.port, 0)).collect();
            eventually("the others wait", seconds(10), || {
                (held(&app) == 3 || app.daemon.ls()["services"][0]["limit_reached"] == "max-conns").then_some(())
            });
            assert_eq!(app.daemon.total("connections"), before + 2, "{via} {limit}");
            busy.into_iter().for_each(reset);
            assert!(waiting.into_iter().all(answered), "{via} {limit}");
        }
    }
}

const FORKS: &str = "
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(100)
while True:
    c, peer = s.accept()
    if os.fork() == 0:
        s.close(); c.recv(1000); c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); c.close(); os._exit(0)
    c.close()
";

#[test]
fn a_limit_for_a_server_that_was_seen_to_fork_for_its_connections_is_refused() {
    let (dir, port) = (install_dir(), free_port());
    write_file(dir.path(), "forks.py", FORKS);
    let write = |more: &str| {
        let text = format!("[service.web]\ncommand = ['python3', 'forks.py', '{port}']\ninstances = 1\n{more}\n");
        write_file(dir.path(), "a.toml", &text);
    };
    write("");
    let mut command = roundsman();
    command.current_dir(dir.path());
    let daemon = Daemon::launch(command, &["-c", "a.toml"], port);
    let app = App { daemon, port, dir: install_dir() }.online(1);
    assert!(answered(ask(port, 0)));
    eventually("it is seen", seconds(10), || (app.daemon.slot(0, "open_is_estimate") == true).then_some(()));
    for key in ["worker-conns", "max-conns"] {
        write(&format!("{key} = 2"));
        let (code, said) = app.ask(&["reload"]);
        assert!(code != 0 && said.contains(&format!("web: {key}: the server closes connections in")), "{code}: {said}");
    }
    assert_eq!(app.daemon.slot(0, "generation"), 1);
    write("env = { A = 'b' }");
    assert_eq!(app.ask(&["reload"]).0, 0);
    assert!(answered(ask(port, 0)));
}
